/**
 * The event store in memory. Events become visible in position order, so every visible event is settled.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as HashMap from "effect/HashMap"
import * as HashSet from "effect/HashSet"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Result from "effect/Result"
import * as TxRef from "effect/TxRef"
import * as Append from "../../schema/Append.ts"
import {
  CheckpointAheadOfEvents,
  ConcurrencyConflict,
  DatabaseUnavailable,
  DuplicateEvent
} from "../../schema/Errors.ts"
import {
  type Appended,
  dateOfMicros,
  type Event,
  type ExpectedVersion,
  type NewEvent,
  type StreamId
} from "../../schema/Event.ts"
import * as EventFilter from "../../schema/EventFilter.ts"
import * as HashRange from "../../schema/HashRange.ts"
import * as Uuid from "../../schema/Uuid.ts"
import type { Page, ReadOptions, ServerEpoch } from "../../services/EventStore.ts"
import { EventStore } from "../../services/EventStore.ts"
import type { Handle, Log, LogPart } from "./MemoryWorld.ts"
import { hash } from "./MemoryWorld.ts"

const defaultLimit = 1000
const defaultBytes = 4 * 1024 * 1024

const otherLife = new DatabaseUnavailable({
  reason: "connection lost",
  server: "memory",
  database: "memory",
  user: "memory",
  cause: new Error("It was read in another epoch of this world")
})

const streamKey = (stream: StreamId): string =>
  JSON.stringify([stream.boundedContext, stream.aggregateType, stream.aggregateId])

const encoder = new TextEncoder()

const sizeOf = (event: Event): number =>
  event.payload.length + (event.metadataText === null ? 0 : encoder.encode(event.metadataText).length)

/** Copies a stored event, so that a reader can change its values without changing the store. */
const copyOf = (event: Event): Event => ({
  ...event,
  payload: event.payload.slice(),
  metadata: event.metadataText === null ? null : JSON.parse(event.metadataText),
  createdAt: dateOfMicros(event.createdAtMicros)
})

/**
 * The event store for the process of `handle`.
 *
 * An append inside `Effect.tx` joins that transaction: others can read the events after it commits. Appends of other
 * transactions make it run again, because positions are assigned in commit order.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (handle: Handle): EventStore["Service"] => {
  const { reach, world } = handle

  // The committed log as an array, extended as the log grows. The log itself is a list with the newest part first.
  const seen: { newest: LogPart | undefined; readonly events: Array<Event> } = { newest: undefined, events: [] }
  const committedEvents = (): ReadonlyArray<Event> => {
    const parts: Array<LogPart> = []
    const newest = world.log.value.newest
    for (let part = newest; part !== seen.newest && part !== undefined; part = part.before) parts.push(part)
    for (const part of parts.reverse()) for (const event of part.events) seen.events.push(event)
    seen.newest = newest
    return seen.events
  }

  /**
   * The log, including what the caller's own transaction has appended. It is not read through the transaction, so that
   * a batch that reads does not run again after every append of another transaction.
   */
  const visibleLog: Effect.Effect<Log> = Effect.map(
    Effect.serviceOption(Effect.Transaction),
    (transaction) =>
      Option.isSome(transaction)
        ? (transaction.value.journal.get(world.log)?.value as Log | undefined) ?? world.log.value
        : world.log.value
  )

  const drawId = Effect.fnUntraced(function*(millis: number) {
    return Uuid.v7(millis, [yield* Random.next, yield* Random.next, yield* Random.next])
  })

  const append = Effect.fnUntraced(function*(
    events: ReadonlyArray<NewEvent>,
    options?: { readonly expectedVersion?: ExpectedVersion | undefined }
  ) {
    const { rows, stream } = yield* Effect.fromResult(Append.validate(events))
    const now = yield* world.now
    const ids = yield* Effect.forEach(
      rows,
      (row) => row.eventId === undefined ? drawId(now) : Effect.succeed(row.eventId)
    )
    const expected = options?.expectedVersion ?? "any"
    const key = streamKey(stream)

    type Outcome = Result.Result<Appended, ConcurrencyConflict | DuplicateEvent>
    const outcome = yield* TxRef.modify(world.log, (log): [Outcome, Log] => {
      const before = Option.getOrElse(HashMap.get(log.streams, key), (): ReadonlyArray<Event> => [])
      const version = BigInt(before.length)
      // The ids are checked before the version, because they show that an earlier attempt was committed.
      const stored = ids.find((id) => HashSet.has(log.eventIds, id))
      if (stored !== undefined) return [Result.fail(new DuplicateEvent({ detail: `event id ${stored}` })), log]
      if (expected !== "any" && version !== (expected === "none" ? 0n : expected)) {
        return [
          Result.fail(new ConcurrencyConflict({ ...stream, expected: String(expected), actual: version })),
          log
        ]
      }
      let eventIds = log.eventIds
      const added: Array<Event> = []
      for (const [index, row] of rows.entries()) {
        const eventId = ids[index]!
        if (HashSet.has(eventIds, eventId)) {
          return [Result.fail(new DuplicateEvent({ detail: `event id ${eventId}` })), log]
        }
        eventIds = HashSet.add(eventIds, eventId)
        const createdAtMicros = row.createdAtMicros ?? BigInt(Math.floor(now)) * 1000n
        added.push({
          ...stream,
          ...row,
          eventId,
          globalPosition: BigInt(log.length + index + 1),
          aggregateVersion: version + BigInt(index + 1),
          metadata: row.metadata === null ? null : JSON.parse(row.metadata) as unknown,
          metadataText: row.metadata,
          createdAt: dateOfMicros(createdAtMicros),
          createdAtMicros
        })
      }
      const appended: Appended = {
        stream,
        firstVersion: version + 1n,
        lastVersion: version + BigInt(added.length),
        positions: added.map((event) => event.globalPosition)
      }
      return [Result.succeed(appended), {
        newest: { events: added, before: log.newest },
        length: log.length + added.length,
        streams: HashMap.set(log.streams, key, [...before, ...added]),
        eventIds
      }]
    })
    return yield* Effect.fromResult(outcome)
  })

  const readStream = Effect.fnUntraced(function*(
    stream: StreamId,
    options?: {
      readonly from?: bigint | undefined
      readonly to?: bigint | undefined
      readonly limit?: number | undefined
    }
  ) {
    const log = yield* visibleLog
    const events = Option.getOrElse(HashMap.get(log.streams, streamKey(stream)), (): ReadonlyArray<Event> => [])
    const from = options?.from ?? 1n
    const to = options?.to ?? BigInt(events.length)
    const matching = events.filter((event) => from <= event.aggregateVersion && event.aggregateVersion <= to)
    return (options?.limit === undefined ? matching : matching.slice(0, Math.max(0, options.limit))).map(copyOf)
  })

  const settled = Effect.sync(() => BigInt(world.log.value.length))

  const refuseAhead = (position: bigint, lastPosition: bigint) =>
    position > lastPosition ? Effect.fail(new CheckpointAheadOfEvents({ position, lastPosition })) : Effect.void

  const refuseOver = (epoch: ServerEpoch | undefined) =>
    epoch === undefined || epoch === world.epoch ? Effect.void : Effect.fail(otherLife)

  const read = Effect.fnUntraced(function*(options: ReadOptions) {
    const last = yield* settled
    const { epoch } = world
    yield* refuseOver(options.epoch)
    yield* refuseAhead(options.after, last)
    const upTo = options.upTo === undefined || options.upTo > last ? last : options.upTo
    const limit = Math.max(1, options.limit ?? defaultLimit)
    const budget = options.bytes ?? defaultBytes
    const range = options.range ?? HashRange.whole
    const filter = options.filter ?? {}
    const all = committedEvents()
    const events: Array<Event> = []
    let bytes = 0
    // Positions have no gaps and begin at 1: the event after position p is at index p.
    for (let index = Number(options.after); index < Number(upTo); index++) {
      const event = all[index]!
      if (!EventFilter.matches(filter, event) || !HashRange.includes(range, hash(event.aggregateId))) continue
      bytes += sizeOf(event)
      if (events.length > 0 && (events.length >= limit || bytes > budget)) {
        return { events, position: events[events.length - 1]!.globalPosition, epoch } satisfies Page
      }
      events.push(copyOf(event))
    }
    return { events, position: upTo > options.after ? upTo : options.after, epoch } satisfies Page
  })

  // Every commit wakes this transaction, so there is nothing to poll for.
  const settledBeyond = Effect.fnUntraced(function*(position: bigint) {
    yield* refuseAhead(position, yield* settled)
    return yield* Effect.tx(
      Effect.flatMap(
        TxRef.get(world.log),
        (log) => BigInt(log.length) > position ? Effect.succeed(BigInt(log.length)) : Effect.txRetry
      )
    )
  })

  return EventStore.of({
    append: (events, options) => reach(append(events, options)),
    readStream: (stream, options) => reach(readStream(stream, options)),
    read: (options) => reach(read(options)),
    settledPosition: reach(settled),
    settledBeyond: (position) => reach(settledBeyond(position)),
    headPosition: reach(settled),
    openWriters: Effect.succeed([])
  })
}
