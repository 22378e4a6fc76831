/**
 * The session on which events are read and the settled position is proved. Both happen on one connection, so that what
 * was proved cannot outlive the server that it was proved on.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as SqlError from "effect/sql/SqlError"
import type { StoreError } from "../../schema/Errors.ts"
import type { ServerLife } from "../../services/EventStore.ts"
import { Database } from "./Database.ts"
import * as Life from "./Life.ts"
import type { Opened } from "./Session.ts"
import * as Settled from "./Settled.ts"

/**
 * What was learned through one connection.
 *
 * @category models
 * @since 0.1.0
 */
export interface State {
  /** Of the server that everything here was learned from. Behind a pooler it changes; else it is the session's. */
  life: ServerLife | undefined
  /** Oid of the sequence that gives out positions, as text. */
  sequence: string | undefined
  /** Which files events and sequence were in: in others, positions have begun anew. */
  files: string | undefined
  settled: Settled.Settled
}

/**
 * @category models
 * @since 0.1.0
 */
export interface Reader {
  /** Runs one thing after the other; what loses its connection is tried once more on a new one. */
  readonly use: <A, E>(
    operation: string,
    f: (opened: Opened<State>) => Effect.Effect<A, E | SqlError.SqlError>
  ) => Effect.Effect<A, Exclude<E, SqlError.SqlError> | StoreError>
}

const statementTimeout = Duration.seconds(5)

const deadline = Duration.seconds(15)

/**
 * Every statement walks an index in the order of positions, whatever the table's statistics say; sorting or scanning a
 * table of events would always be wrong here. One plan per statement serves all parameters.
 */
const settings = {
  statement_timeout: String(Duration.toMillis(statementTimeout)),
  // Behind a pooler each read is a transaction.
  idle_in_transaction_session_timeout: String(Duration.toMillis(deadline)),
  enable_indexscan: "on",
  enable_indexonlyscan: "on",
  enable_seqscan: "off",
  enable_bitmapscan: "off",
  enable_sort: "off",
  max_parallel_workers_per_gather: "0",
  plan_cache_mode: "force_generic_plan"
}

/**
 * SQL: see `State.files`. TRUNCATE gives the table a new one, RESTART the sequence, and whatever else rewrites them, after
 * which nothing but the proof is lost.
 *
 * @category utils
 * @since 0.1.0
 */
export const files = (events: string, sequence: string): string =>
  `concat(pg_relation_filenode('${events.replaceAll("'", "''")}'::regclass), '/', pg_relation_filenode(${sequence}))`

/**
 * Nothing is proved of what is there now.
 *
 * @category utils
 * @since 0.1.0
 */
export const startOver = (state: State): void => {
  Object.assign(state, unknown(state.life))
}

/** What is known of a life of the server at first. */
const unknown = (life: ServerLife | undefined): State => ({
  life,
  sequence: undefined,
  files: undefined,
  settled: Settled.make()
})

/**
 * @category constructors
 * @since 0.1.0
 */
export const make: Effect.Effect<Reader, never, Database | Scope.Scope> = Effect.gen(function*() {
  const database = yield* Database
  const session = yield* database.openSession<State>({
    name: "pupsourcing-orchestrator reader",
    deadline,
    settings,
    state: () => unknown(undefined),
    mark: {
      sql: Life.select(database.pooled),
      read: (state, life) => {
        // Behind a pooler the next transaction may run on another server, for which the proof is not valid.
        if (database.pooled && state.life !== life) Object.assign(state, unknown(life))
        else state.life ??= life
      }
    }
  })
  // Waiting for one another is not waiting for the server: the deadline begins when a statement does.
  const lane = Semaphore.makeUnsafe(1)
  const use = <A, E>(
    operation: string,
    f: (opened: Opened<State>) => Effect.Effect<A, E | SqlError.SqlError>
  ) =>
    lane.withPermit(
      session.use(operation, (opened): Effect.Effect<A, E | SqlError.SqlError> =>
        Effect.suspend(() =>
          opened.state.life !== undefined && database.takeRefusal(opened.state.life)
            ? Effect.fail(elsewhere)
            : f(opened)
        ))
    ).pipe(
      Effect.retry({ times: 1, while: isLoss })
    )
  return { use }
})

const leadsElsewhere = "the session leads to another server than the one that is written to"

const elsewhere = new SqlError.SqlError({
  reason: new SqlError.ConnectionError({
    cause: new Error(leadsElsewhere),
    message: leadsElsewhere,
    operation: "query"
  })
})

const isLoss = (error: unknown): boolean =>
  typeof error === "object" && error !== null && "_tag" in error && error._tag === "DatabaseUnavailable" &&
  "reason" in error && error.reason === "connection lost"
