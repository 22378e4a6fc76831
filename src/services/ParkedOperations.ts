/** The operations on parked events and halted ranges, for the stores of any layer. */
import * as Effect from "effect/Effect"
import { EventNotHalted, ProjectionUnknown, type StoreError } from "../schema/Errors.ts"
import type { HaltRequest, ParkedEvent, Request, Selection } from "../schema/ParkedEvent.ts"
import type { Status } from "../schema/Status.ts"
import type { ParkedEvents } from "./ParkedEvents.ts"
import type { Projections, RequestOptions } from "./Projections.ts"

interface Dependencies {
  readonly parkedEvents: ParkedEvents
  readonly status: Effect.Effect<Status, StoreError>
}

type Operations = Pick<
  Projections["Service"],
  "dropParked" | "parked" | "retryHalted" | "retryParked" | "skipHalted"
>

export const make = (self: Dependencies): Operations => ({
  parked: (projection, selection = "all") => list(self, projection, selection),
  retryParked: (projection, selection, options) => request(self, projection, "retry", { ...options, selection }),
  dropParked: (projection, selection, options) => request(self, projection, "drop", { ...options, selection }),
  retryHalted: (projection, eventId) => requestOnHalt(self, projection, { eventId, request: "retry" }),
  skipHalted: (projection, eventId) => requestOnHalt(self, projection, { eventId, request: "skip" })
})

const list = (self: Dependencies, projection: string, selection: Selection) =>
  selection === "all"
    ? orUnknown(self, projection, self.parkedEvents.list(projection))
    : request(self, projection, "drop", { selection, dryRun: true })

const request = (
  self: Dependencies,
  projection: string,
  request: Request,
  options: RequestOptions & { readonly selection: Selection }
) => orUnknown(self, projection, self.parkedEvents.request(projection, { ...options, request }))

/** If there are no events, checks that the projection exists: an empty list would hide a misspelt name. */
const orUnknown = (
  { status }: Dependencies,
  projection: string,
  events: Effect.Effect<ReadonlyArray<ParkedEvent>, StoreError>
) => Effect.tap(events, (events) => events.length > 0 ? Effect.void : Effect.flatMap(status, findIn(projection)))

/** The projection in the status; fails if it has no progress. */
const findIn = (name: string) => ({ replicaSets }: Status) => {
  const all = replicaSets.flatMap(({ projections }) => projections)
  const found = all.find(({ projection }) => projection === name)
  return found === undefined
    ? Effect.fail(new ProjectionUnknown({ projection: name, known: all.map(({ projection }) => projection).sort() }))
    : Effect.succeed(found)
}

const requestOnHalt = Effect.fnUntraced(function*(
  { parkedEvents, status }: Dependencies,
  projection: string,
  options: { readonly eventId: string; readonly request: HaltRequest }
) {
  if (yield* parkedEvents.requestOnHalt(projection, options)) return
  const { ranges } = yield* Effect.flatMap(status, findIn(projection))
  const halted = ranges.flatMap(({ halt }) => halt === undefined ? [] : [halt.eventId])
  return yield* new EventNotHalted({ projection, eventId: options.eventId, halted })
})
