/**
 * The projection runner: works on one held range, batch by batch, until it is drained, interrupted or fenced.
 *
 * A batch is one transaction: the handler for each event, then the fenced advance. Nothing here knows SQL; what a
 * transaction is, and whether a failure may pass, the checkpoint store says.
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
import { Activity } from "../schema/Activity.ts"
import { type Halt, haltError, type Held } from "../schema/Checkpoint.ts"
import {
  CheckpointAheadOfEvents,
  type EventError,
  HandlerOverran,
  HandlerResultUnused,
  ProjectionHalted,
  type StoreError,
  type StoreFailure,
  type UnsupportedDatabase
} from "../schema/Errors.ts"
import { type Event, label } from "../schema/Event.ts"
import * as HashRange from "../schema/HashRange.ts"
import type { Settings } from "../schema/Settings.ts"
import { sentence } from "../schema/Text.ts"
import * as BatchContext from "./BatchContext.ts"
import { CheckpointStore, type Fenced, HandlerFailure, type TransientFailure } from "./CheckpointStore.ts"
import { errorText, stackText, tryRead } from "./ErrorText.ts"
import { EventStore, type Page, type ServerLife } from "./EventStore.ts"
import * as Overruns from "./Overruns.ts"
import type * as Projection from "./Projection.ts"
import type { RetryLog } from "./RetryLog.ts"
import type { Startup } from "./Startup.ts"

/**
 * @category models
 * @since 0.1.0
 */
export interface Job {
  readonly projection: Projection.Any
  /** The services that the handler was given when the orchestrator was built. */
  readonly captured: Context.Context<unknown>
  readonly held: Held
  readonly settings: Pick<Settings, "batchSize" | "batchBytes" | "pollInterval" | "staleWorkerTimeout">
  /** Opened when the range is to be given up: the batch in flight ends, no other begins. */
  readonly draining: Latch.Latch
  readonly record: (activity: Activity) => Effect.Effect<void>
  /** Called whenever the range has seen everything up to a position, in memory; the commit of it may still follow. */
  readonly onSeen: (position: bigint) => void
  /** Called when progress up to a position has been committed. */
  readonly onWritten: (position: bigint) => void
  /** Called with the monotonic time when a batch begins, and without one when it has ended. */
  readonly onBatch: (since: bigint | undefined) => void
}

/**
 * How a runner ended: `drained` as asked, `fenced` because the range belongs to somebody else.
 *
 * @category models
 * @since 0.1.0
 */
export type Ending = "drained" | "fenced"

/**
 * What neither another attempt nor another worker will mend.
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
export class ProjectionRunner extends Context.Service<ProjectionRunner, {
  /**
   * Works until `draining` opens or the range is lost. Passing failures of the stores are retried for as long as it
   * takes. A handler that fails halts the range: its predecessors commit, the failure is recorded, and the runner
   * waits until it is drained. A database in which events cannot be read in order, or whose very first answer is
   * a refusal (a missing right), fails it.
   */
  readonly run: (job: Job) => Effect.Effect<Ending, RunnerError>
}>()("pupsourcing-orchestrator/services/ProjectionRunner") {}

/**
 * A batch that takes longer commits what it has handled: row locks are not held for long, and hand-over waits for one
 * event instead of a batch.
 */
const longestBatchNanos = 100_000_000n
/**
 * Progress past events that do not match the projection is written at multiples of this time. These are the same for
 * all ranges of a process, so that the store can write all progress with one statement.
 */
const emptyProgressNanos = 1_000_000_000n
/** Attempts at one position after which each further failure is an error in the log. */
const attemptsBeforeError = 5
/**
 * A handler that loses its connection so often in a row at one position is taken to be the reason. Their back-off takes
 * ten seconds: what a network loses goes on at another event by then.
 */
const lostConnectionsBeforeFailure = 10
/** The same where it is lost after the handlers have ended, which is what networks do: their back-off takes minutes. */
const lostCommitsBeforeFailure = 30
/** Longer than any handler should hold locks, and no longer than the server can count. */
const longestIdleTimeout = Duration.hours(1)
/**
 * A handler that loses its batch by taking so long, so often at one event, is not called for it again. Once may be a
 * process that was stopped, or a network that was away meanwhile.
 */
const overrunsBeforeFailure = 3
/** A step of `Startup`, shared by the runners of all ranges. */
const reading = "Reading"
/** Conflicts of a range before a warning, and the pause before the next warning about the same projection. */
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
  const overruns = Overruns.make()
  /** Until when no further warning about conflicts of a projection is logged, in any of its ranges. */
  const conflictsQuietUntil = new Map<string, bigint>()

  const run = Effect.fnUntraced(function*(job: Job): Effect.fn.Return<Ending, RunnerError> {
    const { draining, held, projection, settings } = job
    const range = held.range
    const base = yield* Effect.context<never>()
    const clock = yield* Clock.Clock
    // While the process lives the transaction is kept alive; half of the time after which others would take over
    // leaves room for the locks of a frozen worker to be gone before that.
    const idleTimeout = Duration.min(Duration.times(settings.staleWorkerTimeout, 0.5), longestIdleTimeout)
    const idleNanos = Duration.toNanosUnsafe(idleTimeout)
    let seen = held.position
    /** In which life of the server that was, while it is not written: nobody keeps it for the next one. */
    let life: ServerLife | undefined
    let written = held.position
    /** When progress without handled events must be written; undefined while there is none. */
    let flushAt: bigint | undefined
    let failedWrites = 0
    let caughtUp = false
    /** Failures since the last batch that committed. */
    let attempt = 0
    /** How often since the last commit the connection was lost in the handler of this event. */
    let lostInHandler = 0
    let lostAt: bigint | undefined
    /** How often since the last commit it was lost when all handlers had ended. */
    let lostAfter = 0
    /**
     * Events of a batch at most: halved by a conflict, doubled by a commit. Ranges whose batches lock the same rows, each
     * in another order, come past each other with small ones.
     */
    let most = Infinity
    /** Batches that were rolled back by a conflict since `most` was at its full size. */
    let conflicts = 0
    /** The event that is taken to make batches fail; what comes before it is committed first. */
    let suspect: bigint | undefined

    const unlessDraining = <A, E>(self: Effect.Effect<A, E>): Effect.Effect<Option.Option<A>, E> =>
      // In this order, so that nothing is begun any more once the range is to be given up.
      Effect.raceFirst(Effect.as(draining.await, Option.none<A>()), Effect.asSome(self))

    const isSuspect = ({ globalPosition }: Event): boolean =>
      suspect !== undefined && globalPosition >= suspect || overruns.count(projection.name, globalPosition) > 0

    /** Tries until the store answers; only fencing and the end of the world come through. */
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
          ? log(`${nameOf(operation)} at position ${seen} failed ${attempt} times and is retried: ${reason}`)
          : retryLog.failed(nameOf(operation), reason),
        job.record(Activity.BatchRetried({
          projection: projection.name,
          range,
          position: seen,
          attempt,
          reason
        }))
      )
    }

    /** A few conflicts of a range are normal. Many mean that ranges often write the same rows at the same time. */
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

    /** A successful write ends all earlier failures of this range. */
    const wrote = Effect.forEach(operations, succeeded, { discard: true })

    /** Drops unwritten progress, so that those positions are read again. */
    const forget = () => {
      seen = written
      life = undefined
    }

    const hasWritten = (to: bigint) => {
      written = seen = to
      life = undefined
      job.onWritten(to)
    }

    /**
     * Writes what was passed without work, so that a successor need not read it again. It is not worth another attempt:
     * the server that answers next may have less than the one that was read.
     */
    const flush = Effect.fnUntraced(function*() {
      if (seen === written) return
      const to = seen
      const result = yield* Effect.result(checkpoints.advance(held, { from: written, to, life }))
      if (result._tag === "Success") {
        failedWrites = 0
        hasWritten(to)
        return yield* succeeded("Progress")
      }
      const { failure } = result
      if (!isPassing(failure)) return yield* failure
      forget()
      yield* failing(++failedWrites, "Progress", failure)
    })

    const read = (upTo: bigint) =>
      events.read({
        after: seen,
        life,
        upTo,
        range,
        filter: projection.filter,
        limit: settings.batchSize,
        bytes: settings.batchBytes
      })

    /** The next page; while there is none, progress without work is written in time. */
    const next: Effect.Effect<
      Option.Option<Page & { readonly complete: boolean }>,
      EventError | Fenced | RunnerError
    > = Effect.gen(function*() {
      for (let attempt = 1;;) {
        const now = yield* Clock.monotonicTimeNanos
        if (seen === written) flushAt = undefined
        else flushAt ??= (now / emptyProgressNanos + 1n) * emptyProgressNanos
        if (flushAt !== undefined && now >= flushAt) {
          yield* flush()
          continue
        }
        // Only the wait is interrupted when progress must be written; a read that has begun continues to its result.
        const settled = Effect.raceFirst(
          Effect.asSome(events.settledBeyond(seen, settings.pollInterval)),
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
            // A server that came back with less may have lost the progress too: then the row is not where it was written.
            if (Option.isNone(yield* persist("Progress", checkpoints.advance(held, { from: written, to: written })))) {
              return Option.none()
            }
            if (seen === written) {
              const { lastPosition, position } = failure
              return yield* new CheckpointAheadOfEvents({ projection: projection.name, position, lastPosition })
            }
            forget()
            continue
          }
          forget()
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
     * Handles the events of `batch`, at least one, until it is done, takes long or is to be drained, and commits what was
     * handled; after the last one the range stands at `end`.
     */
    const commit = Effect.fnUntraced(function*(
      batch: ReadonlyArray<Event>,
      end: bigint,
      readIn: ServerLife
    ): Effect.fn.Return<Outcome, Fenced> {
      // Who else was at work while a handler kept the process busy may have been noted with it: alone, it is not again.
      const first = batch[0]!.globalPosition
      while (true) {
        let startedAt = 0n
        let begun = 0
        let handled = 0
        /** When the event in hand was begun. */
        let begunAt = 0n
        /** The failure of the handlers. */
        let raised: Cause.Cause<unknown> | undefined
        const enough = (workedFrom: bigint) => {
          const now = clock.monotonicTimeNanosUnsafe()
          if (draining.isOpen() || now - workedFrom > longestBatchNanos) return true
          begunAt = now
          return false
        }
        // A transaction that is optimistic may run its work several times before it commits; each time from the start.
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
              // Other values are not inspected any further.
              const result = tryRead(() => unusedResult(value))
              if (result !== undefined) throw new HandlerResultUnused({ result })
              handled = begun
            }
          })
        }).pipe(Effect.onExit(() => Effect.sync(noteOverrun)))
        /**
         * At once, as the process may have to give up the range before the batch is known to be lost. An interruption
         * because the range is to be given up says nothing about the handler.
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
          job.onBatch(startedAt)
          raised = undefined
          const handling = Effect.scoped(BatchContext.provide(work, job.captured, base)).pipe(
            Effect.tapCause((cause) =>
              Effect.sync(() => {
                raised = cause
              })
            )
          )
          return Effect.result(
            checkpoints.commit(held, { from: written, idleTimeout, life: readIn }, Effect.map(handling, reached)).pipe(
              // If the store dies because of a handler's failure, the handler must not be called forever.
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
        job.onBatch(undefined)
        // What it failed with otherwise was not for lack of time.
        const wasLost = result._tag === "Failure" &&
          (result.failure._tag === "Fenced" || isDisconnection(result.failure))
        if (begun > 0 && !wasLost) overruns.forget(projection.name, batch[begun - 1]!.globalPosition)
        if (result._tag === "Success") {
          const now = clock.monotonicTimeNanosUnsafe()
          hasWritten(reached())
          attempt = lostInHandler = lostAfter = 0
          most *= 2
          if (most >= settings.batchSize) conflicts = 0
          job.onSeen(seen)
          yield* wrote
          yield* job.record(Activity.BatchCommitted({
            projection: projection.name,
            range,
            events: handled,
            position: seen,
            tookMillis: Number(now - startedAt) / 1_000_000
          }))
          return { _tag: "Committed", handled }
        }
        const failure = result.failure
        if (failure._tag === "Fenced") return yield* failure
        const inHandler = begun > handled
        // When all handlers came to their ends, the event that is to blame is not known: halving finds it.
        const at = inHandler ? begun - 1 : begun >> 1
        if (failure._tag === "HandlerFailure") {
          yield* succeeded("A batch")
          return failedWith(at, failure.cause)
        }
        const disconnected = isDisconnection(failure)
        // A time limit of the server for transactions strikes now this event, now that one: smaller batches come past it.
        const wanders = inHandler && lostInHandler > 0 && lostAt !== batch[begun - 1]!.globalPosition
        // Nor does what the server has against one event keep back what comes before it.
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
        // The batch was read from a server that may not be the one that answers next.
        if (disconnected) return { _tag: "Lost" }
      }
    })

    const isHalted = (halt: Pick<Halt, "error" | "eventId" | "position"> & Partial<Pick<Halt, "since">>): string =>
      new ProjectionHalted({ ...halt, projection: projection.name, range: HashRange.format(range) }).message

    /**
     * Returns whether the range is halted now. A halt that could not be recorded is not retried alone: after a failover
     * that lost commits, the event may no longer exist.
     */
    const halts = Effect.fnUntraced(function*(
      at: Partial<Pick<Event, "aggregateId" | "eventId">> & Parameters<typeof label>[0] & { readonly position: bigint },
      readIn: ServerLife | undefined,
      reason: string,
      stack = ""
    ) {
      const { aggregateId, eventId = "id unreadable", position } = at
      const error = haltError([label(at), reason].filter((part) => part !== "").join(": "))
      const result = yield* Effect.result(
        checkpoints.halt(held, { at: written, life: readIn, error, position, eventId, aggregateId })
      )
      if (result._tag === "Failure") {
        if (!isPassing(result.failure)) return yield* result.failure
        forget()
        yield* failing(++attempt, "The record of a halt", result.failure)
        return Option.isNone(yield* unlessDraining(backoff(attempt)))
      }
      yield* wrote
      yield* Effect.logError(`${isHalted({ error, eventId, position })}${stack}`)
      yield* job.record(
        Activity.RangeHalted({ projection: projection.name, range, halt: { error, position, eventId } })
      )
      yield* draining.await
      return true
    })

    const work = Effect.gen(function*(): Effect.fn.Return<Ending, Fenced | RunnerError> {
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
          if (yield* halts(failure, failure.life, `${failure._tag}: ${failure.message}`)) return "drained"
          continue
        }
        if (Option.isNone(page.success)) {
          yield* flush()
          return "drained"
        }
        const { complete, events: batch, life: readIn, position } = page.success.value
        if (batch.length === 0) {
          seen = position
          life = readIn
          job.onSeen(position)
          if (complete) {
            // The events of a failed batch may be lost if the server epoch has ended.
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
          // A failing event is isolated by committing what comes before it.
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
            forget()
            break
          }
          rest = rest.slice(outcome.handled)
          if (rest[0] === undefined || rest[0].globalPosition === suspect) suspect = undefined
        }
      }
    })

    return yield* Effect.catchTag(work, "Fenced", () => Effect.succeed<Ending>("fenced")).pipe(
      Effect.ensuring(Effect.forEach(operations, (operation) => retryLog.ended(nameOf(operation)), { discard: true }))
    )
  })

  return ProjectionRunner.of({ run })
})

const operations = ["Reading", "A batch", "Progress", "The record of a halt"] as const
type Operation = (typeof operations)[number]

/**
 * Describes a handler's success value that should have been run, awaited or raised. An Exit and yieldable errors are
 * Effects too; an Exit that is a success is harmless. For an array, only the first element is checked.
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

/** The server is not there, or not the one that it was. */
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
