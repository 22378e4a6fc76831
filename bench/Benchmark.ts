/** A benchmark: what `npm run bench` runs, prints and records. Each is one module in `benchmarks`, listed in `Registry.ts`. */
import type { PgClient } from "@effect/sql-pg"
import { type Cause, Context, type Effect, type Redacted, type Scope } from "effect"
import type { SqlClient } from "effect/sql"
import type { Measure } from "./Measure.ts"
import type { Plot } from "./Plot.ts"

/** The server and the database that a benchmark measures. The database is its own, migrated and empty, and dropped afterwards. */
export class Target extends Context.Service<Target, {
  /** The database of this benchmark. */
  readonly url: Redacted.Redacted
  /** How many times each alternative is measured. Odd, so that a median is a measured value. */
  readonly rounds: number
  /** The embedded server; absent if `DATABASE_URL` names another one, whose processes and log are out of reach. */
  readonly embedded: { readonly pid: number; readonly log: string } | undefined
}>()("bench/Target") {}

export interface Table {
  readonly title: string
  /** Markdown above the table. */
  readonly text?: string | undefined
  readonly header: ReadonlyArray<string>
  readonly rows: ReadonlyArray<ReadonlyArray<string | number>>
}

export interface Result {
  /** How it was measured, in Markdown: numbers of events, versions, what one round does. */
  readonly text: string
  readonly measures: ReadonlyArray<Measure>
  readonly tables?: ReadonlyArray<Table> | undefined
  readonly plot?: Plot | undefined
}

export interface Benchmark {
  /** Its name on the command line and of its page; lower case, with dashes. */
  readonly name: string
  readonly title: string
  /** What it shows, in one line. */
  readonly summary: string
  /** Runs only if it is named. */
  readonly isLong: boolean
  /** The client is one of the benchmark's database; it is closed after the scope. */
  readonly run: Effect.Effect<Result, unknown, Target | Scope.Scope | SqlClient.SqlClient | PgClient.PgClient>
}

export const make = (
  options: Omit<Benchmark, "isLong"> & { readonly isLong?: boolean | undefined }
): Benchmark => ({ ...options, isLong: options.isLong ?? false })

/** How a benchmark ended. */
export interface Outcome {
  readonly benchmark: Benchmark
  readonly result: Result | undefined
  readonly cause: Cause.Cause<unknown> | undefined
}
