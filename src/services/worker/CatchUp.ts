/** Waits until every projection has handled the events that were visible when the wait began. */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { Checkpoint } from "../../schema/Checkpoint.ts"
import { ProjectionHalted } from "../../schema/Errors.ts"
import * as HashRange from "../../schema/HashRange.ts"
import type { Worker } from "./Registration.ts"

const readingProgress = "Reading the progress of projections"

/** Fails with the first halt, and with the change of a filter that this worker gave up a projection for. */
export const awaitCaughtUp = Effect.fnUntraced(function*(worker: Worker) {
  const { events, projections, settings, startup, state } = worker
  let target = yield* startup.step("Reading the head")(events.headPosition)
  let remaining = [...projections.keys()]
  let askedAt: bigint | undefined
  while (remaining.length > 0) {
    state.changed.closeUnsafe()
    const changed = remaining.flatMap((name) => state.givenUp.get(name) ?? [])[0]
    if (changed !== undefined) return yield* changed
    // Before the assignment is reached, a halt may be from an earlier run; claiming the range retries its event.
    if (!state.isAssigned) {
      yield* state.changed.await
      continue
    }
    const mine = [...(state.ranges?.all.values() ?? [])]
    const behind: Array<string> = []
    // The progress of other workers' ranges is read from the table, but not after each batch, which would be
    // expensive.
    const now = yield* Clock.monotonicTimeNanos
    const ask = askedAt === undefined ||
      Duration.isGreaterThanOrEqualTo(Duration.nanos(now - askedAt), settings.pollInterval)
    if (ask) {
      askedAt = now
      // A server that has lost its last commits may never reach the target again.
      const head = yield* Effect.orElseSucceed(events.headPosition, () => target)
      if (head < target) target = head
    }
    for (const name of remaining) {
      const local = mine.filter(({ held }) => held.projection === name)
      if (
        HashRange.tiles(local.map(({ held }) => held.range)) && local.every(({ handledUpTo }) => handledUpTo >= target)
      ) continue
      const rows = ask ? yield* readRows(worker, name) : []
      yield* failIfHalted(rows)
      if (rows.length === 0 || rows.some((row) => row.position < target)) behind.push(name)
    }
    remaining = behind
    if (remaining.length > 0) yield* Effect.timeoutOption(state.changed.await, settings.pollInterval)
  }
})

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
