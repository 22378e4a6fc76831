/**
 * Mechanisms that can be removed from the library's statements on their way to PostgreSQL, to show that the checkers
 * detect their absence. `test/mutations` covers all mechanisms, one by one.
 */
import type { Rewrite } from "./SimulatedWorker.ts"

export const mutations: Readonly<Record<string, Rewrite>> = {
  // The parameters stay, because PostgreSQL refuses a statement that does not use them.
  "neither fence nor position checked": ({ text }) =>
    text.replace(/AND c\.worker_id = (\$\d+)/, "AND $1::text IS NOT NULL")
      .replace(/AND c\.incarnation = (\$\d+)::bigint/, "AND $1::bigint IS NOT NULL")
      .replace(/AND c\.generation_id = (\$\d+)::bigint/, "AND $1::bigint IS NOT NULL")
      .replace(/AND c\.position = (\$\d+)::bigint/, "AND $1::bigint IS NOT NULL"),
  "decisions not one at a time": ({ text }) => text.replace("pg_advisory_xact_lock(", "num_nulls("),
  // Finds no holders of positions that are not visible yet.
  "open writers not waited for": ({ text }) => text.replace("l.mode = 'RowExclusiveLock'", "l.mode IS NULL")
}
