/**
 * Migration 002: the event store's tables, as pupsourcing's own migration generator creates them
 * (`es/migrations/generator.go` of github.com/getpup/pupsourcing and its successor). Existing tables are compared and
 * never changed.
 */
import { qualified, quoted, type TableKey, type TableNames } from "../../../schema/TableNames.ts"
import * as OrchestratorTables from "./OrchestratorTables.ts"
import { block, createSchema, indented, literal, lock, textArray } from "./Sql.ts"

/**
 * A difference between an existing table of the event store and the table that this library creates.
 *
 * @category models
 * @since 0.1.0
 */
export interface Difference {
  readonly table: string
  /** A column, or the columns of a key. */
  readonly subject: string
  readonly found: string
  readonly expected: string
  /** Whether the guarantees depend on `expected`; otherwise the difference only keeps this library from appending. */
  readonly blocking: boolean
}

/** A difference as one line of text. */
export const describe = (difference: Difference): string =>
  `${difference.table}: ${difference.subject} is ${difference.found} instead of ${difference.expected}`

interface Column {
  readonly name: string
  readonly types: ReadonlyArray<string>
  readonly required?: boolean
  readonly defaulted?: boolean
  readonly optional?: boolean
}

const text = ["text", "character varying"]

const columns: Readonly<Record<"events" | "aggregateHeads", ReadonlyArray<Column>>> = {
  events: [
    { name: "global_position", types: ["bigint"], required: true, defaulted: true },
    { name: "bounded_context", types: text, required: true },
    { name: "aggregate_type", types: text, required: true },
    { name: "aggregate_id", types: text, required: true },
    { name: "aggregate_version", types: ["bigint"], required: true },
    { name: "event_id", types: ["uuid"], required: true },
    { name: "event_type", types: text, required: true },
    { name: "event_version", types: ["integer"], required: true },
    { name: "payload", types: ["bytea"], required: true },
    { name: "trace_id", types: text, optional: true },
    { name: "correlation_id", types: text, optional: true },
    { name: "causation_id", types: text, optional: true },
    { name: "metadata", types: ["jsonb"] },
    { name: "created_at", types: ["timestamp with time zone"], required: true, defaulted: true }
  ],
  aggregateHeads: [
    { name: "bounded_context", types: text, required: true },
    { name: "aggregate_type", types: text, required: true },
    { name: "aggregate_id", types: text, required: true },
    { name: "aggregate_version", types: ["bigint"], required: true },
    { name: "updated_at", types: ["timestamp with time zone"], required: true, defaulted: true }
  ]
}

const stream = ["bounded_context", "aggregate_type", "aggregate_id"]

const uniques: ReadonlyArray<readonly ["events" | "aggregateHeads", ReadonlyArray<string>]> = [
  ["events", ["global_position"]],
  ["events", ["event_id"]],
  ["events", [...stream, "aggregate_version"]],
  ["aggregateHeads", stream]
]

export const owned = ["events", "aggregateHeads"] as const satisfies ReadonlyArray<TableKey>

const described = (column: Column): string =>
  `${column.types[0]}${column.required ? " NOT NULL" : ""}${column.defaulted ? " with a default" : ""}`

/**
 * One row for each `Difference`; none for tables that do not exist. The migration files, the migration in code and the
 * opening of the stores use the same query. Type names are compared without the quotes that `quote_all_identifiers`
 * adds.
 */
export const differences = (names: TableNames): string => {
  const expected = owned.flatMap((key) =>
    columns[key].map((column) =>
      `(${
        [
          literal(qualified(names, key)),
          literal(column.name),
          textArray(column.types),
          String(column.required === true),
          String(column.defaulted === true),
          String(column.optional !== true),
          literal(described(column))
        ].join(", ")
      })`
    )
  )
  const keys = uniques.map(([key, list]) =>
    `(${literal(qualified(names, key))}, ${textArray([...list].sort())}, ${literal(list.join(", "))})`
  )
  const known = owned.flatMap((key) =>
    columns[key].map((column) => `(${literal(qualified(names, key))}, ${literal(column.name)})`)
  )
  return `SELECT c.tab AS "table", c.col AS subject,
  CASE WHEN a.attnum IS NULL THEN 'nothing'
    ELSE format_type(a.atttypid, a.atttypmod)
      || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
      || CASE WHEN a.atthasdef OR a.attidentity <> '' THEN ' with a default' ELSE '' END
  END AS found,
  c.described AS expected, c.blocking OR a.attnum IS NULL AS blocking
FROM (VALUES
  ${expected.join(",\n  ")}
) AS c (tab, col, types, required, defaulted, blocking, described)
JOIN pg_catalog.pg_class r ON r.oid = to_regclass(c.tab)
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid AND a.attname = c.col AND a.attnum > 0 AND NOT a.attisdropped
WHERE a.attnum IS NULL
  OR NOT replace(format_type(a.atttypid, NULL), '"', '') = ANY (c.types)
  OR c.required AND NOT a.attnotnull
  OR c.defaulted AND NOT (a.atthasdef OR a.attidentity <> '')
UNION ALL
SELECT u.tab, u.described, 'not unique', 'unique', true
FROM (VALUES
  ${keys.join(",\n  ")}
) AS u (tab, cols, described)
JOIN pg_catalog.pg_class r ON r.oid = to_regclass(u.tab)
WHERE NOT EXISTS (
  SELECT FROM pg_catalog.pg_index i
  WHERE i.indrelid = r.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_collation AS o WHERE o.oid = ANY (i.indcollation) AND NOT o.collisdeterministic)
    AND u.cols = ARRAY(
      SELECT a.attname::text FROM pg_catalog.pg_attribute a
      WHERE a.attrelid = r.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
      ORDER BY a.attname::text COLLATE "C"
    )
)
UNION ALL
SELECT t.tab, a.attname::text, format_type(a.atttypid, a.atttypmod) || ' NOT NULL without a default',
  'no such column, or a default', false
FROM (VALUES ${owned.map((key) => `(${literal(qualified(names, key))})`).join(", ")}) AS t (tab)
JOIN pg_catalog.pg_attribute a ON a.attrelid = to_regclass(t.tab) AND a.attnum > 0 AND NOT a.attisdropped
WHERE a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''
  AND (t.tab, a.attname::text) NOT IN (
    ${known.join(",\n    ")}
  )
UNION ALL
${nondeterministic(names)}`
}

/**
 * SQL: a `Difference` for each compared column whose collation treats different texts as equal. One stream could then
 * have several hashes, and its events would be divided among several ranges.
 */
const nondeterministic = (names: TableNames): string => {
  const compared = owned.flatMap((key) =>
    columns[key].filter((column) => column.types === text && column.optional !== true).map((column) =>
      `(${literal(qualified(names, key))}, ${literal(column.name)})`
    )
  )
  const every = OrchestratorTables.owned.map((key) => `(${literal(qualified(names, key))}, NULL)`)
  return `SELECT t.tab, a.attname::text, format('compared by the nondeterministic collation %s', o.oid::regcollation),
  'a deterministic collation, because equal texts must have equal hashes', true
FROM (VALUES
  ${[...compared, ...every].join(",\n  ")}
) AS t (tab, col)
JOIN pg_catalog.pg_attribute a ON a.attrelid = to_regclass(t.tab) AND a.attnum > 0 AND NOT a.attisdropped
  AND a.attname = coalesce(t.col, a.attname)
JOIN pg_catalog.pg_collation o ON o.oid = a.attcollation AND NOT o.collisdeterministic`
}

const createEvents = (names: TableNames): string => {
  const events = qualified(names, "events")
  const index = (name: string) => quoted(`idx_${names.events}_${name}`)
  return `CREATE TABLE ${events} (
  global_position bigserial PRIMARY KEY,
  bounded_context text NOT NULL,
  aggregate_type text NOT NULL,
  aggregate_id text NOT NULL,
  aggregate_version bigint NOT NULL,
  event_id uuid NOT NULL UNIQUE,
  event_type text NOT NULL,
  event_version integer NOT NULL DEFAULT 1,
  payload bytea NOT NULL,
  trace_id text,
  correlation_id text,
  causation_id text,
  metadata jsonb,
  created_at timestamptz NOT NULL DEFAULT now(),
  UNIQUE (bounded_context, aggregate_type, aggregate_id, aggregate_version)
);
CREATE INDEX ${index("aggregate")}
  ON ${events} (bounded_context, aggregate_type, aggregate_id, aggregate_version);
CREATE INDEX ${index("event_type")}
  ON ${events} (event_type, global_position);
CREATE INDEX ${index("correlation")}
  ON ${events} (correlation_id) WHERE correlation_id IS NOT NULL;`
}

const createHeads = (names: TableNames): string => {
  const heads = qualified(names, "aggregateHeads")
  return `CREATE TABLE ${heads} (
  bounded_context text NOT NULL,
  aggregate_type text NOT NULL,
  aggregate_id text NOT NULL,
  aggregate_version bigint NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (bounded_context, aggregate_type, aggregate_id)
);
CREATE INDEX ${quoted(`idx_${names.aggregateHeads}_updated`)}
  ON ${heads} (updated_at);`
}

/** SQL: fills a new table of heads from the existing events, because Go's append reads the version from the head. */
const fillHeads = (names: TableNames): string =>
  `INSERT INTO ${qualified(names, "aggregateHeads")}
  (bounded_context, aggregate_type, aggregate_id, aggregate_version, updated_at)
SELECT bounded_context, aggregate_type, aggregate_id, max(aggregate_version), max(created_at)
FROM ${qualified(names, "events")}
GROUP BY bounded_context, aggregate_type, aggregate_id;`

/**
 * Finds event stores on the search path when the one of `names` does not exist. A user who only intended to move
 * the orchestrator's tables would otherwise get a new, empty event store.
 */
export const elsewhere = (names: TableNames): string =>
  `SELECT format('%I.%I', n.nspname, c.relname) AS name, n.nspname::text AS schema
FROM pg_catalog.pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relname = ${literal(names.events)} AND n.nspname = ANY (current_schemas(false))
  AND to_regclass(${literal(qualified(names, "events"))}) IS NULL
  AND EXISTS (SELECT FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'global_position')
ORDER BY array_position(current_schemas(false), n.nspname)`

const refuseElsewhere = (names: TableNames): string =>
  names.eventStoreSchema === undefined ? "" : `
    FOR found IN
      SELECT e.name FROM (
        ${indented(elsewhere(names), 8)}
      ) AS e
    LOOP
      EXECUTE format('SELECT %L WHERE EXISTS (SELECT FROM %s)', found, found) INTO found;
      IF found IS NOT NULL THEN
        RAISE EXCEPTION '% holds events, and a new event store would be created beside it', found
          USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Generate the migrations with --event-store-schema to use it, or with --new-event-store.';
      END IF;
    END LOOP;`

export interface UpOptions {
  /** Whether to create an event store even if the search path contains another one with events. */
  readonly newEventStore?: boolean | undefined
}

export const up = (names: TableNames, options: UpOptions = {}): ReadonlyArray<string> => [
  `-- Creates what is missing, changes nothing that exists, and refuses tables that this library cannot work with.
${
    block(`DECLARE
  found text;
BEGIN
  PERFORM ${lock};${names.eventStoreSchema === names.schema ? "" : createSchema(names.eventStoreSchema)}
  IF to_regclass(${literal(qualified(names, "events"))}) IS NULL THEN${
      options.newEventStore === true ? "" : refuseElsewhere(names)
    }
    ${indented(createEvents(names), 4)}
  END IF;
  SELECT string_agg(format('%s: %s is %s instead of %s', d."table", d.subject, d.found, d.expected), '; ') INTO found
  FROM (
    ${indented(differences(names), 4)}
  ) AS d
  WHERE d.blocking;
  IF found IS NOT NULL THEN
    RAISE EXCEPTION 'the tables differ from what this library needs: %', found
      USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Change the tables, or choose other names for them.';
  END IF;
  IF to_regclass(${literal(qualified(names, "aggregateHeads"))}) IS NULL THEN
    ${indented(createHeads(names), 4)}
    ${indented(fillHeads(names), 4)}
  END IF;
END`)
  }`
]

/** Returns whether there are events. The table must exist. */
export const anyEvent = (names: TableNames): string =>
  `SELECT EXISTS (SELECT FROM ${qualified(names, "events")}) AS found`

/** Drops the event store; fails while it holds an event. */
export const down = (names: TableNames): ReadonlyArray<string> => [
  `-- Fails while the table contains events.
${
    block(`BEGIN
  PERFORM ${lock};
  IF to_regclass(${literal(qualified(names, "events"))}) IS NOT NULL THEN
    LOCK TABLE ${qualified(names, "events")} IN ACCESS EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM ${qualified(names, "events")}) THEN
      RAISE EXCEPTION 'the table of events is not empty'
        USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Events are never dropped by a migration.';
    END IF;
  END IF;
  DROP TABLE IF EXISTS ${qualified(names, "events")};
  DROP TABLE IF EXISTS ${qualified(names, "aggregateHeads")};
END`)
  }`
]
