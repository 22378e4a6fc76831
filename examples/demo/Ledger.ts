/**
 * Which events were appended at which positions. Together with the positions of the checkpoints, this determines what each
 * worker has handled and has still to handle, without counting in the database.
 */
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import { type Event, EventStore, HashRange } from "pupsourcing-orchestrator"
import { aggregateType, boundedContext, type Flight } from "./Flights.ts"
import type { Range, Snapshot } from "./Snapshot.ts"

interface Airport {
  readonly hash: number
  /** The number of its events in the end. */
  readonly total: number
  /** Positions of its events so far, in ascending order. */
  readonly positions: Array<number>
}

/** What one worker, or all workers together, have still to handle for one projection. */
export interface ToCome {
  /** Appended and not handled. */
  readonly waiting: number
  readonly notAppended: number
}

export interface Ledger {
  readonly total: number
  readonly appended: () => number
  /** Appends all flights, chunk after chunk, each when `mayAppend` allows. */
  readonly appendAll: (
    flights: ReadonlyArray<Flight>,
    mayAppend: Effect.Effect<unknown>
  ) => ReturnType<typeof appendAll>
  /** Events of a projection at or below the positions of its rows. */
  readonly handled: (snapshot: Snapshot, projection: string) => number
  readonly toCome: (ranges: ReadonlyArray<Range>) => ToCome
  /** Events that the range has passed on its way from one position to another. */
  readonly between: (range: Range, from: number, to: number) => number
}

/** Flights appended together. */
const chunkSize = 100
const concurrency = 8

const makeAirports = Effect.fnUntraced(function*(flights: ReadonlyArray<Flight>) {
  const sql = yield* SqlClient.SqlClient
  const counts = new Map<string, number>()
  for (const airport of flights.flatMap(({ destination, origin }) => [origin, destination])) {
    counts.set(airport, (counts.get(airport) ?? 0) + 1)
  }
  const hashes = yield* sql<{ readonly airport: string; readonly hash: number }>`
    SELECT airport, (hashtext(airport COLLATE "C")::int8 & 4294967295)::float8 AS hash
    FROM unnest(${[...counts.keys()]}::text[]) AS a (airport)`
  return new Map(hashes.map(({ airport, hash }): [string, Airport] => [
    airport,
    { hash, total: counts.get(airport) ?? 0, positions: [] }
  ]))
})

export const make = Effect.fnUntraced(function*(flights: ReadonlyArray<Flight>) {
  const airports = yield* makeAirports(flights)
  const total = flights.length * 2
  let appended = 0

  const within = (range: Range) => [...airports.values()].filter(({ hash }) => HashRange.includes(range, hash))
  const sum = (numbers: ReadonlyArray<number>) => numbers.reduce((a, b) => a + b, 0)
  const between: Ledger["between"] = (range, from, to) =>
    sum(within(range).map(({ positions }) => countUpTo(positions, to) - countUpTo(positions, from)))

  return {
    total,
    appended: () => appended,
    appendAll: (flights, mayAppend) =>
      appendAll(flights, mayAppend, airports, (count) => {
        appended += count
      }),
    handled: (snapshot, projection) =>
      sum(
        snapshot.ranges.filter((range) => range.projection === projection).map((range) =>
          between(range, 0, range.position)
        )
      ),
    toCome: (ranges) => ({
      waiting: sum(ranges.map((range) => between(range, range.position, Number.MAX_SAFE_INTEGER))),
      notAppended: sum(ranges.flatMap(within).map(({ positions, total }) => total - positions.length))
    }),
    between
  } satisfies Ledger as Ledger
})

const appendAll = Effect.fnUntraced(function*(
  flights: ReadonlyArray<Flight>,
  mayAppend: Effect.Effect<unknown>,
  airports: ReadonlyMap<string, Airport>,
  onAppended: (count: number) => void
) {
  const events = yield* EventStore.EventStore
  for (let start = 0; start < flights.length; start += chunkSize) {
    yield* mayAppend
    const streams = new Map<string, Array<Pick<Event.NewEvent, "eventType" | "payload">>>()
    const happened = (airport: string, eventType: string, payload: unknown) =>
      streams.set(airport, [...(streams.get(airport) ?? []), { eventType, payload }])
    for (const { date, delay, destination, distance, origin } of flights.slice(start, start + chunkSize)) {
      happened(origin, "FlightDeparted", { date, destination, delay, distance })
      happened(destination, "FlightArrived", { date, origin, delay, distance })
    }
    // Each airport occurs once in a chunk, and chunks are appended one after another, so its events stay in order.
    yield* Effect.forEach(
      streams,
      Effect.fnUntraced(function*([airport, stream]) {
        const known = airports.get(airport)
        if (known === undefined) return
        const { positions } = yield* events.append(
          stream.map(({ eventType, payload }) => ({
            boundedContext,
            aggregateType,
            aggregateId: airport,
            eventType,
            payload
          })),
          { expectedVersion: known.positions.length === 0 ? "none" : BigInt(known.positions.length) }
        )
        known.positions.push(...positions.map(Number))
        onAppended(positions.length)
      }),
      { concurrency, discard: true }
    )
  }
})

/** How many of the growing numbers are at or below the limit. */
const countUpTo = (numbers: ReadonlyArray<number>, limit: number): number => {
  let low = 0
  let high = numbers.length
  while (low < high) {
    const middle = (low + high) >> 1
    if ((numbers[middle] ?? Infinity) <= limit) low = middle + 1
    else high = middle
  }
  return low
}
