/**
 * The sequence that issues positions: which one it is, whether it issues them in order, and which transactions
 * have drawn from it and not ended.
 */
import * as Effect from "effect/Effect"
import type * as SqlError from "effect/sql/SqlError"
import type { StoreError } from "../../../schema/Errors.ts"
import type * as Settled from "../../../schema/Settled.ts"
import type { Opened } from "../connection/Session.ts"
import * as SqlErrors from "../connection/SqlErrors.ts"
import type { Database } from "../Database.ts"
import type { State } from "./ReadSession.ts"

/** One holder of the sequence's lock, or a row without a holder. The other columns describe the sequence. */
interface HolderRow {
  readonly sequences: number
  readonly sequence: string | null
  readonly name: string | null
  readonly cache: bigint | null
  readonly increment: bigint | null
  readonly cycle: boolean | null
  readonly recovering: boolean
  readonly holder: string | null
  readonly pid: number | null
  readonly application: string | null
}

/**
 * Returns the transactions that have drawn positions and not ended. Finds the sequence again and checks it, because
 * either may have changed since the last proof.
 */
export const readHolders = Effect.fnUntraced(function*(
  database: Database["Service"],
  { sql, state }: Opened<State>
): Effect.fn.Return<ReadonlyArray<Settled.Holder>, SqlError.SqlError | StoreError> {
  const events = database.qualified("events")
  const rows = yield* sql.unsafe<HolderRow>(holdersStatement, [events])
  state.sequence = yield* check(database, rows[0])
  return rows.flatMap(({ application, holder, pid }) =>
    holder === null ? [] : [{ id: holder, pid: pid ?? undefined, application: application || undefined }]
  )
})

/** Returns the sequence's oid as text, if it is the only source of positions and issues them in order. */
const check = (
  database: Database["Service"],
  row: HolderRow | undefined
): Effect.Effect<string, StoreError> => {
  if (row?.recovering === true) return readOnly(database)
  if (row === undefined || row.sequences !== 1 || row.sequence === null) {
    return Effect.fail(
      SqlErrors.unsupported({
        problem: `The positions of ${
          database.qualified("events")
        } do not come from one sequence that is the default of global_position.`,
        advice: "Make the column a bigserial, an identity, or give it a default of nextval('…')."
      })
    )
  }
  const disorder = row.cache !== 1n
    ? `CACHE ${row.cache}`
    : row.increment !== 1n
    ? `INCREMENT ${row.increment}`
    : row.cycle === true
    ? "CYCLE"
    : undefined
  return disorder === undefined ? Effect.succeed(row.sequence) : Effect.fail(
    SqlErrors.unsupported({
      problem:
        `The sequence ${row.name} of the events' positions has ${disorder}, so that positions are not issued in order.`,
      advice: `Run: ALTER SEQUENCE ${row.name} CACHE 1 INCREMENT 1 NO CYCLE; then reconnect the writers.`
    })
  )
}

/** On a standby, the locks of the transactions that write are not visible. */
export const readOnly = (database: Database["Service"]): Effect.Effect<never, StoreError> =>
  Effect.fail(SqlErrors.readOnly(database.sessionServer))

/** SQL: the last value of the sequence $2; NULL if the role may not read it, and as stated at `lastValue`. */
export const lastValueSql =
  "CASE WHEN has_sequence_privilege($2::oid, 'SELECT, USAGE') THEN pg_sequence_last_value($2::oid::regclass) END"

/**
 * The last value of the sequence, read from the sequence relation: `pg_sequence_last_value` is NULL after
 * `setval(…, false)`.
 */
export const lastValue = Effect.fnUntraced(function*({ sql, state }: Opened<State>) {
  const [named] = yield* sql.unsafe<{ readonly name: string }>("SELECT $1::oid::regclass::text AS name", [
    state.sequence
  ])
  const [row] = yield* sql.unsafe<{ readonly last: bigint }>(
    `SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END AS last FROM ${named?.name}`
  )
  return row?.last ?? 0n
})

/** Fails if the sequence is behind its table, so that it would issue positions that readers have passed. */
export const checkNotBehind = (
  database: Database["Service"],
  { head, last }: { readonly head: bigint; readonly last: bigint | undefined }
): Effect.Effect<void, StoreError> =>
  last === undefined || head <= last ? Effect.void : Effect.fail(
    SqlErrors.unsupported({
      problem: `${
        database.qualified("events")
      } holds an event at position ${head}, but its sequence has only issued positions up to ${last}.`,
      advice: "Positions must come from the sequence, never be written explicitly. After an import, set it with setval."
    })
  )

/** SQL: whether `l` is the lock that `nextval` holds on the sequence `s` until its transaction has ended. */
export const isHeldByWriter =
  `l.locktype = 'relation' AND l.relation = s.seqrelid AND l.mode = 'RowExclusiveLock' AND l.granted
    AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())`

/**
 * SQL: `sources`, the sequences that issue the positions of the table whose name the expression `events` gives: those of
 * the column's default or identity, and only if there is none, the sequence that the column owns.
 */
export const sources = (events: string): string =>
  `target AS MATERIALIZED (
    SELECT attrelid, attnum FROM pg_catalog.pg_attribute WHERE attrelid = ${events}::regclass AND attname = 'global_position'
  ), named AS MATERIALIZED (
    SELECT d.objid AS oid FROM target AS t
    JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = t.attrelid
      AND d.refobjsubid = t.attnum AND d.classid = 'pg_catalog.pg_class'::regclass AND d.deptype = 'i'
    UNION
    SELECT d.refobjid FROM target AS t
    JOIN pg_catalog.pg_attrdef AS f ON f.adrelid = t.attrelid AND f.adnum = t.attnum
    JOIN pg_catalog.pg_depend AS d ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_catalog.pg_class'::regclass
    JOIN pg_catalog.pg_class AS c ON c.oid = d.refobjid AND c.relkind = 'S'
  ), sources AS MATERIALIZED (
    SELECT oid FROM named
    UNION ALL
    SELECT pg_get_serial_sequence(${events}, 'global_position')::regclass
    WHERE NOT EXISTS (SELECT FROM named) AND pg_get_serial_sequence(${events}, 'global_position') IS NOT NULL
  )`

const holdersStatement = `
  WITH ${sources("$1::text")}
  SELECT (SELECT count(*) FROM sources)::int AS sequences, s.seqrelid::text AS sequence,
    s.seqrelid::regclass::text AS name, s.seqcache AS cache, s.seqincrement AS increment, s.seqcycle AS cycle,
    pg_is_in_recovery() AS recovering, l.virtualtransaction AS holder, l.pid,
    coalesce(a.application_name, 'prepared transaction ' || quote_literal(x.gid)) AS application
  FROM (VALUES (true)) AS one
  LEFT JOIN sources ON true
  LEFT JOIN pg_catalog.pg_sequence AS s ON s.seqrelid = sources.oid
  LEFT JOIN pg_catalog.pg_locks AS l ON ${isHeldByWriter}
  LEFT JOIN LATERAL pg_stat_get_activity(l.pid) AS a ON l.pid IS NOT NULL
  LEFT JOIN pg_catalog.pg_locks AS o ON l.pid IS NULL AND o.pid IS NULL AND o.locktype = 'transactionid'
    AND o.mode = 'ExclusiveLock' AND o.virtualtransaction = l.virtualtransaction
  LEFT JOIN pg_catalog.pg_prepared_xacts AS x ON x.transaction = o.transactionid`
