/**
 * The data: 20,000 flights within the United States in early 2001, from the npm package `vega-datasets`. Their source
 * is the Bureau of Transportation Statistics (BTS).
 */
import { Effect, Schema } from "effect"
import * as Fs from "node:fs/promises"
import { DemoFailed } from "./DemoFailed.ts"

export const source = "flights-20k.json of the npm package vega-datasets (source: Bureau of Transportation Statistics)"

export const boundedContext = "flights"
export const aggregateType = "Airport"

/** Delays in minutes, negative when early; distances in miles. */
export const Flight = Schema.Struct({
  date: Schema.String,
  delay: Schema.Int,
  distance: Schema.Int,
  origin: Schema.String,
  destination: Schema.String
})
export type Flight = typeof Flight.Type

/** A flight, as an event of its origin. */
export const FlightDeparted = Schema.Struct({
  date: Schema.String,
  destination: Schema.String,
  delay: Schema.Int,
  distance: Schema.Int
})

/** A flight, as an event of its destination. */
export const FlightArrived = Schema.Struct({
  date: Schema.String,
  origin: Schema.String,
  delay: Schema.Int,
  distance: Schema.Int
})

/** All flights in the order of their dates. */
export const load = Effect.gen(function*() {
  const file = new URL("../data/flights-20k.json", import.meta.resolve("vega-datasets"))
  const text = yield* Effect.tryPromise({
    try: () => Fs.readFile(file, "utf8"),
    catch: (cause) => new DemoFailed({ problem: `${file.pathname} cannot be read (${String(cause)}). Run npm ci.` })
  })
  const flights = yield* Schema.decodeEffect(Schema.fromJsonString(Schema.Array(Flight)))(text)
  return [...flights].sort((a, b) => a.date < b.date ? -1 : a.date > b.date ? 1 : 0)
})

export interface Traffic {
  readonly departures: number
  readonly arrivals: number
  readonly totalDelay: number
  readonly worstDelay: number
  readonly lastVersion: number
}

export interface Route {
  readonly departures: number
  readonly arrivals: number
  readonly totalDistance: number
}

export interface Totals {
  readonly airports: ReadonlyMap<string, Traffic>
  readonly routes: ReadonlyMap<string, Route>
}

export const routeKey = (origin: string, destination: string): string => `${origin} → ${destination}`

/** What the read models must contain in the end, computed from the file without the events. */
export const totals = (flights: ReadonlyArray<Flight>): Totals => {
  const airports = new Map<string, Traffic>()
  const routes = new Map<string, Route>()
  const visit = (airport: string, delay: number, departures: number, arrivals: number) => {
    const before = airports.get(airport)
    airports.set(airport, {
      departures: (before?.departures ?? 0) + departures,
      arrivals: (before?.arrivals ?? 0) + arrivals,
      totalDelay: (before?.totalDelay ?? 0) + delay,
      worstDelay: Math.max(before?.worstDelay ?? delay, delay),
      lastVersion: (before?.lastVersion ?? 0) + 1
    })
  }
  for (const { delay, destination, distance, origin } of flights) {
    visit(origin, delay, 1, 0)
    visit(destination, delay, 0, 1)
    const key = routeKey(origin, destination)
    const before = routes.get(key)
    routes.set(key, {
      departures: (before?.departures ?? 0) + 1,
      arrivals: (before?.arrivals ?? 0) + 1,
      totalDistance: (before?.totalDistance ?? 0) + distance
    })
  }
  return { airports, routes }
}
