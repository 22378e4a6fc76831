-- The orchestrator's tables: generations, workers, heartbeats, checkpoints.

-- Waits for other migrations. Refuses tables that other software or a newer version created.
DO $do$
DECLARE
  found text;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('pupsourcing-orchestrator/migrations', 0));
  SELECT string_agg(s.name, ', ') INTO found
  FROM (
    SELECT t.key, t.name
    FROM (VALUES ('generations', '"orchestrator_generations"'), ('workers', '"orchestrator_workers"'), ('heartbeats', '"orchestrator_heartbeats"'), ('checkpoints', '"orchestrator_checkpoints"'), ('parkedEvents', '"orchestrator_parked_events"'), ('incarnations', '"orchestrator_incarnations"'), ('presenceKeys', '"orchestrator_presence_keys"'), ('meta', '"orchestrator_meta"')) AS t (key, name)
    WHERE to_regclass(t.name) IS NOT NULL AND to_regclass('"orchestrator_meta"') IS NULL
  ) AS s;
  IF found IS NOT NULL THEN
    RAISE EXCEPTION 'these tables exist, but pupsourcing-orchestrator did not create them: %', found
      USING ERRCODE = 'duplicate_table', HINT = 'Choose other names for them. If Go''s pupsourcing-orchestrator created them and no longer runs, drop them: they contain no progress.';
  END IF;
  IF to_regclass('"orchestrator_meta"') IS NOT NULL THEN
    SELECT schema_version::text INTO found FROM "orchestrator_meta" WHERE schema_version > 3;
    IF found IS NOT NULL THEN
      RAISE EXCEPTION 'schema version % found; this migration creates version 3', found
        USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Use the migrations of a newer pupsourcing-orchestrator.';
    END IF;
    SELECT CASE WHEN to_jsonb(m) ->> 'events_table' <> 'events' AND NOT coalesce(to_regclass(
          CASE WHEN to_jsonb(m) ->> 'events_table' LIKE '"%' THEN to_jsonb(m) ->> 'events_table'
            ELSE '' || quote_ident(to_jsonb(m) ->> 'events_table') END
        ) = to_regclass('"events"'), false) THEN to_jsonb(m) ->> 'events_table' END INTO found FROM "orchestrator_meta" AS m;
    IF found IS NOT NULL THEN
      RAISE EXCEPTION 'these tables record the progress for the events table %, not for events', found
        USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Give each table of events its own.';
    END IF;
  END IF;
END
$do$;

-- One row: the version of these tables, known answers of the hash that divides the events, and the events table whose
-- progress they record, because positions in another table have a different meaning.
CREATE TABLE IF NOT EXISTS "orchestrator_meta" (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  schema_version integer NOT NULL,
  hash_answers jsonb NOT NULL,
  events_table text
);

-- For tables that were created without this column.
ALTER TABLE "orchestrator_meta" ADD COLUMN IF NOT EXISTS events_table text;

-- Every registration of a worker draws its incarnation.
CREATE SEQUENCE IF NOT EXISTS "orchestrator_incarnations" AS bigint CACHE 1;

-- Keys of the advisory locks that live workers hold.
CREATE SEQUENCE IF NOT EXISTS "orchestrator_presence_keys" AS integer MINVALUE 1 MAXVALUE 2147483647 CACHE 1 CYCLE;

-- The workers that share the work. A generation never changes; its state is for people to read.
CREATE TABLE IF NOT EXISTS "orchestrator_generations" (
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
);

-- One row for each worker; partition_key -1 means none. A stopped worker without evicted_by has left.
CREATE TABLE IF NOT EXISTS "orchestrator_workers" (
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
);

-- For tables of version 1.
ALTER TABLE "orchestrator_workers" ADD COLUMN IF NOT EXISTS evicted_by text;

-- Separate from the workers, because heartbeats are written continuously. With free space on each page and no index on
-- the time, updates stay on their page and change no index.
CREATE TABLE IF NOT EXISTS "orchestrator_heartbeats" (
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
);

-- Progress: the rows of a projection tile the space of hashes, 0 to 4294967296.
CREATE TABLE IF NOT EXISTS "orchestrator_checkpoints" (
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
);

-- For tables of version 1.
ALTER TABLE "orchestrator_checkpoints" ADD COLUMN IF NOT EXISTS halted_incarnation bigint;

-- For tables of version 2.
ALTER TABLE "orchestrator_checkpoints" ADD COLUMN IF NOT EXISTS halted_request text
  CHECK (halted_request IN ('retry', 'skip'));

CREATE INDEX IF NOT EXISTS "idx_orchestrator_checkpoints_replica" ON "orchestrator_checkpoints" (replica_set);

-- Events that a handler could not handle, and later events with the same key, which queue behind them (attempts 0). Each
-- belongs to the range of its projection that contains key_hash. A request marks it for the worker that owns the range.
CREATE TABLE IF NOT EXISTS "orchestrator_parked_events" (
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
);

CREATE INDEX IF NOT EXISTS "idx_orchestrator_parked_events_key" ON "orchestrator_parked_events" (projection_name, key_hash, position);

CREATE INDEX IF NOT EXISTS "idx_orchestrator_parked_events_request" ON "orchestrator_parked_events" (projection_name, position) WHERE request IS NOT NULL;

-- Written last, so that a recorded version means that all tables exist.
INSERT INTO "orchestrator_meta" AS m (schema_version, hash_answers, events_table)
VALUES (3, '{"":2817148525,"user-1":3736142208,"0b6cf0a0-5f5c-4d5b-9a63-1f6f2d0c9e77":852620637}', 'events')
ON CONFLICT (singleton) DO UPDATE SET schema_version = EXCLUDED.schema_version,
  events_table = coalesce(m.events_table, EXCLUDED.events_table)
WHERE m.schema_version < EXCLUDED.schema_version OR m.events_table IS NULL;
