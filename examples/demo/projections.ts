/**
 * The two read models.
 */
import { Effect, Schema } from "effect"
import { SqlClient } from "effect/sql"
import { Event, Projection } from "pupsourcing-orchestrator"
import { aggregateType, FlightArrived, FlightDeparted } from "./Flights.ts"

export const names = ["airport_traffic", "route_distance"] as const
export const replicaSet = "flights"

export const tables = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`
    CREATE TABLE airport_traffic (
      airport text PRIMARY KEY,
      departures int NOT NULL,
      arrivals int NOT NULL,
      total_delay int NOT NULL,
      worst_delay int NOT NULL,
      last_version bigint NOT NULL
    )`
  yield* sql`
    CREATE TABLE route_distance (
      origin text,
      destination text,
      departures int NOT NULL,
      arrivals int NOT NULL,
      total_distance int NOT NULL,
      PRIMARY KEY (origin, destination)
    )`
})

/** The version of an event is not the next one of its airport: an event was skipped, repeated or out of order. */
export class OutOfOrder extends Schema.TaggedError<OutOfOrder>()("OutOfOrder", {
  airport: Schema.String,
  version: Schema.BigInt
}) {
  override get message(): string {
    return `Version ${this.version} of ${this.airport} is not the next one.`
  }
}

/** Returns the flight of an event, which belongs to the stream of its origin or of its destination. */
const flightOf = Effect.fnUntraced(function*(event: Event.Event) {
  if (event.eventType === "FlightDeparted") {
    const flight = yield* Event.json(event, FlightDeparted)
    return { ...flight, origin: event.aggregateId, departures: 1, arrivals: 0 }
  }
  const flight = yield* Event.json(event, FlightArrived)
  return { ...flight, destination: event.aggregateId, departures: 0, arrivals: 1 }
})

/**
 * One row per airport, which only events of this airport write. Accepts only the next version: an event that is
 * skipped, repeated or out of order halts the range.
 */
export const airportTraffic = Projection.make("airport_traffic", {
  aggregateTypes: [aggregateType],
  handle: Effect.fnUntraced(function*(event) {
    const sql = yield* SqlClient.SqlClient
    const { arrivals, delay, departures } = yield* flightOf(event)
    const airport = event.aggregateId
    const version = event.aggregateVersion
    const written = version === 1n
      ? yield* sql`
        INSERT INTO airport_traffic (airport, departures, arrivals, total_delay, worst_delay, last_version)
        VALUES (${airport}, ${departures}, ${arrivals}, ${delay}, ${delay}, ${version})
        ON CONFLICT DO NOTHING RETURNING airport`
      : yield* sql`
        UPDATE airport_traffic SET
          departures = departures + ${departures}, arrivals = arrivals + ${arrivals},
          total_delay = total_delay + ${delay}, worst_delay = greatest(worst_delay, ${delay}),
          last_version = ${version}
        WHERE airport = ${airport} AND last_version = ${version - 1n} RETURNING airport`
    if (written.length === 0) return yield* new OutOfOrder({ airport, version })
  })
})

interface Increment {
  readonly origin: string
  readonly destination: string
  departures: number
  arrivals: number
  distance: number
}

/**
 * One row per route. Events of two airports write it, so it is written with SQL arithmetic. The increments of a batch
 * are written with one statement, sorted by key: transactions that lock rows in the same order cannot deadlock.
 */
export const routeDistance = Projection.make("route_distance", {
  aggregateTypes: [aggregateType],
  handleBatch: Effect.fnUntraced(function*(events) {
    const routes = new Map<string, Increment>()
    for (const event of events) {
      const { arrivals, departures, destination, distance, origin } = yield* flightOf(event).pipe(
        Effect.catch((error) => Projection.failAt(event, error))
      )
      const key = `${origin} ${destination}`
      const increment = routes.get(key) ?? { origin, destination, departures: 0, arrivals: 0, distance: 0 }
      increment.departures += departures
      increment.arrivals += arrivals
      // Only the departure adds the distance, so that it is counted once per flight.
      increment.distance += departures * distance
      routes.set(key, increment)
    }
    yield* add([...routes.values()])
  })
})

const add = Effect.fnUntraced(function*(increments: ReadonlyArray<Increment>) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`
    INSERT INTO route_distance AS r (origin, destination, departures, arrivals, total_distance)
    SELECT * FROM unnest(
      ${increments.map(({ origin }) => origin)}::text[],
      ${increments.map(({ destination }) => destination)}::text[],
      ${increments.map(({ departures }) => departures)}::int[],
      ${increments.map(({ arrivals }) => arrivals)}::int[],
      ${increments.map(({ distance }) => distance)}::int[]
    ) AS i (origin, destination, departures, arrivals, distance)
    ORDER BY origin, destination
    ON CONFLICT (origin, destination) DO UPDATE SET
      departures = r.departures + excluded.departures,
      arrivals = r.arrivals + excluded.arrivals,
      total_distance = r.total_distance + excluded.total_distance`
})
