/** Examples of every activity, from which docs/metrics.md shows the log lines and span events. */
import * as Duration from "effect/Duration"
import { Activity } from "../src/schema/Activity.ts"
import { EventVersionTooNew, FilterChanged, WorkerEvicted } from "../src/schema/Errors.ts"
import * as EventFilter from "../src/schema/EventFilter.ts"
import * as HashRange from "../src/schema/HashRange.ts"

type Examples = {
  readonly [Tag in Activity["_tag"]]: ReadonlyArray<Extract<Activity, { readonly _tag: Tag }>>
}

const [replicaSet, workerId, projection] = ["main-projections", "worker-1", "users"]

const registration = { replicaSet, workerId, incarnation: 7n, startedAt: new Date(0), projections: [projection] }
const generation = (members: number) => ({
  replicaSet,
  generationId: 3n,
  members: Array.from({ length: members }, (_, index) => ({ ...registration, workerId: `worker-${index + 1}` }))
})
const range = { projection, range: HashRange.partition(0, 2) }
const took = Duration.millis(20)
const failed = {
  ...range,
  position: 42n,
  eventId: "0b6cf0a0-5f5c-4d5b-9a63-1f6f2d0c9e77",
  error: "type UserCreated, User \"user-1\", version 1: Error: no name",
  stack: ""
}
const evicted = (reason: "evicted" | "missing") =>
  Activity.WorkerEvicted({ registration, error: new WorkerEvicted({ replicaSet, workerId, reason }) })
const givenUp = [
  new FilterChanged({
    projection,
    recorded: EventFilter.canonical({ eventTypes: ["UserCreated", "UserRenamed"] }),
    given: EventFilter.canonical({ eventTypes: ["UserCreated"] }),
    whileRunning: true
  }),
  new EventVersionTooNew({
    projection,
    eventId: "0b6cf0a0-5f5c-4d5b-9a63-1f6f2d0c9e77",
    eventType: "UserCreated",
    eventVersion: 2,
    newest: 1
  })
]

/** By tag, so that the compiler demands an example of each. Together they produce every log line of the table. */
export const examples: Examples = {
  WorkerStarting: [Activity.WorkerStarting({ workerId, projections: [projection] })],
  WorkerRegistered: [Activity.WorkerRegistered({ registration })],
  GenerationChanged: [
    Activity.GenerationChanged({
      generation: generation(2),
      partition: 0,
      formedByThisWorker: true,
      reasons: ["WorkerJoined", "WorkerLeft", "WorkerLost", "ProjectionsChanged"]
    }),
    Activity.GenerationChanged({ generation: generation(1), partition: -1, formedByThisWorker: false, reasons: [] })
  ],
  AssignmentReached: [false, true].map((isLeftAlone) =>
    Activity.AssignmentReached({ generation: generation(1), partition: 0, after: took, isLeftAlone })
  ),
  RangeHandedOver: [Activity.RangeHandedOver({ ...range, after: took })],
  RangeTakenOver: [Activity.RangeTakenOver({ ...range, after: took })],
  RangeClaimed: [Activity.RangeClaimed({ ...range, position: 41n })],
  BatchCommitted: [Activity.BatchCommitted({ ...range, events: 10, position: 41n, took })],
  BatchRetried: [Activity.BatchRetried({ ...range, position: 41n, attempt: 1, reason: "conflict" })],
  HandlerRunsLong: [
    Activity.HandlerRunsLong({
      ...range,
      position: 42n,
      eventId: "0b6cf0a0-5f5c-4d5b-9a63-1f6f2d0c9e77",
      eventType: "UserCreated",
      events: 1,
      startedAt: new Date(0),
      runsFor: Duration.seconds(30)
    })
  ],
  RangeHalted: [Activity.RangeHalted({
    ...range,
    halt: {
      error: "type UserCreated, User \"user-1\", version 1: Error: no name",
      position: 42n,
      eventId: "0b6cf0a0-5f5c-4d5b-9a63-1f6f2d0c9e77"
    },
    stack: ""
  })],
  EventSkipped: [Activity.EventSkipped({ ...failed, requested: false })],
  EventParked: [Activity.EventParked(failed)],
  EventsQueued: [Activity.EventsQueued({ ...range, events: 3 })],
  ParkedEventRemoved: (["retry", "drop"] as const).map((request) =>
    Activity.ParkedEventRemoved({ ...range, position: failed.position, eventId: failed.eventId, request })
  ),
  ParkedEventFailed: [Activity.ParkedEventFailed(failed)],
  CaughtUp: [Activity.CaughtUp({ ...range, position: 42n })],
  RangeStopped: [Activity.RangeStopped({ ...range, position: 42n })],
  ProjectionGivenUp: givenUp.flatMap((error) =>
    [[], ["orders"]].map((remaining) => Activity.ProjectionGivenUp({ projection, error, remaining }))
  ),
  ReplicaSetSampled: [Activity.ReplicaSetSampled({ sample: undefined })],
  ConnectionsChanged: [Activity.ConnectionsChanged({ isListening: true, sessions: 3 })],
  HeartbeatRenewed: [Activity.HeartbeatRenewed({ took })],
  Suspended: [Activity.Suspended()],
  Resumed: [Activity.Resumed()],
  DeadWorkersEvicted: [Activity.DeadWorkersEvicted({ workers: [registration] })],
  WorkerEvicted: [evicted("evicted"), evicted("missing")],
  WorkerStopping: [Activity.WorkerStopping({ registration })],
  WorkerLeaving: [Activity.WorkerLeaving({ registration })],
  WorkerLeft: [Activity.WorkerLeft({ registration, formedGeneration: true })],
  WorkerStopped: [Activity.WorkerStopped({})],
  Missed: [Activity.Missed({ count: 1 })]
}
