/** Helpers of faults that act on the sessions of workers. */
import * as Effect from "effect/Effect"
import { Driver } from "../Driver.ts"

/** Terminates this many random sessions of workers, from their pools or the library's own; all of them by default. */
export const terminate = Effect.fnUntraced(function*(count = 10_000) {
  const { admin } = yield* Driver
  yield* admin`
    SELECT pg_terminate_backend(pid) FROM (
      SELECT pid FROM pg_stat_activity
      WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND (application_name LIKE 'pupsourcing-orchestrator %' OR application_name LIKE 'faults w%')
      ORDER BY random() LIMIT ${count}
    ) AS sessions`
})

/**
 * Changes a setting of the database until the scope closes. Sessions read it when they start, so the workers' sessions
 * are terminated before and after. The statements set READ WRITE, because the setting may forbid writes.
 */
export const withSetting = Effect.fnUntraced(function*(name: string, value: string) {
  const { admin } = yield* Driver
  const change = (what: string) =>
    admin.withTransaction(
      admin`SET TRANSACTION READ WRITE`.pipe(
        Effect.andThen(admin`SELECT current_database() AS name`),
        Effect.flatMap(([row]) => admin.unsafe(`ALTER DATABASE "${String(row?.["name"])}" ${what}`))
      )
    )
  yield* Effect.acquireRelease(
    Effect.andThen(change(`SET ${name} = ${value}`), terminate()),
    () => Effect.orDie(Effect.andThen(change(`RESET ${name}`), terminate()))
  )
})
