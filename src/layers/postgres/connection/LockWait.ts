/** Reports the lock that a start waits for, and bounds the wait. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import { literal } from "../migrations/Sql.ts"
import { asJson } from "./Codecs.ts"
import { outsideTransactions } from "./Session.ts"
import { statementTimeout } from "./SqlErrors.ts"

/** Shorter waits are not logged. */
const silence = Duration.seconds(1)

/** Time limit for finding the session that holds the lock: the pool may have no second connection. */
const findingLimit = Duration.seconds(2)

interface Holder {
  readonly pid: number
  readonly application: string
  readonly state: string
}

const findHolders = (sql: SqlClient.SqlClient, table: string) =>
  asJson<Holder>(
    sql,
    `SELECT l.pid, coalesce(a.application_name, '') AS application, coalesce(a.state, 'unknown') AS state
     FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
     WHERE l.locktype = 'relation' AND l.granted AND l.mode = 'AccessExclusiveLock'
       AND l.relation = pg_catalog.to_regclass(${literal(table)})
       AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())`
  )

const report = (sql: SqlClient.SqlClient, table: string, operation: string) =>
  findHolders(sql, table).pipe(
    Effect.timeoutOrElse({ duration: findingLimit, orElse: () => Effect.succeed([]) }),
    // The holders only complete the message; without them, it names the table.
    Effect.orElseSucceed(() => []),
    // The caller may be inside a transaction, whose connection is the one that waits.
    outsideTransactions(sql),
    Effect.flatMap((holders) =>
      Effect.logWarning(
        `${operation} waits ${
          holders.length === 0
            ? `for the database to answer a statement on table ${table}`
            : `for a lock on table ${table}, which is held by ${
              holders.map(({ application, pid, state }) => `session ${pid} ("${application}", ${state})`).join(", ")
            }`
        }. If a migration is running, wait until it ends; otherwise end that session with pg_terminate_backend.`
      )
    )
  )

/** Logs what `self`, whose statements read `table`, waits for when it takes longer than a second. */
export const reporting = (options: {
  readonly sql: SqlClient.SqlClient
  readonly table: string
  /** The subject of the log line. */
  readonly operation: string
}) =>
<A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.raceFirst(
    self,
    Effect.sleep(silence).pipe(
      Effect.andThen(report(options.sql, options.table, options.operation)),
      Effect.andThen(Effect.never)
    )
  )

const noAnswer = statementTimeout("a statement waited too long for a lock")

/** Like `reporting`, but fails after a minute. */
export const bounded =
  (options: Parameters<typeof reporting>[0]) =>
  <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E | SqlError.SqlError, R> =>
    Effect.timeoutOrElse(reporting(options)(self), {
      duration: Duration.minutes(1),
      orElse: () => Effect.fail(noAnswer)
    })
