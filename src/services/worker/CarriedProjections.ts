/** The projections of a run: where they start, and which of them it has given up to workers of a newer version. */
import * as Effect from "effect/Effect"
import { Activity } from "../../schema/Activity.ts"
import { type GivenUp, type SelectionChanged, selectionChanged } from "../../schema/Errors.ts"
import type * as Plan from "../../schema/Plan.ts"
import * as Projection from "../Projection.ts"
import * as ProjectionChecks from "./ProjectionChecks.ts"
import type { State, Worker } from "./Registration.ts"
import * as StartPosition from "./StartPosition.ts"

/** Begins a run: checks that the database can store its projections, and determines where they start. */
export const begin = Effect.fnUntraced(function*(worker: Worker, workerId: string) {
  const { state } = worker
  state.hasStarted = false
  state.givenUp.clear()
  const projections = [...worker.projections.values()]
  yield* ProjectionChecks.checkStorable(worker.checkpoints, { ...worker.settings, projections, workerId })
  state.carried = yield* Effect.forEach(
    projections,
    (projection) =>
      Effect.map(StartPosition.resolve(worker, projection), (startPosition): Plan.Carried => ({
        name: projection.name,
        filter: Projection.filterText(projection),
        startPosition,
        // With its own partition key, because progress under another one cannot be continued.
        replacesFilter: projection.replacesFilter.map((filter) => Projection.filterText({ ...projection, filter })),
        concurrency: projection.concurrency,
        ordering: projection.ordering
      }))
  )
})

/** Returns the projections of the run as plans need them. */
export const current = ({ carried, givenUp }: State): ReadonlyArray<Plan.Carried> =>
  carried.map((projection) => ({ ...projection, givenUp: givenUp.has(projection.name) }))

/**
 * Gives up a projection whose filter or partition key another worker has changed. A worker that is only starting fails
 * instead.
 */
export const giveUpChanged = Effect.fnUntraced(function*(worker: Worker, changed: SelectionChanged) {
  if (!worker.state.hasStarted) return yield* changed
  const { given, projection, recorded } = changed
  yield* giveUp(worker, projection, selectionChanged({ projection, recorded, given, whileRunning: true }))
})

/** The next plan releases the projection's ranges. Several of them may have a reason; the first one is reported. */
export const giveUp = Effect.fnUntraced(function*({ log, state }: Worker, projection: string, error: GivenUp) {
  if (state.givenUp.has(projection)) return
  state.givenUp.set(projection, error)
  yield* log.record(givenUp(state, projection, error))
  state.changed.openUnsafe()
})

const givenUp = ({ carried, givenUp }: State, projection: string, error: GivenUp): Activity =>
  Activity.ProjectionGivenUp({
    projection,
    error,
    remaining: carried.map(({ name }) => name).filter((name) => !givenUp.has(name))
  })

/** Returns the activities of the projections that the run has given up. */
export const present = (state: State): ReadonlyArray<Activity> =>
  [...state.givenUp].map(([projection, error]) => givenUp(state, projection, error))
