/**
 * The ranges that this worker is working on. Opening one starts its runner; closing it drains the runner, interrupts it
 * when that takes too long, and leaves the range to be given up by the next decision.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { Activity } from "../schema/Activity.ts"
import * as Checkpoint from "../schema/Checkpoint.ts"
import * as HashRange from "../schema/HashRange.ts"
import { errorText, stackText } from "./ErrorText.ts"
import type { Job, ProjectionRunner, RunnerError } from "./ProjectionRunner.ts"

/**
 * @category models
 * @since 0.1.0
 */
export interface Range {
  readonly held: Checkpoint.Held
  /** How far it has been seen, in memory. */
  readonly seen: bigint
  /** The reason if the range is halted, whether it was halted before or after it was opened. */
  readonly halt: Omit<Checkpoint.Halt, "since" | "hash" | "incarnation"> | undefined
  /** Since when, by the monotonic clock in nanoseconds. */
  readonly haltedAt: bigint
  /** How far its progress has been committed, and when that was heard of. */
  readonly written: bigint
  readonly writtenAt: bigint
  readonly closing: boolean
  /** Since when a batch is open, by the monotonic clock in nanoseconds. */
  readonly batchSince: bigint | undefined
}

/**
 * @category models
 * @since 0.1.0
 */
export interface Ranges {
  /** What is open or still closing, by `Checkpoint.key`. */
  readonly all: ReadonlyMap<string, Range>
  readonly open: (job: Omit<Job, "draining" | "onBatch" | "onSeen" | "onWritten">) => Effect.Effect<void>
  /**
   * Begins to close a range; it stays in `all` until its runner has ended. `now` interrupts the runner at once: the
   * range is lost anyway, or nothing may run any more.
   */
  readonly close: (key: string, how: "drain" | "now") => Effect.Effect<void>
  /** Closes all ranges and waits, but not for a handler that will not stop. */
  readonly closeAll: (how: "drain" | "now") => Effect.Effect<void>
}

/** A handler that does not stop when it is interrupted is waited for this long, then left behind. */
const interruptionGrace = Duration.seconds(5)
/** A runner that died, or whose row refused it, is started again no sooner than this. */
const restartDelay = Duration.seconds(1)

/**
 * Makes the collection in the present scope, whose end closes all ranges.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(options: {
  readonly runner: ProjectionRunner["Service"]
  readonly drainTimeout: Duration.Duration
  /** Something changed: a range ended, or has seen more. */
  readonly onChange: () => void
  readonly onSeen: () => void
  readonly onFailure: (error: RunnerError) => Effect.Effect<void>
}): Effect.fn.Return<Ranges, never, Scope.Scope> {
  interface Entry {
    readonly held: Checkpoint.Held
    readonly draining: Latch.Latch
    /** Opened when the runner has ended, or would not: then it is left behind. */
    readonly left: Latch.Latch
    fiber: Fiber.Fiber<void> | undefined
    seen: bigint
    halt: Range["halt"]
    haltedAt: bigint
    written: bigint
    writtenAt: bigint
    closing: boolean
    batchSince: bigint | undefined
    interrupted: boolean
  }
  const clock = yield* Clock.Clock
  const entries = new Map<string, Entry>()
  /** Fences under which rows have refused their worker at once, by key. */
  const refusals = new Map<string, Checkpoint.Held["fence"]>()

  const open: Ranges["open"] = Effect.fnUntraced(function*(job) {
    const key = Checkpoint.key(job.held)
    const openedAt = yield* Clock.monotonicTimeNanos
    if (entries.has(key)) return
    const entry: Entry = {
      held: job.held,
      draining: Latch.makeUnsafe(false),
      left: Latch.makeUnsafe(false),
      fiber: undefined,
      seen: job.held.position,
      halt: job.held.halt,
      haltedAt: openedAt,
      written: job.held.position,
      writtenAt: openedAt,
      closing: false,
      batchSince: undefined,
      interrupted: false
    }
    entries.set(key, entry)
    const { projection, range, position } = { ...job.held, projection: job.projection.name }
    yield* job.record(Activity.RangeTaken({ projection, range, position }))

    const orDraining = (self: Effect.Effect<void>) => Effect.raceFirst(entry.draining.await, self)
    /**
     * Whose row has gone to another worker is closed at the next look, which interrupts this. Where nobody else has it,
     * no look would bring anything new.
     */
    const refused = Effect.gen(function*() {
      options.onChange()
      const open = Duration.nanos((yield* Clock.monotonicTimeNanos) - openedAt)
      if (!Duration.isLessThan(open, restartDelay)) return
      const { fence } = job.held
      const before = refusals.get(key)
      refusals.set(key, fence)
      yield* orDraining(Effect.sleep(Duration.subtract(restartDelay, open)))
      // Once may be news that the look has not brought yet.
      if (before?.incarnation !== fence.incarnation || before.generationId !== fence.generationId) return
      if (entry.draining.isOpen()) return
      yield* Effect.logWarning(
        `Progress of ${projection} at ${entry.seen} could not be written, although no other worker has its row: it is tried again. Look for row-level security or a trigger on the table of checkpoints that keeps this role from changing it.`
      )
    })
    const run = options.runner.run({
      ...job,
      draining: entry.draining,
      record: (activity) =>
        Effect.gen(function*() {
          if (activity._tag === "RangeHalted") {
            entry.halt = activity.halt
            entry.haltedAt = yield* Clock.monotonicTimeNanos
          }
          yield* job.record(activity)
        }),
      onSeen: (seen) => {
        entry.seen = seen
        options.onSeen()
      },
      onWritten: (position) => {
        entry.written = position
        entry.writtenAt = clock.monotonicTimeNanosUnsafe()
      },
      onBatch: (since) => {
        entry.batchSince = since
      }
    }).pipe(
      Effect.flatMap((ending) => ending === "fenced" ? refused : Effect.void),
      Effect.catch(options.onFailure),
      // A runner that dies is a bug, and must not look like a halted range.
      Effect.catchDefect((defect) =>
        Effect.logError(
          `The runner of projection "${projection}" died and is restarted: ${errorText(Cause.die(defect))}${
            stackText(Cause.die(defect))
          }`
        ).pipe(
          Effect.andThen(orDraining(Effect.sleep(restartDelay)))
        )
      ),
      Effect.annotateLogs({
        projection,
        range: HashRange.format(range),
        generation: String(job.held.fence.generationId)
      })
    )
    const ended = Effect.suspend(() => {
      entries.delete(key)
      options.onChange()
      return Effect.andThen(
        job.record(Activity.RangeGivenUp({ projection, range, position: entry.seen })),
        entry.left.open
      )
    })
    // Not in the scope, whose end would wait for a handler that will not stop: `closeAll` below sees to its end. It
    // begins uninterruptibly, so that its end is seen to even when it is interrupted before it has done anything.
    entry.fiber = yield* Effect.asVoid(Effect.ensuring(Effect.interruptible(run), ended)).pipe(
      Effect.forkDetach({ startImmediately: true, uninterruptible: true })
    )
  }, Effect.uninterruptible)

  const interrupt = (entry: Entry) =>
    Effect.suspend(() => {
      if (entry.interrupted) return Effect.void
      entry.interrupted = true
      entry.fiber?.interruptUnsafe()
      return Effect.asVoid(Effect.forkDetach(
        Effect.andThen(Effect.timeoutOption(entry.left.await, interruptionGrace), entry.left.open)
      ))
    })

  const drain = (entry: Entry) =>
    Effect.suspend(() => {
      entry.draining.openUnsafe()
      return Effect.asVoid(Effect.forkDetach(Effect.flatMap(
        Effect.timeoutOption(entry.left.await, options.drainTimeout),
        Option.match({ onNone: () => interrupt(entry), onSome: () => Effect.void })
      )))
    })

  const close: Ranges["close"] = (key, how) =>
    Effect.uninterruptible(Effect.suspend(() => {
      const entry = entries.get(key)
      if (entry === undefined || (entry.closing && how === "drain")) return Effect.void
      entry.closing = true
      return how === "now" ? interrupt(entry) : drain(entry)
    }))

  const closeAll: Ranges["closeAll"] = (how) =>
    Effect.suspend(() => {
      const waiting = [...entries.values()]
      return Effect.forEach([...entries.keys()], (key) => close(key, how), { discard: true }).pipe(
        Effect.andThen(Effect.forEach(waiting, (entry) => entry.left.await, { discard: true }))
      )
    })
  yield* Effect.addFinalizer(() => closeAll("drain"))

  const all: ReadonlyMap<string, Range> = entries
  return { all, open, close, closeAll }
})
