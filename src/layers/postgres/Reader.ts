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
import type * as SqlError from "effect/sql/SqlError"
import type { StoreError } from "../../schema/Errors.ts"
import { Database } from "./Database.ts"
import type { Opened } from "./Session.ts"
import * as Settled from "./Settled.ts"

/**
 * What was learned through one connection.
 *
 * @category models
 * @since 0.1.0
 */
export interface State {
  /** The session's settings are made. */
  prepared: boolean
  /** Oid of the sequence that gives out positions, as text. */
  sequence: string | undefined
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
const prepare = (opened: Opened<State>): Effect.Effect<void, SqlError.SqlError> =>
  opened.state.prepared
    ? Effect.void
    : Effect.map(
      opened.sql`
        SELECT set_config('statement_timeout', ${String(Duration.toMillis(statementTimeout))}, false),
          set_config('enable_seqscan', 'off', false), set_config('enable_bitmapscan', 'off', false),
          set_config('enable_sort', 'off', false), set_config('jit', 'off', false),
          set_config('plan_cache_mode', 'force_generic_plan', false)
      `,
      () => {
        opened.state.prepared = true
      }
    )

/**
 * @category constructors
 * @since 0.1.0
 */
export const make: Effect.Effect<Reader, never, Database | Scope.Scope> = Effect.gen(function*() {
  const database = yield* Database
  const session = yield* database.openSession<State>({
    name: "pupsourcing-orchestrator reader",
    deadline,
    state: () => ({ prepared: false, sequence: undefined, settled: Settled.make() })
  })
  // Waiting for one another is not waiting for the server: the deadline begins when a statement does.
  const lane = Semaphore.makeUnsafe(1)
  const use = <A, E>(
    operation: string,
    f: (opened: Opened<State>) => Effect.Effect<A, E | SqlError.SqlError>
  ) =>
    lane.withPermit(session.use(operation, (opened) => Effect.andThen(prepare(opened), f(opened)))).pipe(
      Effect.retry({ times: 1, while: isLoss })
    )
  return { use }
})

const isLoss = (error: unknown): boolean =>
  typeof error === "object" && error !== null && "_tag" in error && error._tag === "DatabaseUnavailable" &&
  "reason" in error && error.reason === "connection lost"
