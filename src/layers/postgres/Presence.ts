/**
 * Presence: a session-level advisory lock that a live process holds, and waiting for the end of another's.
 *
 * When a process dies its session ends and PostgreSQL frees the lock at once; whoever waits for it wakes within
 * milliseconds. Presence only speeds things up: nothing that has to be right rests on it.
 *
 * @since 0.1.0
 */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as RcMap from "effect/RcMap"
import * as RcRef from "effect/RcRef"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as SqlError from "effect/sql/SqlError"
import type { StoreError } from "../../schema/Errors.ts"
import { Database } from "./Database.ts"
import { Listener } from "./Listener.ts"

/**
 * @category services
 * @since 0.1.0
 */
export class Presence extends Context.Service<Presence, {
  /**
   * Makes the process present for as long as the scope is open, and returns the key it is present under: one for all
   * its workers. Absent when presence is switched off.
   */
  readonly enter: Effect.Effect<number | undefined, StoreError, Scope.Scope>

  /** The key under which the process is present at this moment. */
  readonly own: () => number | undefined

  /**
   * Waits until nobody is present under the key. Whoever waits for the same key shares a connection. A lost connection
   * is opened again and ends no waiting.
   */
  readonly gone: (key: number) => Effect.Effect<void>

  /**
   * SQL: the keys, as `bigint` in column `key`, under which some session is present, or waits to be so again.
   */
  readonly presentKeys: string
}>()("pupsourcing-orchestrator/layers/postgres/Presence") {}

/**
 * SQL: the first key of the advisory locks, as `integer`. It depends on the name of the table of workers only: a lock
 * must stay the same when the table is dropped and created again, but the table's oid changes.
 *
 * @category utils
 * @since 0.1.0
 */
export const lockClass = (workers: string): string => `pg_catalog.hashtext('${workers.replaceAll("'", "''")}')`

/** How long a wait lasts in the database before it is restarted; a longer wait may hold back vacuum. */
const waitMillis = 5000

/** A wait that is so much late has lost its server. */
const answerMillis = 5000

/** A key that cannot be taken back within this time is given up for a new one. */
const retakeAttempts = 20
const retakeDelay = Duration.millis(50)

const noAnswer = new SqlError.SqlError({
  reason: new SqlError.ConnectionError({
    cause: new Error("the server does not answer"),
    message: "the server does not answer",
    operation: "query"
  })
})

const reconnect = Schedule.min([Schedule.exponential("100 millis"), Schedule.spaced("5 seconds")])

/**
 * @category constructors
 * @since 0.1.0
 */
export const make: Effect.Effect<
  Presence["Service"],
  never,
  Database | Listener | Scope.Scope
> = Effect.gen(function*() {
  const database = yield* Database
  const listener = yield* Listener
  const workers = lockClass(database.qualified("workers"))
  const presentKeys = `SELECT l.objid::bigint AS key FROM pg_catalog.pg_locks l
    WHERE l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND l.objsubid = 2
      AND l.classid::bigint = ${workers}::bigint & 4294967295
      AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())`

  let own: number | undefined
  let holder: PgConnection.PgConnection | undefined
  /** Keys that rows of this process may carry: a change of them that was not heard of may have been made. */
  const onRows = new Set<number>()

  const draw = (connection: PgConnection.PgConnection) =>
    Effect.map(
      connection.query("SELECT nextval($1::text::regclass)::int4 AS key", [database.qualified("presenceKeys")]),
      ({ rows }) => rows[0]!["key"] as number
    )

  const take = (connection: PgConnection.PgConnection, key: number) =>
    Effect.map(
      connection.query(`SELECT pg_try_advisory_lock(${workers}, $1::int4) AS taken`, [key]),
      ({ rows }) => rows[0]!["taken"] === true
    )

  /** Under the key that it had, if that can be had again. */
  const enterWith = Effect.fnUntraced(function*(connection: PgConnection.PgConnection, before: number | undefined) {
    if (before !== undefined) {
      // Whoever waited for the key has it for a moment, or the server has not noticed yet that the old session is gone.
      for (let attempt = 0; attempt < retakeAttempts; attempt++) {
        if (yield* take(connection, before)) return before
        yield* Effect.sleep(retakeDelay)
      }
    }
    let key = yield* draw(connection)
    // A key that somebody holds must not pass for the own one: a server that lost its last moments gives keys out again.
    while (!(yield* take(connection, key))) key = yield* draw(connection)
    return key
  })

  const present = Effect.fnUntraced(function*(connection: PgConnection.PgConnection) {
    const key = yield* enterWith(connection, own)
    const others = [...onRows].filter((other) => other !== key)
    onRows.add(key)
    // Known before the rows are changed: one that is written meanwhile is either seen below, or its writer sees this.
    own = key
    holder = connection
    if (others.length > 0) {
      yield* connection.query(
        `UPDATE ${database.qualified("workers")} SET presence_key = $1::int4
         WHERE presence_key = ANY($2::int4[]) AND state <> 'stopped'`,
        [key, others]
      )
      for (const other of others) onRows.delete(other)
    }
  })

  const leave = Effect.suspend(() => {
    const key = own
    const connection = holder
    own = undefined
    holder = undefined
    onRows.clear()
    return key === undefined || connection === undefined
      ? Effect.void
      // The lock ends with the connection anyway, which may be gone already.
      : connection.query(`SELECT pg_advisory_unlock(${workers}, $1::int4)`, [key]).pipe(
        Effect.timeoutOption("1 second"),
        Effect.ignoreCause
      )
  })

  const entered = yield* RcRef.make({
    acquire: Effect.gen(function*() {
      yield* Effect.addFinalizer(() => leave)
      yield* listener.onConnection(present)
    })
  })

  const connect = database.openConnection("pupsourcing-orchestrator presence")

  // The exception is caught in the database because an error every few seconds would fill its log. Quoted by hand, because
  // a table's name may contain what would end a dollar quote.
  const wait = (key: number) =>
    `DO '${
      `BEGIN
        SET LOCAL lock_timeout = ${waitMillis};
        PERFORM pg_advisory_xact_lock_shared(${workers}, ${key});
      EXCEPTION WHEN lock_not_available THEN
        NULL;
      END`.replaceAll("'", "''")
    }'`

  const untilGone = Effect.fnUntraced(function*(connection: PgConnection.PgConnection, key: number) {
    while (true) {
      const { rows } = yield* connection.query(
        `SELECT NOT EXISTS (SELECT FROM (${presentKeys}) AS p WHERE p.key = $1::int4) AS gone`,
        [key]
      )
      if (rows[0]!["gone"] === true) return
      yield* Effect.timeoutOrElse(connection.query(wait(key), [], false), {
        duration: waitMillis + answerMillis,
        orElse: () => Effect.fail(noAnswer)
      })
    }
  })

  const waits = yield* RcMap.make({
    lookup: Effect.fnUntraced(function*(key: number) {
      const gone = yield* Deferred.make<void>()
      yield* Effect.scoped(Effect.flatMap(connect, (connection) => untilGone(connection, key))).pipe(
        Effect.tapError((error) => Effect.logDebug("The wait for a neighbour's presence was lost", error)),
        Effect.retry(reconnect),
        Effect.andThen(Deferred.succeed(gone, undefined)),
        Effect.catchCause((cause) => Effect.logWarning("Waiting for a neighbour's presence ended", cause)),
        Effect.withTracerEnabled(false),
        Effect.forkScoped
      )
      return gone
    })
  })

  return Presence.of({
    enter: database.presence ? Effect.map(RcRef.get(entered), () => own) : Effect.undefined,
    own: () => own,
    gone: (key) => Effect.scoped(Effect.flatMap(RcMap.get(waits, key), Deferred.await)),
    presentKeys: database.presence ? presentKeys : "SELECT 0::bigint AS key WHERE false"
  })
})
