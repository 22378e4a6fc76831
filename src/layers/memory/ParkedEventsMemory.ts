/** Parked events in memory. What the owner of a range writes is part of the transaction of its batch. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as TxRef from "effect/TxRef"
import { haltError, type Held, isHeldAs, key } from "../../schema/Checkpoint.ts"
import { ParkingLimitReached } from "../../schema/Errors.ts"
import * as HashRange from "../../schema/HashRange.ts"
import * as ParkedEvent from "../../schema/ParkedEvent.ts"
import * as PartitionKey from "../../schema/PartitionKey.ts"
import { EpochEnded, Fenced } from "../../services/CheckpointStore.ts"
import type { ServerEpoch } from "../../services/EventStore.ts"
import { ParkedEvents } from "../../services/ParkedEvents.ts"
import { type Handle, hash, type MemoryWorld } from "./MemoryWorld.ts"

type Store = ParkedEvents

export const make = ({ reach, world }: Handle): Store =>
  ParkedEvents.of({
    keys: (held, epoch) => reach(keys(world, held, epoch)),
    requests: (held) => reach(Effect.sync(() => requests(world, held))),
    park: (held, options) => reach(park(world, held, options)),
    remove: (held, options) => reach(remove(world, held, options)),
    recordFailure: (held, options) => reach(recordFailure(world, held, options)),
    isSkipRequested: (held, eventId) => reach(isSkipRequested(world, held, eventId)),
    list: (projection, options) => reach(Effect.sync(() => list(world, projection, options))),
    request: (projection, options) => reach(Effect.tx(request(world, projection, options))),
    requestOnHalt: (projection, options) => reach(Effect.tx(requestOnHalt(world, projection, options)))
  })

/** The maximum number of requests that are read at once. */
const mostRequests = 100

/** The committed parked events of a projection, in position order. */
const committed = (world: MemoryWorld, projection: string): ReadonlyArray<ParkedEvent.ParkedEvent> =>
  world.parked.get(projection)?.value ?? []

const inRange = (world: MemoryWorld, { projection, range }: Held) =>
  committed(world, projection).filter(({ keyHash }) => HashRange.includes(range, keyHash))

const keys = (world: MemoryWorld, held: Held, epoch: ServerEpoch | undefined) =>
  Effect.suspend((): Effect.Effect<ReadonlyMap<number, number>, EpochEnded | Fenced> => {
    if (epoch !== undefined && epoch !== world.epoch) return Effect.fail(new EpochEnded())
    if (heldRow(world, held) === undefined) return Effect.fail(new Fenced({ projection: held.projection }))
    const counts = new Map<number, number>()
    for (const { keyHash } of inRange(world, held)) counts.set(keyHash, (counts.get(keyHash) ?? 0) + 1)
    return Effect.succeed(counts)
  })

/** The committed row, if it has the range and the fence of `held`. */
const heldRow = (world: MemoryWorld, held: Held) => {
  const row = world.rows.get(key(held))?.value
  return row !== undefined && isHeldAs(row, held) ? row : undefined
}

const requests = (world: MemoryWorld, held: Held) => {
  const halt = heldRow(world, held)?.halt
  return {
    parked: ParkedEvent.executable(inRange(world, held)).slice(0, mostRequests).map((event) => ({
      eventId: event.eventId,
      key: event.key,
      keyHash: event.keyHash,
      position: event.position,
      request: event.request!,
      requestedAt: event.requestedAt
    })),
    halt: halt?.request === undefined
      ? undefined
      : { request: halt.request, eventId: halt.eventId, position: halt.position }
  }
}

/** Changes the parked events of a projection, in the transaction of the caller. */
const modify = <A>(
  world: MemoryWorld,
  projection: string,
  change: (
    events: ReadonlyArray<ParkedEvent.ParkedEvent>
  ) => readonly [A, ReadonlyArray<ParkedEvent.ParkedEvent>]
): Effect.Effect<A> =>
  Effect.suspend(() => {
    const events = world.parked.get(projection) ?? TxRef.makeUnsafe<ReadonlyArray<ParkedEvent.ParkedEvent>>([])
    world.parked.set(projection, events)
    return TxRef.modify(events, (events) => [...change(events)])
  })

const park = Effect.fnUntraced(function*(
  world: MemoryWorld,
  { projection }: Held,
  { events, failure, limits, partitionBy }: Parameters<Store["park"]>[1]
) {
  const now = yield* world.now
  const added = events.map((event): ParkedEvent.ParkedEvent => ({
    projection,
    position: event.globalPosition,
    key: PartitionKey.of(partitionBy, event),
    keyHash: hash(PartitionKey.of(partitionBy, event)),
    eventId: event.eventId,
    eventType: event.eventType,
    aggregateType: event.aggregateType,
    aggregateId: event.aggregateId,
    aggregateVersion: event.aggregateVersion,
    parkedAt: new Date(now),
    attempts: failure?.attempts ?? 0,
    firstAttemptAt: failure === undefined ? undefined : new Date(now - Duration.toMillis(failure.since)),
    lastAttemptAt: failure === undefined ? undefined : new Date(now),
    errorTag: failure?.errorTag,
    errorMessage: failure === undefined ? undefined : haltError(failure.errorMessage),
    request: undefined,
    requestedAt: undefined,
    requestedBy: undefined
  }))
  const { all, inserted } = yield* modify(world, projection, (before) => {
    const parked = new Set(before.map(({ position }) => position))
    const inserted = added.filter(({ position }) => !parked.has(position))
    const all = [...before, ...inserted].sort((a, b) => a.position < b.position ? -1 : 1)
    return [{ all, inserted }, all]
  })
  const counted = { keys: new Set(all.map(({ key }) => key)).size, events: all.length }
  if (counted.keys > limits.keys || counted.events > limits.events) {
    return yield* new ParkingLimitReached({ projection, ...counted, limits })
  }
  return inserted.map(({ keyHash }) => keyHash)
})

const remove = (world: MemoryWorld, { projection }: Held, { position, request }: Parameters<Store["remove"]>[1]) =>
  modify(world, projection, (events) => {
    const after = events.filter((event) => event.position !== position || event.request !== request)
    return [after.length < events.length, after]
  })

const recordFailure = Effect.fnUntraced(function*(
  world: MemoryWorld,
  { projection }: Held,
  { errorMessage, errorTag, position }: Parameters<Store["recordFailure"]>[1]
) {
  const now = new Date(yield* world.now)
  yield* modify(world, projection, (events) => {
    const failed = events.find((event) => event.position === position)
    return [
      undefined,
      events.map((event) =>
        event === failed
          ? {
            ...withoutRetry(event),
            attempts: event.attempts + 1,
            firstAttemptAt: event.firstAttemptAt ?? now,
            lastAttemptAt: now,
            errorTag,
            errorMessage: haltError(errorMessage)
          }
          : event.key === failed?.key
          ? withoutRetry(event)
          : event
      )
    ]
  })
})

const withoutRetry = (event: ParkedEvent.ParkedEvent): ParkedEvent.ParkedEvent =>
  event.request === "retry" ? { ...event, request: undefined, requestedAt: undefined, requestedBy: undefined } : event

const isSkipRequested = Effect.fnUntraced(function*(world: MemoryWorld, held: Held, eventId: string) {
  const ref = world.rows.get(key(held))
  const row = ref === undefined ? undefined : yield* TxRef.get(ref)
  return row !== undefined && isHeldAs(row, held) && row.halt?.eventId === eventId && row.halt.request === "skip"
})

const list = (
  world: MemoryWorld,
  projection: string,
  { after = -1n, limit }: NonNullable<Parameters<Store["list"]>[1]> = {}
) => committed(world, projection).filter(({ position }) => position > after).slice(0, limit)

const request = Effect.fnUntraced(function*(
  world: MemoryWorld,
  projection: string,
  { dryRun = false, request, requestedBy, selection }: Parameters<Store["request"]>[1]
) {
  const requestedAt = new Date(yield* world.now)
  return yield* modify(world, projection, (events) => {
    const selected = new Set(ParkedEvent.select(events, selection, request))
    if (dryRun) return [[...selected], events]
    const after = events.map((event) => selected.has(event) ? { ...event, request, requestedAt, requestedBy } : event)
    return [after.filter((_, index) => selected.has(events[index]!)), after]
  })
})

const requestOnHalt = Effect.fnUntraced(function*(
  world: MemoryWorld,
  projection: string,
  { eventId, request }: Parameters<Store["requestOnHalt"]>[1]
) {
  // Several ranges may be halted at one event, if the key of the event cannot be read.
  let isHalted = false
  for (const ref of world.rows.values()) {
    const row = yield* TxRef.get(ref)
    if (row?.projection !== projection || row.halt?.eventId !== eventId) continue
    yield* TxRef.set(ref, { ...row, halt: { ...row.halt, request } })
    isHalted = true
  }
  return isHalted
})
