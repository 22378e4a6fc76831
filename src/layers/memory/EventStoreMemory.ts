/** The event store in memory. Events become visible in position order, so every visible event is settled. */
import * as Effect from "effect/Effect"
import * as HashMap from "effect/HashMap"
import * as HashSet from "effect/HashSet"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Result from "effect/Result"
import * as TxRef from "effect/TxRef"
import * as Append from "../../schema/Append.ts"
import { CheckpointAheadOfEvents, ConcurrencyConflict, DuplicateEvent } from "../../schema/Errors.ts"
import {
  type Appended,
  dateOfMicros,
  type Event,
  type ExpectedVersion,
  type NewEvent,
  type StreamId
} from "../../schema/Event.ts"
import * as EventFilter from "../../schema/EventFilter.ts"
import { sizeOf } from "../../schema/EventSize.ts"
import * as HashRange from "../../schema/HashRange.ts"
import * as PageWindow from "../../schema/PageWindow.ts"
import * as PartitionKey from "../../schema/PartitionKey.ts"
import * as Uuid from "../../schema/Uuid.ts"
import * as AppendDefaults from "../../services/AppendDefaults.ts"
import type { AppendOptions, Page, ReadOptions } from "../../services/EventStore.ts"
import { EventStore } from "../../services/EventStore.ts"
import type { Handle, Log, LogPart, MemoryWorld } from "./MemoryWorld.ts"
import { hash } from "./MemoryWorld.ts"

const streamKey = (stream: StreamId): string =>
  JSON.stringify([stream.boundedContext, stream.aggregateType, stream.aggregateId])

/** Copies a stored event, so that a reader can change its values without changing the store. */
const copyOf = (event: Event): Event => ({
  ...event,
  payload: event.payload.slice(),
  metadata: event.metadataText === null ? null : JSON.parse(event.metadataText),
  createdAt: dateOfMicros(event.createdAtMicros)
})

/** The store of one process. */
interface Store {
  readonly world: MemoryWorld
  /** The committed log as an array, extended as the log grows. The log itself is a list with the newest part first. */
  readonly committed: { newest: LogPart | undefined; readonly events: Array<Event> }
}

/**
 * The event store for the process of `handle`.
 *
 * An append inside `Effect.tx` joins that transaction: others can read the events after it commits. Appends of other
 * transactions make it run again, because positions are assigned in commit order.
 */
export const make = ({ reach, world }: Handle): EventStore["Service"] => {
  const store: Store = { world, committed: { newest: undefined, events: [] } }
  const settledPosition = reach(Effect.sync(() => lastPosition(world)))
  return EventStore.of({
    append: (events, options) =>
      AppendDefaults.run(
        events,
        (defaults) => reach(append(world, events, { ...options, defaults }))
      ),
    readStream: (stream, options) => reach(readStream(world, stream, options)),
    read: (options) => reach(read(store, options)),
    // Reads and writes always reach the same world.
    endEpoch: () => Effect.void,
    settledPosition,
    positionBefore: (fromMicros) => reach(Effect.sync(() => positionBefore(store, fromMicros))),
    settledBeyond: (position) => reach(settledBeyond(world, position)),
    headPosition: settledPosition,
    openWriters: Effect.succeed([])
  })
}

const append = Effect.fnUntraced(function*(
  world: MemoryWorld,
  events: ReadonlyArray<NewEvent>,
  { defaults, expectedVersion = "any", onDuplicate }: AppendOptions & { readonly defaults: Append.Defaults }
) {
  const validated = yield* Effect.fromResult(Append.validate(events, defaults))
  if (onDuplicate === "return") yield* Effect.fromResult(Append.checkIds(validated))
  const { rows, stream } = validated
  const now = yield* world.now
  const ids = yield* Effect.forEach(
    rows,
    (row) => row.eventId === undefined ? drawId(now) : Effect.succeed(row.eventId)
  )
  const outcome = yield* TxRef.modify(world.log, (log): [Outcome, Log] => {
    const conflict = conflictOf(log, { stream, ids, expected: expectedVersion })
    if (conflict === undefined) return appendTo(log, { stream, rows, ids, now })
    const original = onDuplicate === "return" ? Append.original(stream, storedIn(log, stream, ids)) : undefined
    return [original === undefined ? Result.fail(conflict) : Result.succeed(original), log]
  })
  return yield* Effect.fromResult(outcome)
})

type Outcome = Result.Result<Appended, ConcurrencyConflict | DuplicateEvent>

const drawId = Effect.fnUntraced(function*(millis: number) {
  return Uuid.v7(millis, [yield* Random.next, yield* Random.next, yield* Random.next])
})

const eventsOf = (log: Log, stream: StreamId): ReadonlyArray<Event> =>
  Option.getOrElse(HashMap.get(log.streams, streamKey(stream)), () => [])

/** Returns the versions and positions of the stream's events with these ids. */
const storedIn = (log: Log, stream: StreamId, ids: ReadonlyArray<string>): ReadonlyArray<Append.Stored | undefined> => {
  const events = new Map(eventsOf(log, stream).map((event) => [event.eventId, event]))
  return ids.map((id) => {
    const event = events.get(id)
    return event && { version: event.aggregateVersion, position: event.globalPosition }
  })
}

/** Why nothing can be appended. The ids are checked first: they show that an earlier attempt was committed. */
const conflictOf = (log: Log, { expected, ids, stream }: {
  readonly stream: StreamId
  readonly ids: ReadonlyArray<string>
  readonly expected: ExpectedVersion
}): ConcurrencyConflict | DuplicateEvent | undefined => {
  const stored = ids.find((id) => HashSet.has(log.eventIds, id))
  if (stored !== undefined) return new DuplicateEvent({ detail: `event id ${stored}` })
  const actual = BigInt(eventsOf(log, stream).length)
  if (expected !== "any" && actual !== (expected === "none" ? 0n : expected)) {
    return new ConcurrencyConflict({ ...stream, expected: String(expected), actual })
  }
  const repeated = ids.find((id, index) => ids.indexOf(id) < index)
  return repeated === undefined ? undefined : new DuplicateEvent({ detail: `event id ${repeated}` })
}

const appendTo = (log: Log, { ids, now, rows, stream }: Append.Append & {
  readonly ids: ReadonlyArray<string>
  readonly now: number
}): [Outcome, Log] => {
  const before = eventsOf(log, stream)
  const added = rows.map((row, index): Event => {
    const createdAtMicros = row.createdAtMicros ?? BigInt(Math.floor(now)) * 1000n
    return {
      ...stream,
      ...row,
      eventId: ids[index]!,
      globalPosition: BigInt(log.length + index + 1),
      aggregateVersion: BigInt(before.length + index + 1),
      metadata: row.metadata === null ? null : JSON.parse(row.metadata) as unknown,
      metadataText: row.metadata,
      createdAt: dateOfMicros(createdAtMicros),
      createdAtMicros
    }
  })
  const appended: Appended = {
    stream,
    firstVersion: BigInt(before.length + 1),
    lastVersion: BigInt(before.length + added.length),
    positions: added.map((event) => event.globalPosition)
  }
  return [Result.succeed(appended), {
    newest: { events: added, before: log.newest },
    length: log.length + added.length,
    streams: HashMap.set(log.streams, streamKey(stream), [...before, ...added]),
    eventIds: HashSet.union(log.eventIds, HashSet.fromIterable(ids))
  }]
}

const readStream = Effect.fnUntraced(function*(
  world: MemoryWorld,
  stream: StreamId,
  options: Parameters<EventStore["Service"]["readStream"]>[1]
) {
  const events = eventsOf(yield* visibleLog(world), stream)
  const from = options?.from ?? 1n
  const to = options?.to ?? BigInt(events.length)
  const matching = events.filter((event) => from <= event.aggregateVersion && event.aggregateVersion <= to)
  return (options?.limit === undefined ? matching : matching.slice(0, Math.max(0, options.limit))).map(copyOf)
})

/**
 * The log, including what the caller's own transaction has appended. It is not read through the transaction, so that a
 * batch that reads does not run again after every append of another transaction.
 */
const visibleLog = (world: MemoryWorld): Effect.Effect<Log> =>
  Effect.map(
    Effect.serviceOption(Effect.Transaction),
    (transaction) =>
      Option.isSome(transaction)
        ? (transaction.value.journal.get(world.log)?.value as Log | undefined) ?? world.log.value
        : world.log.value
  )

const read = Effect.fnUntraced(function*({ committed, world }: Store, options: ReadOptions) {
  const { epoch } = world
  const last = lastPosition(world)
  yield* checkNotAhead(world, options.after)
  const upTo = options.upTo === undefined || options.upTo > last ? last : options.upTo
  const limits = PageWindow.pageLimits(options)
  const range = options.range ?? HashRange.whole
  const filter = options.filter ?? {}
  const partitionBy = options.partitionBy ?? PartitionKey.byDefault
  const all = committedEvents(world, committed)
  const events: Array<Event> = []
  const hashes: Array<number> = []
  const page = (position: bigint): Page => ({
    events,
    position,
    epoch,
    ...(options.hashes === true ? { hashes } : {})
  })
  let bytes = 0
  // Positions have no gaps and begin at 1: the event after position p is at index p.
  for (let index = Number(options.after); index < Number(upTo); index++) {
    const event = all[index]!
    if (!EventFilter.matches(filter, event)) continue
    const keyHash = hash(PartitionKey.of(partitionBy, event))
    if (!HashRange.includes(range, keyHash)) continue
    bytes += sizeOf(event)
    if (events.length > 0 && (events.length >= limits.events || bytes > limits.bytes)) {
      return page(events[events.length - 1]!.globalPosition)
    }
    events.push(copyOf(event))
    hashes.push(keyHash)
  }
  return page(upTo > options.after ? upTo : options.after)
})

const committedEvents = (world: MemoryWorld, committed: Store["committed"]): ReadonlyArray<Event> => {
  const parts: Array<LogPart> = []
  const { newest } = world.log.value
  let part = newest
  for (; part !== committed.newest && part !== undefined; part = part.before) parts.push(part)
  // The log no longer contains the part that was newest: the simulated server has lost its last commits.
  if (part === undefined) committed.events.length = 0
  for (const { events } of parts.reverse()) for (const event of events) committed.events.push(event)
  committed.newest = newest
  return committed.events
}

const positionBefore = ({ committed, world }: Store, fromMicros: bigint): bigint => {
  const first = committedEvents(world, committed).find((event) => event.createdAtMicros >= fromMicros)
  return first === undefined ? lastPosition(world) : first.globalPosition - 1n
}

const lastPosition = (world: MemoryWorld): bigint => BigInt(world.log.value.length)

const checkNotAhead = (world: MemoryWorld, position: bigint): Effect.Effect<void, CheckpointAheadOfEvents> =>
  position > lastPosition(world)
    ? Effect.fail(new CheckpointAheadOfEvents({ position, lastPosition: lastPosition(world) }))
    : Effect.void

/** Every commit wakes this transaction, so there is nothing to poll for. */
const settledBeyond = Effect.fnUntraced(function*(world: MemoryWorld, position: bigint) {
  yield* checkNotAhead(world, position)
  return yield* Effect.tx(
    Effect.flatMap(
      TxRef.get(world.log),
      (log) => BigInt(log.length) > position ? Effect.succeed(BigInt(log.length)) : Effect.txRetry
    )
  )
})
