/**
 * The session that reads events and proves the settled position. Both happen on one connection, so that a proof is
 * discarded together with the connection to the server for which it holds.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type * as SqlError from "effect/sql/SqlError"
import type { StoreError } from "../../../schema/Errors.ts"
import * as Settled from "../../../schema/Settled.ts"
import type { EventStore, ServerEpoch } from "../../../services/EventStore.ts"
import * as ServerEpochSql from "../connection/ServerEpochSql.ts"
import type { Opened } from "../connection/Session.ts"
import { connectionLost, hasLostConnection } from "../connection/SqlErrors.ts"
import { Database } from "../Database.ts"
import { literal } from "../migrations/Sql.ts"

/** State that is valid for one connection. */
export interface State {
  /** The server epoch of the session; undefined before its first statement. */
  epoch: ServerEpoch | undefined
  /** Oid of the sequence that issues positions, as text. */
  sequence: string | undefined
  /** Identifies the files of the events and the sequence. In other files, positions may have restarted. */
  files: string | undefined
  settled: Settled.Settled
  /** The ids of the open writers that were logged. */
  readonly reported: Set<string>
}

export interface ReadSession {
  /** Runs one operation at a time. An operation that loses its connection is retried once on a new one. */
  readonly use: <A, E>(
    operation: string,
    f: (opened: Opened<State>) => Effect.Effect<A, E | SqlError.SqlError>
  ) => Effect.Effect<A, Exclude<E, SqlError.SqlError> | StoreError>
  /** If the connection is still in this epoch, the next operation opens another. */
  readonly endEpoch: EventStore["Service"]["endEpoch"]
}

const statementTimeout = Duration.seconds(5)

const deadline = Duration.seconds(15)

/**
 * Settings of the session. Every statement must walk an index in position order, regardless of the table's statistics;
 * sorting or scanning a table of events would always be wrong here. One plan per statement serves all parameters.
 */
const settings = {
  statement_timeout: String(Duration.toMillis(statementTimeout)),
  enable_indexscan: "on",
  enable_indexonlyscan: "on",
  enable_seqscan: "off",
  enable_bitmapscan: "off",
  enable_sort: "off",
  max_parallel_workers_per_gather: "0",
  plan_cache_mode: "force_generic_plan"
}

/**
 * SQL: the value of `State.files`. TRUNCATE creates a new file for the table, RESTART for the sequence. So do other
 * rewrites, after which only the proof has to be repeated.
 */
export const files = (events: string, sequence: string): string =>
  `concat(pg_relation_filenode(${literal(events)}::regclass), '/', pg_relation_filenode(${sequence}))`

/** Resets the state within its server epoch, because nothing is proved about the current table and sequence. */
export const reset = (state: State): void => {
  Object.assign(state, unknown(state.epoch))
}

/** The initial state in a server epoch. */
const unknown = (epoch: ServerEpoch | undefined): State => ({
  epoch,
  sequence: undefined,
  files: undefined,
  settled: Settled.unproved,
  reported: new Set()
})

export const make: Effect.Effect<ReadSession, never, Database | Scope.Scope> = Effect.gen(function*() {
  const database = yield* Database
  const session = yield* database.openSession<State>({
    name: "pupsourcing-orchestrator reader",
    roles: ["appender", "worker"],
    deadline,
    settings,
    state: () => unknown(undefined),
    mark: {
      sql: ServerEpochSql.select,
      read: (state, epoch) => {
        state.epoch = epoch
      }
    }
  })
  // Operations queue before they enter the session, so that this wait does not count towards the session's deadline.
  const lane = Semaphore.makeUnsafe(1)
  /** The epoch that was last reported as ended. */
  let ended: ServerEpoch | undefined
  const use = <A, E>(
    operation: string,
    f: (opened: Opened<State>) => Effect.Effect<A, E | SqlError.SqlError>
  ) =>
    lane.withPermit(
      session.use(operation, (opened): Effect.Effect<A, E | SqlError.SqlError> =>
        Effect.suspend(() =>
          ended !== undefined && opened.state.epoch === ended ? Effect.fail(elsewhere) : f(opened)
        ))
    ).pipe(
      Effect.retry({ times: 1, while: hasLostConnection })
    )
  return {
    use,
    endEpoch: (epoch) =>
      Effect.sync(() => {
        ended = epoch
      })
  }
})

const elsewhere = connectionLost("the session is connected to another server than the one that is written to")
