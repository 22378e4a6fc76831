/**
 * What faults do to the sessions of workers.
 */
import * as Effect from "effect/Effect"
import { Driver } from "../Driver.ts"

/** Ends so many sessions of workers at random, of their pools or the library's own; all without a number. */
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
 * A setting of the database as long as the scope is open. Sessions read it when they begin, so the workers' are ended
 * before and after; the statements are allowed to write where the setting forbids it.
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
