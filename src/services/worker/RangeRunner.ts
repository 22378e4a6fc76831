/**
 * The projection runner: works on one held range, batch by batch, until it is drained, interrupted or fenced.
 *
 * A batch is one transaction: the handler runs for each event, then the fenced advance. This module does not depend on
 * SQL: the checkpoint store defines what a transaction is and which failures are transient.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Random from "effect/Random"
import * as Stream from "effect/Stream"
import { Activity } from "../../schema/Activity.ts"
import { type Halt, haltError } from "../../schema/Checkpoint.ts"
import {
  CheckpointAheadOfEvents,
  type EventError,
  HandlerOverran,
  HandlerResultUnused,
  ProjectionHalted,
  type StoreError,
  type StoreFailure,
  type UnsupportedDatabase
} from "../../schema/Errors.ts"
import { type Event, label } from "../../schema/Event.ts"
import * as HashRange from "../../schema/HashRange.ts"
import type { Settings } from "../../schema/Settings.ts"
import { sentence } from "../../schema/Text.ts"
import { CheckpointStore, type Fenced, HandlerFailure, type TransientFailure } from "../CheckpointStore.ts"
import { errorText, stackText, tryRead } from "../ErrorText.ts"
import { EventStore, type Page, type ServerEpoch } from "../EventStore.ts"
import type * as Projection from "../Projection.ts"
import type { RetryLog } from "../telemetry/RetryLog.ts"
import * as BatchContext from "./BatchContext.ts"
import * as BlockingHandlers from "./BlockingHandlers.ts"
import * as RangeState from "./RangeState.ts"
import type { Startup } from "./Startup.ts"

/**
 * @category models
 * @since 0.1.0
 */
export interface Job {
  readonly projection: Projection.Any
  /** The handler's services, captured when the orchestrator was built. */
  readonly captured: Context.Context<unknown>
  readonly state: RangeState.RangeState
  readonly settings: Pick<Settings, "batchSize" | "batchBytes" | "pollInterval" | "staleWorkerTimeout">
  /** Opened to drain the range: the batch in flight ends, and no other begins. */
  readonly draining: Latch.Latch
  readonly record: (activity: Activity) => Effect.Effect<void>
  /** Opened when `handledUpTo` of the range has advanced. */
  readonly progressed: Latch.Latch
}

/**
 * How a runner ended: `drained` as requested, or `fenced` because the worker no longer owns the range.
 *
 * @category models
 * @since 0.1.0
 */
export type RunnerResult = "drained" | "fenced"

/**
 * Errors that neither a retry nor another worker can fix.
 *
 * @category errors
 * @since 0.1.0
 */
export type RunnerError = CheckpointAheadOfEvents | StoreFailure | UnsupportedDatabase

type Outcome =
  | { readonly _tag: "Committed"; readonly handled: number }
  | { readonly _tag: "Failed"; readonly at: number; readonly error: string; readonly stack: string }
  | { readonly _tag: "Drained" }
  | { readonly _tag: "Lost" }

/**
 * @category services
 * @since 0.1.0
 */
export class RangeRunner extends Context.Service<RangeRunner, {
  /**
   * Works until `draining` opens or the range is lost. Transient failures of the stores are retried without a limit. A
   * handler that fails halts the range: the preceding events commit, the failure is recorded, and the runner waits
   * until it is drained. Fails if the database cannot return events in order, or if it refuses reads before any read
   * has succeeded (a missing privilege).
   */
  readonly run: (job: Job) => Effect.Effect<RunnerResult, RunnerError>
}>()("pupsourcing-orchestrator/services/RangeRunner") {}

/**
 * A batch that takes longer commits the events that it has handled, so that row locks are held briefly and a hand-over
 * waits for one event instead of a whole batch.
 */
const longestBatchNanos = 100_000_000n
/**
 * Progress past events that do not match the projection is written at multiples of this time. All ranges of a process
 * share these times, so that the store can write their progress with one statement.
 */
const emptyProgressNanos = 1_000_000_000n
/**
 * Conflicts and refusals are logged as errors at every multiple of this number of attempts, otherwise as debug lines.
 */
const attemptsBeforeError = 5
/**
 * A handler that loses its connection this many times in a row at one position is treated as the cause. The back-off in
 * between takes about five seconds, in which an unreliable network loses connections at other events, too.
 */
const lostConnectionsBeforeFailure = 10
/**
 * The limit for connections that are lost after the handlers have ended, which is usually caused by the network. The
 * back-off in between takes almost two minutes.
 */
const lostCommitsBeforeFailure = 30
/** Maximum idle timeout: longer than any handler should hold locks, and within the range of the server's setting. */
const longestIdleTimeout = Duration.hours(1)
/**
 * A handler that overruns this many times at one event is not called for that event again. A single overrun may be
 * caused by a stopped process or an unreachable network.
 */
const overrunsBeforeFailure = 3
/**
 * A step of `Startup`, shared by the runners of all ranges. Once any range has read successfully, a `StoreFailure` of a
 * read is retried instead of failing the worker.
 */
const reading = "Reading"
/** Number of conflicts of a range before a warning, and the minimum time between two warnings about one projection. */
const conflictsBeforeWarning = 3
const conflictWarningNanos = 600_000_000_000n
const firstBackoff = Duration.millis(10)
const longestBackoff = Duration.seconds(5)

/**
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(startup: Startup, retryLog: RetryLog) {
  const events = yield* EventStore
  const checkpoints = yield* CheckpointStore
  const overruns = BlockingHandlers.make()
  /** The time until which no further conflict warning is logged for a projection, in any of its ranges. */
  const conflictsQuietUntil = new Map<string, bigint>()

  const run = Effect.fnUntraced(function*(job: Job): Effect.fn.Return<RunnerResult, RunnerError> {
    const { draining, projection, settings, state } = job
    const { held } = state
    const { range } = held
    const base = yield* Effect.context<never>()
    const clock = yield* Clock.Clock
    // The store keeps the transaction alive while the process runs. Half of the stale timeout ensures that a frozen
    // worker's locks are released before other workers claim its ranges.
    const idleTimeout = Duration.min(Duration.times(settings.staleWorkerTimeout, 0.5), longestIdleTimeout)
    const idleNanos = Duration.toNanosUnsafe(idleTimeout)
    /** When empty progress must be written; undefined while there is none. */
    let flushAt: bigint | undefined
    let failedWrites = 0
    let caughtUp = false
    /** Failures since the last batch that committed. */
    let attempt = 0
    /** How often the connection was lost in the handler of the event at `lostAt`, since the last commit. */
    let lostInHandler = 0
    let lostAt: bigint | undefined
    /** How often the connection was lost after all handlers had ended, since the last commit. */
    let lostAfter = 0
    /**
     * Maximum number of events in a batch: halved after a conflict, doubled after a commit. Ranges whose batches lock
     * the same rows in different orders get through with small batches.
     */
    let most = Infinity
    /** Number of batches that were rolled back by a conflict since `most` was last at its full size. */
    let conflicts = 0
    /** Position of the event that presumably makes batches fail; the events before it are committed first. */
    let suspect: bigint | undefined

    const unlessDraining = <A, E>(self: Effect.Effect<A, E>): Effect.Effect<Option.Option<A>, E> =>
      // `draining` comes first in the race, so that nothing starts once the range is draining.
      Effect.raceFirst(Effect.as(draining.await, Option.none<A>()), Effect.asSome(self))

    const isSuspect = ({ globalPosition }: Event): boolean =>
      suspect !== undefined && globalPosition >= suspect || overruns.count(projection.name, globalPosition) > 0

    /** Retries store errors and transient failures until success or drain; all other errors propagate. */
    const persist = Effect.fnUntraced(function*<A, E>(
      operation: Operation,
      self: Effect.Effect<A, E | StoreError | TransientFailure>
    ): Effect.fn.Return<Option.Option<A>, Exclude<E, StoreError | TransientFailure>> {
      for (let attempt = 1;; attempt++) {
        const result = yield* Effect.result(self)
        if (result._tag === "Success") {
          yield* succeeded(operation)
          return Option.some(result.success)
        }
        if (!isPassing(result.failure)) {
          return yield* Effect.fail(result.failure as Exclude<E, StoreError | TransientFailure>)
        }
        yield* failing(attempt, operation, result.failure)
        if (Option.isNone(yield* unlessDraining(backoff(attempt)))) return Option.none()
      }
    })

    const nameOf = (operation: Operation): string =>
      `${operation} of projection "${projection.name}" in range ${HashRange.format(range)}`

    const failing = (attempt: number, operation: Operation, failure: StoreError | TransientFailure) => {
      const reason = describe(failure)
      const isConflict = failure._tag === "TransientFailure" && failure.kind !== "connection"
      const log = attempt % attemptsBeforeError === 0 ? Effect.logError : Effect.logDebug
      return Effect.andThen(
        isConflict
          ? log(
            `${nameOf(operation)} at position ${state.handledUpTo} failed ${attempt} times and is retried: ${reason}`
          )
          : retryLog.failed(nameOf(operation), reason),
        job.record(Activity.BatchRetried({
          projection: projection.name,
          range,
          position: state.handledUpTo,
          attempt,
          reason
        }))
      )
    }

    /**
     * Warns about repeated conflicts. A few conflicts of a range are normal; many mean that ranges often write the same
     * rows at the same time.
     */
    const conflicted = Effect.fnUntraced(function*(failure: TransientFailure) {
      const now = clock.monotonicTimeNanosUnsafe()
      if (++conflicts < conflictsBeforeWarning || now < (conflictsQuietUntil.get(projection.name) ?? now)) return
      conflictsQuietUntil.set(projection.name, now + conflictWarningNanos)
      yield* Effect.logWarning(
        `Projection "${projection.name}" in range ${
          HashRange.format(range)
        } lost ${conflicts} batches to conflicts with other transactions, although it reduced the size of its batches. The last conflict: ${
          describe(failure)
        }. The batches are retried, but ranges that write the same rows wait for each other, so additional workers slow them down. Write one row for each aggregate and sum the rows up when reading, or give the projection a replica set with a single worker: see "Rows that several aggregates share" in docs/concepts.md.`
      )
    })

    const succeeded = (operation: Operation) => retryLog.succeeded(nameOf(operation))

    /** Marks all operations of this range as recovered, because a write has succeeded. */
    const wrote = Effect.forEach(operations, succeeded, { discard: true })

    /**
     * Writes empty progress, so that the range's next owner does not read those positions again. A failed write is not
     * retried, because the next server that answers may have fewer events than the one that was read.
     */
    const flush = Effect.fnUntraced(function*() {
      if (state.handledUpTo === state.writtenUpTo) return
      const to = state.handledUpTo
      const result = yield* Effect.result(
        checkpoints.advance(held, { from: state.writtenUpTo, to, epoch: state.epoch })
      )
      if (result._tag === "Success") {
        failedWrites = 0
        RangeState.write(state, to, clock.monotonicTimeNanosUnsafe())
        return yield* succeeded("Progress")
      }
      const { failure } = result
      if (!isPassing(failure)) return yield* failure
      RangeState.dropUnwritten(state)
      yield* failing(++failedWrites, "Progress", failure)
    })

    const read = (upTo: bigint) =>
      events.read({
        after: state.handledUpTo,
        epoch: state.epoch,
        upTo,
        range,
        filter: projection.filter,
        limit: settings.batchSize,
        bytes: settings.batchBytes
      })

    /** Returns the next page, or none when the range drains. Writes empty progress when it is due during the wait. */
    const next: Effect.Effect<
      Option.Option<Page & { readonly complete: boolean }>,
      EventError | Fenced | RunnerError
    > = Effect.gen(function*() {
      for (let attempt = 1;;) {
        const now = yield* Clock.monotonicTimeNanos
        if (state.handledUpTo === state.writtenUpTo) flushAt = undefined
        else flushAt ??= (now / emptyProgressNanos + 1n) * emptyProgressNanos
        if (flushAt !== undefined && now >= flushAt) {
          yield* flush()
          continue
        }
        // Only the wait is interrupted when progress must be written; a read that has begun continues to its result.
        const settled = Effect.raceFirst(
          Effect.asSome(events.settledBeyond(state.handledUpTo, settings.pollInterval)),
          Effect.as(
            flushAt !== undefined
              ? Effect.sleep(Duration.nanos(flushAt - now))
              // If no event arrives after a failure, this read shows that the database works again.
              : attempt > 1
              ? Effect.andThen(Effect.sleep(Duration.times(settings.pollInterval, 2)), events.headPosition)
              : Effect.never,
            Option.none<bigint>()
          )
        )
        const result = yield* Effect.result(unlessDraining(Effect.flatMap(
          settled,
          Option.match({
            onNone: () => Effect.succeedNone,
            onSome: (upTo) =>
              Effect.map(read(upTo), (page) => Option.some({ ...page, complete: page.position >= upTo }))
          })
        )))
        if (result._tag === "Failure") {
          const failure = result.failure
          if (isEventError(failure)) {
            yield* succeeded("Reading")
            return yield* failure
          }
          if (
            failure._tag === "UnsupportedDatabase" ||
            (failure._tag === "StoreFailure" && startup.isFatal(reading, failure))
          ) {
            return yield* failure
          }
          if (failure._tag === "CheckpointAheadOfEvents") {
            // A server that has lost events may have lost the progress too; then the row differs and this is fenced.
            const unchanged = checkpoints.advance(held, { from: state.writtenUpTo, to: state.writtenUpTo })
            if (Option.isNone(yield* persist("Progress", unchanged))) {
              return Option.none()
            }
            if (state.handledUpTo === state.writtenUpTo) {
              const { lastPosition, position } = failure
              return yield* new CheckpointAheadOfEvents({ projection: projection.name, position, lastPosition })
            }
            RangeState.dropUnwritten(state)
            continue
          }
          RangeState.dropUnwritten(state)
          yield* failing(attempt, "Reading", failure)
          if (Option.isNone(yield* unlessDraining(backoff(attempt)))) return Option.none()
          attempt++
          continue
        }
        if (Option.isNone(result.success)) return Option.none()
        attempt = 1
        yield* succeeded("Reading")
        if (Option.isSome(result.success.value)) {
          startup.worked(reading)
          return result.success.value
        }
      }
    })

    /**
     * Handles the events of `batch`, at least one, until the batch is complete, has taken too long or must drain, then
     * commits the handled events. After the last event the range's position is `end`.
     */
    const commit = Effect.fnUntraced(function*(
      batch: ReadonlyArray<Event>,
      end: bigint,
      readIn: ServerEpoch
    ): Effect.fn.Return<Outcome, Fenced> {
      // An event may have been counted because another handler blocked the process. Alone, it does not overrun again.
      const first = batch[0]!.globalPosition
      while (true) {
        let startedAt = 0n
        let begun = 0
        let handled = 0
        /** When the handler of the current event was started. */
        let begunAt = 0n
        /** The failure of the handlers, if any. */
        let raised: Cause.Cause<unknown> | undefined
        const enough = (workedFrom: bigint) => {
          const now = clock.monotonicTimeNanosUnsafe()
          if (draining.isOpen() || now - workedFrom > longestBatchNanos) return true
          begunAt = now
          return false
        }
        // An optimistic transaction may run its work several times before it commits, each time from the start.
        const work = Effect.suspend(() => {
          begun = 0
          handled = 0
          const workedFrom = begunAt = clock.monotonicTimeNanosUnsafe()
          return Effect.whileLoop({
            while: () => begun < Math.min(batch.length, most) && !(begun > 0 && enough(workedFrom)),
            body: (): Effect.Effect<unknown, unknown, unknown> => {
              const effect: unknown = projection.handle(batch[begun++]!)
              return Effect.isEffect(effect) ? effect : Effect.die(new HandlerResultUnused({ result: "not an Effect" }))
            },
            step: (value) => {
              // A value that throws when it is inspected is accepted.
              const result = tryRead(() => unusedResult(value))
              if (result !== undefined) throw new HandlerResultUnused({ result })
              handled = begun
            }
          })
        }).pipe(Effect.onExit(() => Effect.sync(noteOverrun)))
        /**
         * Counts an overrun as soon as the handlers have ended, because the range may be closed before the loss of the
         * batch is detected. A handler that was interrupted because its range drains is not counted.
         */
        const noteOverrun = () => {
          const cutShort = begun > handled && draining.isOpen()
          if (begun > 0 && !cutShort && clock.monotonicTimeNanosUnsafe() - begunAt > idleNanos) {
            overruns.note(projection.name, batch[begun - 1]!.globalPosition)
          }
        }
        const reached = () => handled === batch.length ? end : batch[handled - 1]!.globalPosition
        const once = Effect.suspend(() => {
          startedAt = clock.monotonicTimeNanosUnsafe()
          state.batchSince = startedAt
          raised = undefined
          const handling = Effect.scoped(BatchContext.provide(work, job.captured, base)).pipe(
            Effect.tapCause((cause) =>
              Effect.sync(() => {
                raised = cause
              })
            )
          )
          return Effect.result(
            checkpoints.commit(
              held,
              { from: state.writtenUpTo, idleTimeout, epoch: readIn },
              Effect.map(handling, reached)
            ).pipe(
              // If a handler's failure makes the store die, it is a handler failure: the handler must not run forever.
              Effect.catchCause((cause) =>
                raised === undefined || Cause.hasFails(cause) || Cause.hasInterrupts(cause)
                  ? Effect.failCause(cause)
                  : Effect.fail(new HandlerFailure({ cause: raised }))
              )
            )
          )
        })
        const ended = overruns.count(projection.name, first) > 0
          ? yield* overruns.alone(once, draining.await)
          : Option.some(yield* once)
        if (Option.isNone(ended)) return { _tag: "Drained" }
        const result = ended.value
        state.batchSince = undefined
        // The batch committed or failed for another reason: the last event did not lose it by taking too long.
        const wasLost = result._tag === "Failure" &&
          (result.failure._tag === "Fenced" || isDisconnection(result.failure))
        if (begun > 0 && !wasLost) overruns.forget(projection.name, batch[begun - 1]!.globalPosition)
        if (result._tag === "Success") {
          const now = clock.monotonicTimeNanosUnsafe()
          RangeState.write(state, reached(), now)
          attempt = lostInHandler = lostAfter = 0
          most *= 2
          if (most >= settings.batchSize) conflicts = 0
          job.progressed.openUnsafe()
          yield* wrote
          yield* job.record(Activity.BatchCommitted({
            projection: projection.name,
            range,
            events: handled,
            position: state.handledUpTo,
            took: Duration.nanos(now - startedAt)
          }))
          return { _tag: "Committed", handled }
        }
        const failure = result.failure
        if (failure._tag === "Fenced") return yield* failure
        const inHandler = begun > handled
        // If all handlers have ended, the event that causes the failure is unknown; halving finds it.
        const at = inHandler ? begun - 1 : begun >> 1
        if (failure._tag === "HandlerFailure") {
          yield* succeeded("A batch")
          return failedWith(at, failure.cause)
        }
        const disconnected = isDisconnection(failure)
        // A server-side transaction timeout hits a different event each time; smaller batches finish before it fires.
        const wanders = inHandler && lostInHandler > 0 && lostAt !== batch[begun - 1]!.globalPosition
        // A statement that the server refuses for one event must not keep the preceding events from committing.
        const isRefused = inHandler && failure._tag === "StoreFailure"
        if (!disconnected || wanders || isRefused) most = Math.max(1, begun >> 1)
        if (failure._tag === "TransientFailure" && disconnected && begun > 0) {
          if (inHandler) {
            const position = batch[begun - 1]!.globalPosition
            lostInHandler = position === lostAt ? lostInHandler + 1 : 1
            lostAt = position
          } else {
            lostAfter++
          }
          const inARow = inHandler ? lostInHandler : lostAfter
          if (inARow === (inHandler ? lostConnectionsBeforeFailure : lostCommitsBeforeFailure)) {
            lostInHandler = lostAfter = 0
            const where = inHandler ? "in the handler" : "after the handler had ended"
            return failedWith(
              at,
              Cause.fail(failure.cause),
              `the connection was lost ${inARow} times in a row ${where}: `
            )
          }
        }
        if (failure._tag === "TransientFailure" && failure.kind === "conflict") yield* conflicted(failure)
        yield* failing(++attempt, "A batch", failure)
        if (Option.isNone(yield* unlessDraining(backoff(attempt)))) return { _tag: "Drained" }
        // The batch must be read again, because the next answer may come from another server.
        if (disconnected) return { _tag: "Lost" }
      }
    })

    const isHalted = (halt: Pick<Halt, "error" | "eventId" | "position"> & Partial<Pick<Halt, "since">>): string =>
      new ProjectionHalted({ ...halt, projection: projection.name, range: HashRange.format(range) }).message

    /**
     * Records a halt and waits until the range drains. Returns whether the range has drained; if not, the halt could not
     * be recorded and the event must be read again, because it may no longer exist after a failover that lost commits.
     */
    const halts = Effect.fnUntraced(function*(
      at: Partial<Pick<Event, "aggregateId" | "eventId">> & Parameters<typeof label>[0] & { readonly position: bigint },
      readIn: ServerEpoch | undefined,
      reason: string,
      stack = ""
    ) {
      const { aggregateId, eventId = "id unreadable", position } = at
      const error = haltError([label(at), reason].filter((part) => part !== "").join(": "))
      const result = yield* Effect.result(
        checkpoints.halt(held, { at: state.writtenUpTo, epoch: readIn, error, position, eventId, aggregateId })
      )
      if (result._tag === "Failure") {
        if (!isPassing(result.failure)) return yield* result.failure
        RangeState.dropUnwritten(state)
        yield* failing(++attempt, "The record of a halt", result.failure)
        return Option.isNone(yield* unlessDraining(backoff(attempt)))
      }
      yield* wrote
      yield* Effect.logError(`${isHalted({ error, eventId, position })}${stack}`)
      RangeState.halt(state, { error, position, eventId }, clock.monotonicTimeNanosUnsafe())
      yield* job.record(
        Activity.RangeHalted({ projection: projection.name, range, halt: { error, position, eventId } })
      )
      yield* draining.await
      return true
    })

    const work = Effect.gen(function*(): Effect.fn.Return<RunnerResult, Fenced | RunnerError> {
      if (held.halt !== undefined) {
        yield* Effect.logWarning(isHalted(held.halt))
        yield* draining.await
        return "drained"
      }
      while (true) {
        const page = yield* Effect.result(next)
        if (page._tag === "Failure") {
          const failure = page.failure
          if (!isEventError(failure)) return yield* failure
          yield* flush()
          if (yield* halts(failure, failure.epoch, `${failure._tag}: ${failure.message}`)) return "drained"
          continue
        }
        if (Option.isNone(page.success)) {
          yield* flush()
          return "drained"
        }
        const { complete, events: batch, epoch: readIn, position } = page.success.value
        if (batch.length === 0) {
          RangeState.passOver(state, position, readIn)
          job.progressed.openUnsafe()
          if (complete) {
            // Nothing is left to retry: the events of a failed batch may be lost if the server epoch has ended.
            yield* succeeded("A batch")
            yield* succeeded("The record of a halt")
          }
          if (complete && !caughtUp) {
            caughtUp = true
            yield* job.record(Activity.CaughtUp({ projection: projection.name, range, position }))
          }
          continue
        }
        caughtUp = false
        let rest = batch
        while (rest.length > 0) {
          const event = rest[0]!
          const at = { ...event, position: event.globalPosition }
          const times = overruns.count(projection.name, event.globalPosition)
          if (times >= overrunsBeforeFailure) {
            const failure = new HandlerOverran({ times, longerThan: idleTimeout })
            if (yield* halts(at, readIn, `${failure._tag}: ${failure.message}`)) return "drained"
            break
          }
          // Isolates a failing event by committing the events before it.
          const before = rest.findIndex(isSuspect)
          const part = before < 0 ? rest : rest.slice(0, Math.max(1, before))
          const outcome = yield* commit(
            part,
            part.length === rest.length ? position : part[part.length - 1]!.globalPosition,
            readIn
          )
          if (outcome._tag === "Failed") {
            if (outcome.at > 0) {
              if (draining.isOpen()) return "drained"
              suspect = rest[outcome.at]!.globalPosition
              continue
            }
            if (yield* halts(at, readIn, outcome.error, outcome.stack)) return "drained"
            break
          }
          if (outcome._tag === "Drained" || draining.isOpen()) return "drained"
          if (outcome._tag === "Lost") {
            RangeState.dropUnwritten(state)
            break
          }
          rest = rest.slice(outcome.handled)
          if (rest[0] === undefined || rest[0].globalPosition === suspect) suspect = undefined
        }
      }
    })

    return yield* Effect.catchTag(work, "Fenced", () => Effect.succeed<RunnerResult>("fenced")).pipe(
      Effect.ensuring(Effect.forEach(operations, (operation) => retryLog.ended(nameOf(operation)), { discard: true }))
    )
  })

  return RangeRunner.of({ run })
})

const operations = ["Reading", "A batch", "Progress", "The record of a halt"] as const
type Operation = (typeof operations)[number]

/**
 * Returns the kind of a handler's success value that should have been run, awaited or raised, otherwise `undefined`. An
 * Exit and yieldable errors are Effects too; a successful Exit is harmless. For an array, only the first element is
 * checked.
 */
const unusedResult = (value: unknown): HandlerResultUnused["result"] | undefined => {
  const result: unknown = Array.isArray(value) ? value[0] : value
  if (Exit.isExit(result)) return Exit.isFailure(result) ? "failure" : undefined
  if (Effect.isEffect(result)) return result instanceof Error ? "failure" : "Effect"
  return Stream.isStream(result) ? "Stream" : Predicate.isPromiseLike(result) ? "Promise" : undefined
}

const failedWith = (at: number, cause: Cause.Cause<unknown>, circumstance = ""): Outcome => {
  const text = errorText(cause)
  const error = `${circumstance}${text}`
  return {
    _tag: "Failed",
    at,
    error: violation.test(text) ? `${sentence(error)} ${sharedRows}` : error,
    stack: stackText(cause)
  }
}

/** Matches the error text of a unique or foreign key violation. */
const violation = /SqlError: (UniqueViolation|ConstraintError 23503)/

const sharedRows =
  "Events of different aggregates are handled at the same time and in any order. If an event of another aggregate writes that row too, use INSERT ... ON CONFLICT and SQL arithmetic, and no foreign keys between aggregates: see \"Rows that several aggregates share\" in docs/concepts.md."

const isEventError = (failure: { readonly _tag: string }): failure is EventError =>
  failure._tag === "EventTooLarge" || failure._tag === "EventUnreadable"

const passing = new Set([
  "TransientFailure",
  "DatabaseUnavailable",
  "StoreFailure",
  "ReadOnlyReplica",
  "UnsupportedDatabase"
])

const isPassing = (failure: unknown): failure is StoreError | TransientFailure =>
  typeof failure === "object" && failure !== null && "_tag" in failure && passing.has(String(failure._tag))

/** Returns whether the server may be unavailable or replaced, so that the batch must be read again. */
const isDisconnection = (failure: HandlerFailure | StoreError | TransientFailure): boolean =>
  failure._tag !== "HandlerFailure" && (failure._tag !== "TransientFailure" || failure.kind === "connection")

const describe = (failure: StoreError | TransientFailure): string =>
  failure._tag === "TransientFailure" ? errorText(Cause.fail(failure.cause)) : failure.message

const backoff = (attempt: number): Effect.Effect<void> =>
  Effect.flatMap(Random.next, (random) => {
    const millis = Math.min(
      Duration.toMillis(firstBackoff) * 2 ** (attempt - 1),
      Duration.toMillis(longestBackoff)
    )
    return Effect.sleep(Duration.millis(millis * (0.8 + 0.4 * random)))
  })
