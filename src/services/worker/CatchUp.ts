/**
 * Waits until every projection has handled the events that were visible when the wait began. The rows of progress decide,
 * whichever worker has written them; the worker's state only determines when to read them.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { Checkpoint } from "../../schema/Checkpoint.ts"
import { type GivenUp, ProjectionHalted } from "../../schema/Errors.ts"
import * as HashRange from "../../schema/HashRange.ts"
import type { Worker } from "./Registration.ts"

/** Returns the projections without batch windows, so that their handlers do not wait for further events. */
export const withoutWindows = (projections: Worker["projections"]): Worker["projections"] =>
  new Map(Array.from(projections, ([name, projection]) => [
    name,
    { ...projection, handler: { ...projection.handler, window: undefined } }
  ]))

/**
 * Fails if a range is halted at one of these events, or if another worker has changed the filter or partition key of a
 * projection.
 */
export const awaitCaughtUp = Effect.fnUntraced(function*(worker: Worker) {
  const { events, projections, settings, startup, state } = worker
  let target = yield* startup.step("Reading the head")(events.headPosition)
  let remaining: ReadonlyArray<string> = [...projections.keys()]
  while (true) {
    state.changed.closeUnsafe()
    yield* failIfGivenUp(state, remaining, (error) => error._tag !== "EventVersionTooNew")
    // Before the assignment is reached, a halt may be from an earlier run; claiming the range retries its event.
    if (state.isAssigned) {
      target = yield* lowered(worker, target)
      remaining = yield* Effect.filter(remaining, (name) => isBehind(worker, name, target))
      if (remaining.length === 0) return
      // The event of a newer version may be later than the target.
      yield* failIfGivenUp(state, remaining)
    }
    yield* Effect.sleep(checkInterval)
    yield* Effect.timeoutOption(state.changed.await, settings.pollInterval)
  }
})

const failIfGivenUp = (
  { givenUp }: Worker["state"],
  projections: ReadonlyArray<string>,
  isFatal: (error: GivenUp) => boolean = () => true
): Effect.Effect<void, GivenUp> => {
  const error = projections.flatMap((name) => givenUp.get(name) ?? []).find(isFatal)
  return error === undefined ? Effect.void : Effect.fail(error)
}

/** Minimum time between two checks, because ranges that receive new events are caught up after each of them. */
const checkInterval = Duration.millis(50)

/**
 * Returns the head if it is below the target: a server that has lost its last commits may never reach the target.
 * Without an answer the target remains until the next check.
 */
const lowered = ({ events }: Worker, target: bigint): Effect.Effect<bigint> =>
  events.headPosition.pipe(
    Effect.map((head) => head < target ? head : target),
    Effect.orElseSucceed(() => target)
  )

const isBehind = Effect.fnUntraced(function*(worker: Worker, projection: string, target: bigint) {
  const rows = yield* readRows(worker, projection)
  const behind = rows.filter((row) => handledUpTo(row) < target)
  yield* failIfHalted(behind)
  return rows.length === 0 || behind.length > 0
})

/** A halted range has handled all events before the one that failed, which may be later than the target. */
const handledUpTo = ({ halt, position }: Checkpoint): bigint => halt === undefined ? position : halt.position - 1n

const readingProgress = "Reading the progress of projections"

/** Returns no row if the database does not answer. */
const readRows = ({ checkpoints, retryLog }: Worker, projection: string): Effect.Effect<ReadonlyArray<Checkpoint>> =>
  checkpoints.rows(projection).pipe(
    Effect.tap(retryLog.succeeded(readingProgress)),
    Effect.catch((error) => Effect.as(retryLog.failed(readingProgress, error.message), []))
  )

const failIfHalted = (rows: ReadonlyArray<Checkpoint>): Effect.Effect<void, ProjectionHalted> => {
  const halted = rows.find((row) => row.halt !== undefined)
  if (halted?.halt === undefined) return Effect.void
  const { error, eventId, position, since } = halted.halt
  return Effect.fail(
    new ProjectionHalted({
      projection: halted.projection,
      range: HashRange.format(halted.range),
      position,
      eventId,
      error,
      since
    })
  )
}
