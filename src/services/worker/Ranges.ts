/**
 * The ranges that this worker is working on. Opening a range starts its runner. Closing it drains the runner, and
 * interrupts the runner if that takes too long; the next decision then releases the range.
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
import { Activity } from "../../schema/Activity.ts"
import * as Checkpoint from "../../schema/Checkpoint.ts"
import * as HashRange from "../../schema/HashRange.ts"
import { errorText, stackText } from "../ErrorText.ts"
import type { RangeRunner, RunnerError } from "./RangeRunner.ts"
import * as RangeState from "./RangeState.ts"

/**
 * @category models
 * @since 0.1.0
 */
export interface Ranges {
  /** The ranges that are open or still closing, by `Checkpoint.key`. */
  readonly all: ReadonlyMap<string, Readonly<RangeState.RangeState>>
  readonly open: (
    held: Checkpoint.Held,
    job: Pick<RangeState.Job, "captured" | "projection" | "record" | "settings">
  ) => Effect.Effect<void>
  /**
   * Starts to close a range, which stays in `all` until its runner has ended. `now` interrupts the runner at once, for
   * a range that is lost or a worker that must stop.
   */
  readonly close: (key: string, how: "drain" | "now") => Effect.Effect<void>
  /** Closes all ranges and waits until they have ended, except for handlers that do not stop. */
  readonly closeAll: (how: "drain" | "now") => Effect.Effect<void>
}

/** How long to wait for a handler that does not stop when it is interrupted, before it is left behind. */
const interruptionGrace = Duration.seconds(5)
/** Minimum time before a runner that died, or that was fenced at once, is started again. */
const restartDelay = Duration.seconds(1)

/**
 * Makes the collection of ranges in the present scope, whose end closes all of them.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(options: {
  readonly runner: RangeRunner["Service"]
  readonly drainTimeout: Duration.Duration
  /** Called when a range has ended or was fenced. */
  readonly onChange: () => void
  /** Opened when a range has handled all settled events. */
  readonly caughtUp: Latch.Latch
  readonly onFailure: (error: RunnerError) => Effect.Effect<void>
}): Effect.fn.Return<Ranges, never, Scope.Scope> {
  interface Entry extends RangeState.RangeState {
    readonly draining: Latch.Latch
    /** Opened when the runner has ended, or is left behind because it does not end. */
    readonly left: Latch.Latch
    fiber: Fiber.Fiber<void> | undefined
    interrupted: boolean
  }
  const entries = new Map<string, Entry>()
  /** Fences under which a runner was fenced right after its range was opened, by row key. */
  const refusals = new Map<string, Checkpoint.Held["fence"]>()

  const open: Ranges["open"] = Effect.fnUntraced(function*(held, job) {
    const key = Checkpoint.key(held)
    const openedAt = yield* Clock.monotonicTimeNanos
    if (entries.has(key)) return
    const entry: Entry = {
      ...RangeState.make(held, openedAt),
      draining: Latch.makeUnsafe(false),
      left: Latch.makeUnsafe(false),
      fiber: undefined,
      interrupted: false
    }
    entries.set(key, entry)
    const { position, projection, range } = held
    yield* job.record(Activity.RangeClaimed({ projection, range, position }))

    const orDraining = (self: Effect.Effect<void>) => Effect.raceFirst(entry.draining.await, self)
    /**
     * Delays the end of a fenced runner. If another worker has claimed the row, the next reconciliation closes the
     * range, which interrupts the delay. If not, an immediate retry would be refused again.
     */
    const refused = Effect.gen(function*() {
      options.onChange()
      const open = Duration.nanos((yield* Clock.monotonicTimeNanos) - openedAt)
      if (!Duration.isLessThan(open, restartDelay)) return
      const { fence } = held
      const before = refusals.get(key)
      refusals.set(key, fence)
      yield* orDraining(Effect.sleep(Duration.subtract(restartDelay, open)))
      // A single refusal may be caused by a claim that the reconciliation has not read yet.
      if (before?.incarnation !== fence.incarnation || before.generationId !== fence.generationId) return
      if (entry.draining.isOpen()) return
      yield* Effect.logWarning(
        `Progress of ${projection} at ${entry.handledUpTo} could not be written, although no other worker owns its row; retrying. Look for row-level security or a trigger on the table of checkpoints that keeps this role from changing it.`
      )
    })
    const run = options.runner.run({
      ...job,
      state: entry,
      draining: entry.draining,
      caughtUp: options.caughtUp
    }).pipe(
      Effect.flatMap((result) => result === "fenced" ? refused : Effect.void),
      Effect.catch(options.onFailure),
      // A runner that dies is a bug, and must not be mistaken for a halted range.
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
        generation: String(held.fence.generationId)
      })
    )
    const ended = Effect.suspend(() => {
      entries.delete(key)
      options.onChange()
      return Effect.andThen(
        job.record(Activity.RangeStopped({ projection, range, position: entry.handledUpTo })),
        entry.left.open
      )
    })
    // Not forked in the scope, whose end would wait for a handler that does not stop; `closeAll` below ends it. It
    // starts uninterruptibly, so that `ended` runs even if the fiber is interrupted before it has done anything.
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

  return { all: entries, open, close, closeAll }
})
