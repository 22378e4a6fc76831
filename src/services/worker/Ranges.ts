/**
 * The ranges that this worker is working on. Opening a range starts its runner. Closing it drains the runner, and
 * interrupts the runner if that takes too long; the next plan then gives the range away.
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
import * as Abandonable from "../Abandonable.ts"
import { errorText, stackText } from "../ErrorText.ts"
import type { RangeRunner, RunnerError } from "./RangeRunner.ts"
import * as RangeState from "./RangeState.ts"

export interface Ranges {
  /** The ranges that are open or still closing, by `Checkpoint.key`. */
  readonly all: ReadonlyMap<string, Readonly<RangeState.RangeState>>
  readonly open: (held: Checkpoint.Held, job: JobOptions) => Effect.Effect<void>
  /**
   * Starts to close a range, which stays in `all` until its runner has ended. `now` interrupts the runner at once, for
   * a range that is lost or a worker that must stop.
   */
  readonly close: (key: string, how: How) => Effect.Effect<void>
  /** Closes all ranges and waits until they have ended, except for handlers that do not stop. */
  readonly closeAll: (how: How) => Effect.Effect<void>
}

type JobOptions = Pick<
  RangeState.Job,
  "captured" | "giveUp" | "hasNoParked" | "projection" | "record" | "registration" | "settings"
>
type How = "drain" | "now"

interface Options {
  readonly runner: RangeRunner["Service"]
  readonly drainTimeout: Duration.Duration
  /** Called when a range has ended or was fenced. */
  readonly onChange: () => void
  /** Opened when a range has handled all settled events. */
  readonly caughtUp: Latch.Latch
  readonly onFailure: (error: RunnerError) => Effect.Effect<void>
}

interface Collection extends Options {
  readonly entries: Map<string, Entry>
  /** Fences under which a runner was fenced right after its range was opened, by row key. */
  readonly fencedAtOnce: Map<string, Checkpoint.Fence>
}

interface Entry extends RangeState.RangeState {
  readonly record: JobOptions["record"]
  readonly openedAt: bigint
  readonly draining: Latch.Latch
  /** Opened when the runner has ended, or is left behind because it does not end. */
  readonly over: Latch.Latch
  /** The fiber of the runner; undefined only while it starts. */
  fiber: Fiber.Fiber<void> | undefined
  /** Whether the runner must not continue. */
  isInterrupted: boolean
  /** Whether its end has been recorded. */
  hasStopped: boolean
}

/** How long to wait for a handler that does not stop when it is interrupted, before it is left behind. */
const interruptionGrace = Duration.seconds(5)
/** Minimum time before a runner that died, or that was fenced at once, is started again. */
const restartDelay = Duration.seconds(1)

/** Makes the collection of ranges in the present scope, whose end closes all of them. */
export const make = Effect.fnUntraced(function*(options: Options): Effect.fn.Return<Ranges, never, Scope.Scope> {
  const ranges: Collection = { ...options, entries: new Map(), fencedAtOnce: new Map() }
  // A runner that was left behind may end after the next registration has claimed its range: do not
  // record its end.
  yield* Effect.addFinalizer(() =>
    Effect.andThen(closeAll(ranges, "drain"), Effect.forEach(ranges.entries.values(), recordEnd, { discard: true }))
  )
  return {
    all: ranges.entries,
    open: (held, job) => open(ranges, held, job),
    close: (key, how) => close(ranges, key, how),
    closeAll: (how) => closeAll(ranges, how)
  }
})

const open = Effect.fnUntraced(function*(ranges: Collection, held: Checkpoint.Held, job: JobOptions) {
  const key = Checkpoint.key(held)
  const openedAt = yield* Clock.monotonicTimeNanos
  if (ranges.entries.has(key)) return
  const entry: Entry = {
    ...RangeState.make(held, openedAt),
    record: job.record,
    openedAt,
    draining: Latch.makeUnsafe(false),
    over: Latch.makeUnsafe(false),
    fiber: undefined,
    isInterrupted: false,
    hasStopped: false
  }
  ranges.entries.set(key, entry)
  // Not forked in the scope, whose end would wait for a handler that does not stop; `closeAll` ends it.
  entry.fiber = yield* Abandonable.startWith(run(ranges, entry, job), () => remove(ranges, entry)).pipe(
    Effect.annotateLogs({
      projection: held.projection,
      range: HashRange.format(held.range),
      generation: String(held.fence.generationId)
    })
  )
  // It was closed while its runner started.
  if (entry.isInterrupted) yield* interrupt(entry)
}, Effect.uninterruptible)

/** Runs the range's runner to its end, of whatever kind. */
const run = (ranges: Collection, entry: Entry, job: JobOptions): Effect.Effect<void> => {
  const { draining, held: { position, projection, range } } = entry
  return job.record(Activity.RangeClaimed({ projection, range, position })).pipe(
    Effect.andThen(ranges.runner.run({ ...job, state: entry, draining, caughtUp: ranges.caughtUp })),
    Effect.flatMap((result) => result === "fenced" ? delayAfterFence(ranges, entry) : Effect.void),
    Effect.catch(ranges.onFailure),
    // A runner that dies is a bug, and must not be mistaken for a halted range.
    Effect.catchDefect((defect) => {
      const cause = Cause.die(defect)
      return Effect.andThen(
        Effect.logError(
          `The runner of projection "${projection}" died and is restarted: ${errorText(cause)}${stackText(cause)}`
        ),
        RangeState.sleepUnlessDraining(entry, restartDelay)
      )
    })
  )
}

/**
 * Delays the end of a fenced runner. If another worker has claimed the row, the next reconciliation closes the range,
 * which interrupts the delay. If not, an immediate retry would be fenced again.
 */
const delayAfterFence = Effect.fnUntraced(function*(ranges: Collection, entry: Entry) {
  ranges.onChange()
  const age = Duration.nanos((yield* Clock.monotonicTimeNanos) - entry.openedAt)
  if (!Duration.isLessThan(age, restartDelay)) return
  const { fence, projection } = entry.held
  const key = Checkpoint.key(entry.held)
  const isFirst = !Checkpoint.isSameFence(ranges.fencedAtOnce.get(key), fence)
  ranges.fencedAtOnce.set(key, fence)
  yield* RangeState.sleepUnlessDraining(entry, Duration.subtract(restartDelay, age))
  // The first time may be caused by a claim that the reconciliation has not read yet.
  if (isFirst || entry.draining.isOpen()) return
  yield* Effect.logWarning(
    `Progress of ${projection} at ${entry.handledUpTo} could not be written, although no other worker owns its row; retrying. Look for row-level security or a trigger on the table of checkpoints that keeps this role from changing it.`
  )
})

/** The change is reported last: a pass that begins at once may open the range again. */
const remove = (ranges: Collection, entry: Entry): Effect.Effect<void> =>
  Effect.suspend(() => {
    ranges.entries.delete(Checkpoint.key(entry.held))
    return Effect.ensuring(
      recordEnd(entry),
      Effect.sync(() => {
        ranges.onChange()
        entry.over.openUnsafe()
      })
    )
  })

const recordEnd = (entry: Entry): Effect.Effect<void> =>
  Effect.suspend(() => {
    if (entry.hasStopped) return Effect.void
    entry.hasStopped = true
    const { handledUpTo: position, held: { projection, range } } = entry
    return entry.record(Activity.RangeStopped({ projection, range, position }))
  })

/** Uninterruptible, because a range that is `closing` but does not drain would never end. */
const close = (ranges: Collection, key: string, how: How): Effect.Effect<void> =>
  Effect.uninterruptible(Effect.suspend(() => {
    const entry = ranges.entries.get(key)
    if (entry === undefined || (entry.closing && how === "drain")) return Effect.void
    entry.closing = true
    return how === "now" ? interrupt(entry) : drain(entry, ranges.drainTimeout)
  }))

const drain = (entry: Entry, timeout: Duration.Duration): Effect.Effect<void> =>
  Effect.suspend(() => {
    entry.draining.openUnsafe()
    return Effect.asVoid(Abandonable.start(
      Effect.flatMap(
        Effect.timeoutOption(entry.over.await, timeout),
        (exit) => Option.isNone(exit) ? interrupt(entry) : Effect.void
      )
    ))
  })

/** Interrupts the runner, and leaves it behind if it does not end. */
const interrupt = (entry: Entry): Effect.Effect<void> =>
  Effect.suspend(() => {
    entry.isInterrupted = true
    return entry.fiber === undefined ? Effect.void : Effect.asVoid(Abandonable.start(
      Effect.andThen(Abandonable.interrupt(entry.fiber, interruptionGrace), entry.over.open)
    ))
  })

const closeAll = (ranges: Collection, how: How): Effect.Effect<void> =>
  Effect.suspend(() => {
    const closing = [...ranges.entries]
    return Effect.andThen(
      Effect.forEach(closing, ([key]) => close(ranges, key, how), { discard: true }),
      Effect.forEach(closing, ([, entry]) => entry.over.await, { discard: true })
    )
  })
