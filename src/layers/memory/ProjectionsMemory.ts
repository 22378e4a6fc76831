/** The status of projections in memory. */
import * as Effect from "effect/Effect"
import type { Halt } from "../../schema/Checkpoint.ts"
import * as EventFilter from "../../schema/EventFilter.ts"
import * as HashRange from "../../schema/HashRange.ts"
import * as LagWindow from "../../schema/LagWindow.ts"
import * as PartitionKey from "../../schema/PartitionKey.ts"
import * as Status from "../../schema/Status.ts"
import type { EventStore } from "../../services/EventStore.ts"
import type { ParkedEvents } from "../../services/ParkedEvents.ts"
import * as ParkedOperations from "../../services/ParkedOperations.ts"
import { Projections } from "../../services/Projections.ts"
import { type Handle, hash, type MemoryWorld } from "./MemoryWorld.ts"

export const make = (
  { reach, world }: Handle,
  { events, parkedEvents }: { readonly events: EventStore["Service"]; readonly parkedEvents: ParkedEvents }
): Projections["Service"] => {
  const read = reach(status(world, events))
  return Projections.of({ status: read, ...ParkedOperations.make({ parkedEvents, status: read }) })
}

const status = Effect.fnUntraced(function*(world: MemoryWorld, events: EventStore["Service"]) {
  const now = yield* world.now
  const head = yield* events.headPosition
  const rows = [...world.rows.values()].flatMap(({ value }) => value === undefined ? [] : [value])
  return Status.make({
    at: new Date(now),
    head,
    openWriters: [],
    generations: [...world.generations.value].flatMap(([replicaSet, generations]) =>
      generations.slice(-1).map(({ formedAt, generationId, members }) => ({
        replicaSet,
        generationId,
        partitions: members.length,
        formedAt: new Date(formedAt)
      }))
    ),
    workers: [...world.workers.value.values()].flatMap((worker) =>
      worker.stoppedAt !== undefined || worker.state === "stopped" ? [] : [{
        replicaSet: worker.replicaSet,
        workerId: worker.workerId,
        incarnation: worker.incarnation,
        state: worker.state,
        ...(worker.generationId === undefined ? {} : { generationId: worker.generationId }),
        ...(worker.partitionKey < 0 ? {} : { partition: worker.partitionKey }),
        projections: worker.projections,
        host: "memory",
        pid: worker.process,
        startedAt: worker.startedAt,
        silentMillis: now - worker.heartbeatAt,
        isPresent: worker.absentSince === undefined
      }]
    ),
    rows: yield* Effect.forEach(
      rows,
      ({ changedAt = 0, fence, filter, halt, position, projection, range, replicaSet }) =>
        Effect.map(windowAfter(events, head, position, filter, range), (window) => ({
          ...range,
          replicaSet,
          projection,
          filter,
          position,
          owner: fence,
          window,
          changedAt: new Date(changedAt),
          ...(halt === undefined
            ? {}
            : { halt: toHalt(halt) })
        }))
    ),
    parked: [...world.parked].flatMap(([projection, { value }]) => {
      const [first] = value
      return first === undefined ? [] : [{
        projection,
        events: value.length,
        keys: new Set(value.map(({ key }) => key)).size,
        oldest: value.reduce((oldest, { parkedAt }) => parkedAt < oldest ? parkedAt : oldest, first.parkedAt)
      }]
    })
  })
})

const toHalt = ({ error, eventId, position, request, since }: Halt): Status.Halt => ({
  since,
  error,
  position,
  eventId,
  ...(request === undefined ? {} : { request })
})

const windowAfter = Effect.fnUntraced(function*(
  events: EventStore["Service"],
  head: bigint,
  position: bigint,
  filter: string,
  range: HashRange.HashRange
) {
  const limits = { limit: LagWindow.largest, bytes: Number.MAX_SAFE_INTEGER }
  // No event can be counted after a position that does not exist yet.
  const page = yield* events.read({ after: position, ...limits }).pipe(
    Effect.map(({ events }) => events),
    Effect.catchTag(["CheckpointAheadOfEvents", "EventTooLarge", "EventUnreadable"], () => Effect.succeed([]))
  )
  const lists = EventFilter.parse(filter) ?? {}
  const partitionBy = EventFilter.partitionKey(filter)
  const matching = page.filter((event) =>
    EventFilter.matches(lists, event) && HashRange.includes(range, hash(PartitionKey.of(partitionBy, event)))
  )
  const last = page[limits.limit - 1]
  return {
    read: page.length,
    limit: limits.limit,
    matching: matching.length,
    oldest: matching[0]?.createdAt,
    end: matching.length === 0 && last !== undefined && last.globalPosition < head ? last.createdAt : undefined
  }
})
