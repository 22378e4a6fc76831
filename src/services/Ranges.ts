/**
 * The ranges that this worker is working on: one scope for each. Opening it starts the runner; closing it drains the
 * runner, interrupts it when that takes too long, and leaves the range to be given up by the next decision.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { Activity } from "../schema/Activity.ts"
import * as Checkpoint from "../schema/Checkpoint.ts"
import type { CheckpointAheadOfEvents } from "../schema/Errors.ts"
import { within } from "./Bounded.ts"
import type { Job, ProjectionRunner } from "./ProjectionRunner.ts"

/**
 * @category models
 * @since 0.1.0
 */
export interface Range {
  readonly held: Checkpoint.Held
  /** How far it has been seen, in memory. */
  readonly seen: bigint
  readonly closing: boolean
}

/**
 * @category models
 * @since 0.1.0
 */
export interface Ranges {
  /** What is open or still closing, by `Checkpoint.key`. */
  readonly all: ReadonlyMap<string, Range>
  readonly open: (job: Omit<Job, "draining" | "onSeen">) => Effect.Effect<void>
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
  readonly onFailure: (error: CheckpointAheadOfEvents) => Effect.Effect<void>
}): Effect.fn.Return<Ranges, never, Scope.Scope> {
  interface Entry {
    readonly job: Omit<Job, "draining" | "onSeen">
    readonly held: Checkpoint.Held
    readonly scope: Scope.Closeable
    readonly draining: Latch.Latch
    fiber: Fiber.Fiber<void>
    seen: bigint
    closing: boolean
    interrupted: boolean
    done: Latch.Latch
  }
  const entries = new Map<string, Entry>()
  const owner = yield* Effect.scope
  // The runners' own scope ends after the draining below, which is registered later and therefore runs first.
  const runners = yield* Scope.fork(owner)

  const open: Ranges["open"] = Effect.fnUntraced(function*(job) {
    const key = Checkpoint.key(job.held)
    if (entries.has(key)) return
    const scope = yield* Scope.make()
    const entry: Entry = {
      job,
      held: job.held,
      scope,
      draining: Latch.makeUnsafe(false),
      fiber: undefined as never,
      seen: job.held.position,
      closing: false,
      interrupted: false,
      done: Latch.makeUnsafe(false)
    }
    entries.set(key, entry)
    const { projection, range, position } = { ...job.held, projection: job.projection.name }
    yield* job.record(Activity.RangeTaken({ projection, range, position }))
    entry.fiber = yield* options.runner.run({
      ...job,
      draining: entry.draining,
      onSeen: (seen) => {
        entry.seen = seen
        options.onSeen()
      }
    }).pipe(
      Effect.catch(options.onFailure),
      // A runner that dies is a bug; it must not pass for a range that quietly stands still.
      Effect.catchDefect((defect) =>
        Effect.logError(`The runner of ${job.projection.name} died and is started again`, defect).pipe(
          Effect.andThen(Effect.sleep(Duration.seconds(1)))
        )
      ),
      Effect.ensuring(Effect.suspend(() => {
        entries.delete(key)
        options.onChange()
        return Effect.andThen(
          job.record(Activity.RangeGivenUp({ projection, range, position: entry.seen })),
          entry.done.open
        )
      })),
      Effect.asVoid,
      // At once, so that its end is seen to even when it is interrupted before it has done anything.
      Effect.forkIn(runners, { startImmediately: true })
    )
    yield* Scope.addFinalizer(scope, stop(entry))
  }, Effect.uninterruptible)

  const stop = (entry: Entry) =>
    Effect.suspend(() => {
      const drained = entry.interrupted
        ? Effect.succeed(false)
        : Effect.andThen(
          entry.draining.open,
          Effect.map(within(entry.done.await, options.drainTimeout), Option.isSome)
        )
      return Effect.flatMap(drained, (ended) =>
        ended
          ? Effect.void
          : Effect.andThen(
            // The interruption itself must not be waited for without end: it waits for the handler.
            Effect.forkDetach(Fiber.interrupt(entry.fiber)),
            within(entry.done.await, interruptionGrace)
          ))
    })

  const close: Ranges["close"] = (key, how) =>
    Effect.suspend(() => {
      const entry = entries.get(key)
      if (entry === undefined) return Effect.void
      if (how === "now" && !entry.interrupted) {
        entry.interrupted = true
        if (entry.closing) return Effect.asVoid(Effect.forkDetach(Fiber.interrupt(entry.fiber)))
      }
      if (entry.closing) return Effect.void
      entry.closing = true
      return Effect.asVoid(Effect.forkIn(Scope.close(entry.scope, Exit.void), runners))
    })

  const closeAll: Ranges["closeAll"] = (how) =>
    Effect.suspend(() => {
      const waiting = [...entries.values()]
      const patience = Duration.sum(interruptionGrace, how === "now" ? Duration.zero : options.drainTimeout)
      return Effect.forEach([...entries.keys()], (key) => close(key, how), { discard: true }).pipe(
        Effect.andThen(within(
          Effect.forEach(waiting, (entry) => entry.done.await, { discard: true, concurrency: "unbounded" }),
          patience
        )),
        Effect.asVoid
      )
    })
  yield* Scope.addFinalizer(owner, closeAll("drain"))

  const all: ReadonlyMap<string, Range> = entries
  return { all, open, close, closeAll }
})
