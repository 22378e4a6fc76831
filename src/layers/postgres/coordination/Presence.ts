/**
 * Presence: a session-level advisory lock that a live process holds, and the wait until another process has lost it.
 *
 * When a process dies, its session ends and PostgreSQL releases the lock at once; waiting processes wake within
 * milliseconds. Presence only makes detection faster: correctness does not depend on it.
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
import type { StoreError } from "../../../schema/Errors.ts"
import { Listener } from "../connection/Listener.ts"
import { connectionLost } from "../connection/SqlErrors.ts"
import { Database } from "../Database.ts"
import { literal } from "../migrations/Sql.ts"

/** Makes this process present, and observes the presence of others. */
export class Presence extends Context.Service<Presence, {
  /**
   * Makes the process present while the scope is open, and returns its presence key, which all its workers share.
   * Returns undefined if presence is disabled.
   */
  readonly enter: Effect.Effect<number | undefined, StoreError, Scope.Scope>

  /** The process's presence key, kept while the session is lost; undefined when the process has not entered. */
  readonly own: () => number | undefined

  /**
   * Waits until no session is present under the key. Waits for the same key share a connection. A lost connection is
   * opened again and does not end the wait.
   */
  readonly gone: (key: number) => Effect.Effect<void>

  /** SQL: the keys, as `bigint` in column `key`, whose exclusive lock a session holds; each occurs once. */
  readonly presentKeys: string
}>()("pupsourcing-orchestrator/layers/postgres/Presence") {}

/** The presence of this process. */
interface Own {
  readonly database: Database["Service"]
  /** Kept while the session is lost; undefined when the process has not entered. */
  key: number | undefined
  /** The connection whose session holds the lock, or held it last. */
  connection: PgConnection.PgConnection | undefined
  /** Keys that rows of this process may contain, because an update of them may have an unknown commit outcome. */
  readonly keysInRows: Set<number>
}

/** How long a wait lasts in the database before it is restarted; a longer wait may hold back vacuum. */
const waitMillis = 5000

/** When the answer to a wait is this late, the server is considered unreachable. */
const answerMillis = 5000

/** When the previous key cannot be acquired again within these attempts, a new one is drawn. */
const reacquireAttempts = 20
const reacquireDelay = Duration.millis(50)

const reconnect = Schedule.min([Schedule.exponential("100 millis"), Schedule.spaced("5 seconds")])

export const make: Effect.Effect<
  Presence["Service"],
  never,
  Database | Listener | Scope.Scope
> = Effect.gen(function*() {
  const database = yield* Database
  const listener = yield* Listener
  const own: Own = { database, key: undefined, connection: undefined, keysInRows: new Set() }
  const entered = yield* RcRef.make({
    acquire: Effect.gen(function*() {
      yield* Effect.addFinalizer(() => leave(own))
      yield* listener.onConnection((connection) => enter(own, connection))
    })
  })
  const waits = yield* RcMap.make({ lookup: (key: number) => waitInBackground(database, key) })
  return Presence.of({
    enter: database.presence ? Effect.map(RcRef.get(entered), () => own.key) : Effect.undefined,
    own: () => own.key,
    gone: (key) => Effect.scoped(Effect.flatMap(RcMap.get(waits, key), Deferred.await)),
    presentKeys: database.presence ? presentKeys(database) : "SELECT 0::bigint AS key WHERE false"
  })
})

/**
 * SQL: the first key of the advisory locks, as `integer`. It depends only on the name of the workers table, because the
 * locks must stay the same when the table is dropped and created again, which changes its oid.
 */
export const lockClass = (workers: string): string => `pg_catalog.hashtext(${literal(workers)})`

const lockClassOf = (database: Database["Service"]): string => lockClass(database.qualified("workers"))

/** SQL: the presence keys under which a session is present. */
export const presentKeys = (database: Database["Service"]): string =>
  `SELECT l.objid::bigint AS key FROM pg_catalog.pg_locks l
    WHERE l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND l.granted AND l.objsubid = 2
      AND l.classid::bigint = ${lockClassOf(database)}::bigint & 4294967295
      AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())`

/** Makes the process present through a connection that was just opened, and corrects the key in its workers' rows. */
const enter = Effect.fnUntraced(function*(own: Own, connection: PgConnection.PgConnection) {
  const key = yield* acquire(own.database, connection, own.key)
  const others = [...own.keysInRows].filter((other) => other !== key)
  own.keysInRows.add(key)
  // Set before the rows are updated: a row written meanwhile is either updated below, or its writer reads this key.
  own.key = key
  own.connection = connection
  if (others.length > 0) {
    yield* connection.query(
      `UPDATE ${own.database.qualified("workers")} SET presence_key = $1::int4
       WHERE presence_key = ANY($2::int4[]) AND state <> 'stopped'`,
      [key, others]
    )
    for (const other of others) own.keysInRows.delete(other)
  }
})

/** Acquires the lock of the previous key if possible, otherwise of a new one, and returns the key. */
const acquire = Effect.fnUntraced(function*(
  database: Database["Service"],
  connection: PgConnection.PgConnection,
  previous: number | undefined
) {
  if (previous !== undefined) {
    // A waiting process may hold the lock briefly, or the server has not detected yet that the old session is gone.
    for (let attempt = 0; attempt < reacquireAttempts; attempt++) {
      if (yield* tryLock(database, connection, previous)) return previous
      yield* Effect.sleep(reacquireDelay)
    }
  }
  let key = yield* drawKey(database, connection)
  // Skip a key that another session holds: a server that lost its latest commits returns keys a second time.
  while (!(yield* tryLock(database, connection, key))) key = yield* drawKey(database, connection)
  return key
})

const drawKey = (database: Database["Service"], connection: PgConnection.PgConnection) =>
  Effect.map(
    connection.query("SELECT nextval($1::text::regclass)::int4 AS key", [database.qualified("presenceKeys")]),
    ({ rows }) => rows[0]!["key"] as number
  )

const tryLock = (database: Database["Service"], connection: PgConnection.PgConnection, key: number) =>
  Effect.map(
    connection.query(`SELECT pg_try_advisory_lock(${lockClassOf(database)}, $1::int4) AS taken`, [key]),
    ({ rows }) => rows[0]!["taken"] === true
  )

const leave = (own: Own) =>
  Effect.suspend(() => {
    const { connection, key } = own
    own.key = undefined
    own.connection = undefined
    own.keysInRows.clear()
    return key === undefined || connection === undefined
      ? Effect.void
      // The lock ends with the connection anyway, which may be closed already.
      : connection.query(`SELECT pg_advisory_unlock(${lockClassOf(own.database)}, $1::int4)`, [key]).pipe(
        Effect.timeoutOption("1 second"),
        Effect.ignoreCause
      )
  })

/** Starts a wait that survives lost connections, and returns the deferred that it completes. */
const waitInBackground = Effect.fnUntraced(function*(database: Database["Service"], key: number) {
  const gone = yield* Deferred.make<void>()
  const connect = database.openConnection("pupsourcing-orchestrator presence")
  yield* Effect.scoped(Effect.flatMap(connect, (connection) => untilGone(database, connection, key))).pipe(
    Effect.tapError((error) => Effect.logDebug("The wait for a neighbour's presence was lost", error)),
    Effect.retry(reconnect),
    Effect.andThen(Deferred.succeed(gone, undefined)),
    Effect.catchCause((cause) => Effect.logWarning("Waiting for a neighbour's presence ended", cause)),
    Effect.withTracerEnabled(false),
    Effect.forkScoped
  )
  return gone
})

const untilGone = Effect.fnUntraced(function*(
  database: Database["Service"],
  connection: PgConnection.PgConnection,
  key: number
) {
  while (true) {
    const { rows } = yield* connection.query(
      `SELECT NOT EXISTS (SELECT FROM (${presentKeys(database)}) AS p WHERE p.key = $1::int4) AS gone`,
      [key]
    )
    if (rows[0]!["gone"] === true) return
    yield* Effect.timeoutOrElse(connection.query(waitForLock(lockClassOf(database), key), [], false), {
      duration: waitMillis + answerMillis,
      orElse: () => Effect.fail(noAnswer)
    })
  }
})

/**
 * SQL: waits until the lock is released, at most `waitMillis`. The exception is caught in the database, because an error
 * every few seconds would fill the server's log. The block is a literal, because a table's name may contain the text
 * that ends a dollar quote.
 */
const waitForLock = (workersClass: string, key: number): string =>
  `DO ${
    literal(`BEGIN
      SET LOCAL lock_timeout = ${waitMillis};
      PERFORM pg_advisory_xact_lock_shared(${workersClass}, ${key});
    EXCEPTION WHEN lock_not_available THEN
      NULL;
    END`)
  }`

const noAnswer = connectionLost("the server does not answer")
