/**
 * The read models beside the totals of the file.
 */
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import { type Route, routeKey, type Totals, type Traffic } from "./Flights.ts"

export interface Comparison {
  /** One line for each thing compared. */
  readonly compared: ReadonlyArray<string>
  readonly differences: ReadonlyArray<string>
}

export const compare = Effect.fnUntraced(function*(expected: Totals) {
  const sql = yield* SqlClient.SqlClient
  const airports = yield* sql<Traffic & { readonly airport: string }>`
    SELECT airport, departures, arrivals, total_delay AS "totalDelay", worst_delay AS "worstDelay",
      last_version::float8 AS "lastVersion"
    FROM airport_traffic`
  const routes = yield* sql<Route & { readonly origin: string; readonly destination: string }>`
    SELECT origin, destination, departures, arrivals, total_distance AS "totalDistance" FROM route_distance`
  const traffic = compareRows("airport_traffic", expected.airports, new Map(airports.map((row) => [row.airport, row])))
  const distances = compareRows(
    "route_distance",
    expected.routes,
    new Map(routes.map((row) => [routeKey(row.origin, row.destination), row]))
  )
  return {
    compared: [...traffic.compared, ...distances.compared],
    differences: [...traffic.differences, ...distances.differences]
  } satisfies Comparison as Comparison
})

/** Every field of every row, and that there is no other row. */
const compareRows = <A extends object>(
  table: string,
  expected: ReadonlyMap<string, A>,
  found: ReadonlyMap<string, A>
): Comparison => {
  const fields = Object.keys([...expected.values()][0] ?? {}) as Array<keyof A & string>
  const differences: Array<string> = []
  let values = 0
  for (const [key, wanted] of expected) {
    const row = found.get(key)
    for (const field of fields) {
      values++
      if (row?.[field] === wanted[field]) continue
      differences.push(`${table}, ${key}: ${field} is ${row?.[field] ?? "missing"}, the file contains ${wanted[field]}`)
    }
  }
  for (const key of found.keys()) {
    if (!expected.has(key)) differences.push(`${table}, ${key}: the file contains no such row`)
  }
  const sums = fields.map((field) =>
    `${field} ${[...expected.values()].reduce((sum, row) => sum + Number(row[field]), 0).toLocaleString("en-US")}`
  )
  return {
    compared: [
      `${table}: ${expected.size.toLocaleString("en-US")} rows, ${values.toLocaleString("en-US")} values (sums: ${
        sums.join(", ")
      })`
    ],
    differences
  }
}
