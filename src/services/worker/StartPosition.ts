/** The position at which a projection without progress starts. */
import * as Effect from "effect/Effect"
import { microsOf } from "../../schema/Append.ts"
import { InvalidSettings } from "../../schema/Errors.ts"
import type * as Projection from "../Projection.ts"
import type { Worker } from "./Registration.ts"

/** Number of reads of the settled position before a warning that it has not reached `startFrom`. */
const readsBeforeWarning = 3

/** Returns where a projection starts. Returns 0 for one with progress, where the value is not used. */
export const resolve = Effect.fnUntraced(function*(worker: Worker, projection: Projection.Any) {
  const { checkpoints, events, startup } = worker
  const { name, startFrom } = projection
  if (startFrom === "beginning") return 0n
  const rows = yield* startup.step("Reading checkpoints")(checkpoints.rows(name))
  if (rows.length > 0) return 0n
  if (startFrom === "now") return yield* startup.step(readingSettled)(events.settledPosition)
  if (typeof startFrom === "object") return yield* positionOf(worker, name, microsOf(startFrom)!)
  yield* checkWasIssued(worker, name, startFrom)
  yield* waitUntilSettled(worker, name, startFrom)
  return startFrom
})

const readingSettled = "Reading the settled position"

/** The date was checked: it can be stored. */
const positionOf = Effect.fnUntraced(function*({ events, startup }: Worker, name: string, micros: bigint) {
  const position = yield* startup.step("Searching for the first event of a date")(events.positionBefore(micros))
  const date = new Date(Number(micros / 1000n)).toISOString()
  yield* Effect.logInfo(`Projection "${name}" starts from ${date}, which is position ${position}.`)
  return position
})

const checkWasIssued = ({ events, startup }: Worker, name: string, position: bigint) =>
  events.read({ after: position, limit: 1 }).pipe(
    startup.step(`Reading at position ${position}`),
    Effect.catchTags({
      EventTooLarge: () => Effect.void,
      EventUnreadable: () => Effect.void,
      CheckpointAheadOfEvents: ({ lastPosition }) =>
        Effect.fail(
          new InvalidSettings({
            setting: "projections",
            problem:
              `startFrom of "${name}" is ${position}, but the events table has only issued positions up to ${lastPosition}. Give "beginning", "now" or a position that exists.`
          })
        )
    })
  )

/** Readers rely on everything up to a checkpoint being final, so a start is recorded only once it is settled. */
const waitUntilSettled = Effect.fnUntraced(function*(worker: Worker, name: string, position: bigint) {
  for (let reads = 1;; reads++) {
    if ((yield* worker.startup.step(readingSettled)(worker.events.settledPosition)) >= position) return
    if (reads === readsBeforeWarning) {
      yield* Effect.logWarning(
        `Projection "${name}" starts from position ${position}, which is not settled yet; waiting.`
      )
    }
    yield* Effect.sleep(worker.settings.pollInterval)
  }
})
