/** Migration 001: the orchestrator's own tables. */
import { InvalidSettings } from "../../../schema/Errors.ts"
import { qualified, quoted, type TableKey, type TableNames } from "../../../schema/TableNames.ts"
import { block, createSchema, indented, literal, lock } from "./Sql.ts"

/** The version of the tables that this library creates and requires. */
export const schemaVersion = 3

/**
 * Known answers of `HashSql.hashOf`, taken from PostgreSQL 18. They are stored in the database and checked at start,
 * because a server with another hash would assign aggregates to other ranges. The texts are ASCII, so that the answers
 * are valid in any database encoding; the last one is longer than one round of the hash.
 */
export const hashAnswers: Readonly<Record<string, number>> = {
  "": 2_817_148_525,
  "user-1": 3_736_142_208,
  "0b6cf0a0-5f5c-4d5b-9a63-1f6f2d0c9e77": 852_620_637
}

/** Tables and sequences that belong to the orchestrator, in the order in which they are dropped. */
export const owned = [
  "generations",
  "workers",
  "heartbeats",
  "checkpoints",
  "parkedEvents",
  "incarnations",
  "presenceKeys",
  "meta"
] as const satisfies ReadonlyArray<TableKey>

const sequences: ReadonlySet<TableKey> = new Set(["incarnations", "presenceKeys"])

/**
 * Finds tables of these names that this library did not create: they exist, but the meta table, which is created first
 * and dropped last, does not.
 */
export const strangers = (names: TableNames): string =>
  `SELECT t.key, t.name
FROM (VALUES ${owned.map((key) => `(${literal(key)}, ${literal(qualified(names, key))})`).join(", ")}) AS t (key, name)
WHERE to_regclass(t.name) IS NOT NULL AND to_regclass(${literal(qualified(names, "meta"))}) IS NULL`

/** The error for tables that record the progress for another events table; undefined if there is none. */
export const otherEvents = (names: TableNames, found: string | null): InvalidSettings | undefined =>
  found === null ? undefined : new InvalidSettings({
    setting: "tables.events",
    problem: `The orchestrator's tables record the progress for the events table ${
      found.startsWith("\"") ? found : quoted(found)
    }, not for ${
      qualified(names, "events")
    }. Give each table of events orchestrator tables of its own: other names, or another schema.`
  })

/**
 * SQL: the events table that row `m` of the meta table names: its plain name if it is in the schema of the meta table,
 * otherwise its qualified and quoted name. Meta tables of earlier versions lack the column.
 */
export const eventsTable = "to_jsonb(m) ->> 'events_table'"

const recorded = (names: TableNames): string =>
  names.eventStoreSchema === names.schema ? names.events : qualified(names, "events")

/**
 * SQL: the name for `otherEvents` from row `m` of the meta table; NULL if it refers to the table of `names`, in any
 * notation.
 */
export const otherEventsTable = (names: TableNames): string =>
  `CASE WHEN ${eventsTable} <> ${literal(recorded(names))} AND NOT coalesce(to_regclass(
      CASE WHEN ${eventsTable} LIKE '"%' THEN ${eventsTable}
        ELSE ${literal(names.schema === undefined ? "" : `${quoted(names.schema)}.`)} || quote_ident(${eventsTable}) END
    ) = to_regclass(${literal(qualified(names, "events"))}), false) THEN ${eventsTable} END`

const guard = (names: TableNames): string =>
  block(`DECLARE
  found text;
BEGIN
  PERFORM ${lock};${createSchema(names.schema)}
  SELECT string_agg(s.name, ', ') INTO found
  FROM (
    ${indented(strangers(names), 4)}
  ) AS s;
  IF found IS NOT NULL THEN
    RAISE EXCEPTION 'these tables exist, but pupsourcing-orchestrator did not create them: %', found
      USING ERRCODE = 'duplicate_table', HINT = 'Choose other names for them. If Go''s pupsourcing-orchestrator created them and no longer runs, drop them: they contain no progress.';
  END IF;
  IF to_regclass(${literal(qualified(names, "meta"))}) IS NOT NULL THEN
    SELECT schema_version::text INTO found FROM ${qualified(names, "meta")} WHERE schema_version > ${schemaVersion};
    IF found IS NOT NULL THEN
      RAISE EXCEPTION 'schema version % found; this migration creates version ${schemaVersion}', found
        USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Use the migrations of a newer pupsourcing-orchestrator.';
    END IF;
    SELECT ${indented(otherEventsTable(names), 4)} INTO found FROM ${qualified(names, "meta")} AS m;
    IF found IS NOT NULL THEN
      RAISE EXCEPTION 'these tables record the progress for the events table %, not for ${
    recorded(names).replaceAll("'", "''").replaceAll("%", "%%")
  }', found
        USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Give each table of events its own.';
    END IF;
  END IF;
END`)

export const up = (names: TableNames): ReadonlyArray<string> => [
  `-- Waits for other migrations. Refuses tables that other software or a newer version created.
${guard(names)}`,

  `-- One row: the version of these tables, known answers of the hash that divides the events, and the events table whose
-- progress they record, because positions in another table have a different meaning.
CREATE TABLE IF NOT EXISTS ${qualified(names, "meta")} (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  schema_version integer NOT NULL,
  hash_answers jsonb NOT NULL,
  events_table text
)`,
  `-- For tables that were created without this column.
ALTER TABLE ${qualified(names, "meta")} ADD COLUMN IF NOT EXISTS events_table text`,

  `-- Every registration of a worker draws its incarnation.
CREATE SEQUENCE IF NOT EXISTS ${qualified(names, "incarnations")} AS bigint CACHE 1`,

  `-- Keys of the advisory locks that live workers hold.
CREATE SEQUENCE IF NOT EXISTS ${
    qualified(names, "presenceKeys")
  } AS integer MINVALUE 1 MAXVALUE 2147483647 CACHE 1 CYCLE`,

  `-- The workers that share the work. A generation never changes; its state is for people to read.
CREATE TABLE IF NOT EXISTS ${qualified(names, "generations")} (
  replica_set text NOT NULL,
  generation_id bigint NOT NULL,
  members jsonb NOT NULL CHECK (jsonb_typeof(members) = 'array'),
  total_partitions integer NOT NULL,
  leader_id text,
  state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'active', 'superseded')),
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  activated_at timestamptz,
  superseded_at timestamptz,
  PRIMARY KEY (replica_set, generation_id)
)`,

  `-- One row for each worker; partition_key -1 means none. A stopped worker without evicted_by has left.
CREATE TABLE IF NOT EXISTS ${qualified(names, "workers")} (
  replica_set text NOT NULL,
  worker_id text NOT NULL,
  incarnation bigint NOT NULL,
  generation_id bigint,
  partition_key integer NOT NULL DEFAULT -1,
  state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'ready', 'running', 'stopping', 'stopped')),
  projections jsonb NOT NULL,
  presence_key integer,
  host text,
  pid integer,
  started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  stopped_at timestamptz,
  evicted_by text,
  PRIMARY KEY (replica_set, worker_id)
)`,
  `-- For tables of version 1.
ALTER TABLE ${qualified(names, "workers")} ADD COLUMN IF NOT EXISTS evicted_by text`,

  `-- Separate from the workers, because heartbeats are written continuously. With free space on each page and no index on
-- the time, updates stay on their page and change no index.
CREATE TABLE IF NOT EXISTS ${qualified(names, "heartbeats")} (
  replica_set text NOT NULL,
  worker_id text NOT NULL,
  incarnation bigint NOT NULL,
  heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (replica_set, worker_id)
) WITH (
  fillfactor = 50,
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 200,
  autovacuum_vacuum_cost_delay = 0,
  autovacuum_analyze_scale_factor = 0,
  autovacuum_analyze_threshold = 1000
)`,

  `-- Progress: the rows of a projection tile the space of hashes, 0 to 4294967296.
CREATE TABLE IF NOT EXISTS ${qualified(names, "checkpoints")} (
  projection_name text NOT NULL,
  range_start bigint NOT NULL,
  range_end bigint NOT NULL,
  position bigint NOT NULL DEFAULT 0 CHECK (position >= 0),
  replica_set text NOT NULL,
  worker_id text,
  incarnation bigint,
  generation_id bigint,
  filter text NOT NULL,
  halted_since timestamptz,
  halted_error text,
  halted_position bigint,
  halted_event_id text,
  halted_hash bigint,
  halted_incarnation bigint,
  halted_request text CHECK (halted_request IN ('retry', 'skip')),
  updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (projection_name, range_start),
  CHECK (0 <= range_start AND range_start < range_end AND range_end <= 4294967296),
  CHECK (num_nulls(worker_id, incarnation, generation_id) IN (0, 3))
) WITH (
  fillfactor = 70,
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 500,
  autovacuum_vacuum_cost_delay = 0
)`,
  `-- For tables of version 1.
ALTER TABLE ${qualified(names, "checkpoints")} ADD COLUMN IF NOT EXISTS halted_incarnation bigint`,
  `-- For tables of version 2.
ALTER TABLE ${qualified(names, "checkpoints")} ADD COLUMN IF NOT EXISTS halted_request text
  CHECK (halted_request IN ('retry', 'skip'))`,

  `CREATE INDEX IF NOT EXISTS ${quoted(`idx_${names.checkpoints}_replica`)} ON ${
    qualified(names, "checkpoints")
  } (replica_set)`,

  `-- Events that a handler could not handle, and later events with the same key, which queue behind them (attempts 0). Each
-- belongs to the range of its projection that contains key_hash. A request marks it for the worker that owns the range.
CREATE TABLE IF NOT EXISTS ${qualified(names, "parkedEvents")} (
  projection_name text NOT NULL,
  position bigint NOT NULL,
  key text NOT NULL,
  key_hash bigint NOT NULL,
  event_id text NOT NULL,
  event_type text NOT NULL,
  aggregate_type text NOT NULL,
  aggregate_id text NOT NULL,
  aggregate_version bigint NOT NULL,
  parked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  attempts integer NOT NULL DEFAULT 0,
  first_attempt_at timestamptz,
  last_attempt_at timestamptz,
  error_tag text,
  error_message text,
  request text CHECK (request IN ('retry', 'drop')),
  requested_at timestamptz,
  requested_by text,
  PRIMARY KEY (projection_name, position)
)`,
  `CREATE INDEX IF NOT EXISTS ${quoted(`idx_${names.parkedEvents}_key`)} ON ${
    qualified(names, "parkedEvents")
  } (projection_name, key_hash, position)`,
  `CREATE INDEX IF NOT EXISTS ${quoted(`idx_${names.parkedEvents}_request`)} ON ${
    qualified(names, "parkedEvents")
  } (projection_name, position) WHERE request IS NOT NULL`,

  `-- Written last, so that a recorded version means that all tables exist.
INSERT INTO ${qualified(names, "meta")} AS m (schema_version, hash_answers, events_table)
VALUES (${schemaVersion}, ${literal(JSON.stringify(hashAnswers))}, ${literal(recorded(names))})
ON CONFLICT (singleton) DO UPDATE SET schema_version = EXCLUDED.schema_version,
  events_table = coalesce(m.events_table, EXCLUDED.events_table)
WHERE m.schema_version < EXCLUDED.schema_version OR m.events_table IS NULL`
]

/**
 * Drops what `up` created and nothing else: without the meta table, the tables belong to other software and are kept.
 */
export const down = (names: TableNames): ReadonlyArray<string> => [
  `-- Keeps the events. Also keeps tables of other software with these names: they have no meta table.
${
    block(`BEGIN
  PERFORM ${lock};
  IF to_regclass(${literal(qualified(names, "meta"))}) IS NOT NULL THEN
${
      owned.map((key) => `    DROP ${sequences.has(key) ? "SEQUENCE" : "TABLE"} IF EXISTS ${qualified(names, key)};`)
        .join(
          "\n"
        )
    }
  END IF;
END`)
  }`
]
