-- The event store, as pupsourcing creates it: events and aggregate heads.

-- Creates what is missing, changes nothing that exists, and refuses tables that this library cannot work with.
DO $do$
DECLARE
  found text;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('pupsourcing-orchestrator/migrations', 0));
  IF to_regclass('"events"') IS NULL THEN
    CREATE TABLE "events" (
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
    CREATE INDEX "idx_events_aggregate"
      ON "events" (bounded_context, aggregate_type, aggregate_id, aggregate_version);
    CREATE INDEX "idx_events_event_type"
      ON "events" (event_type, global_position);
    CREATE INDEX "idx_events_correlation"
      ON "events" (correlation_id) WHERE correlation_id IS NOT NULL;
  END IF;
  SELECT string_agg(format('%s: %s is %s instead of %s', d."table", d.subject, d.found, d.expected), '; ') INTO found
  FROM (
    SELECT c.tab AS "table", c.col AS subject,
      CASE WHEN a.attnum IS NULL THEN 'nothing'
        ELSE format_type(a.atttypid, a.atttypmod)
          || CASE WHEN a.attnotnull THEN ' NOT NULL' ELSE '' END
          || CASE WHEN a.atthasdef OR a.attidentity <> '' THEN ' with a default' ELSE '' END
      END AS found,
      c.described AS expected, c.blocking OR a.attnum IS NULL AS blocking
    FROM (VALUES
      ('"events"', 'global_position', ARRAY['bigint'], true, true, true, 'bigint NOT NULL with a default'),
      ('"events"', 'bounded_context', ARRAY['text', 'character varying'], true, false, true, 'text NOT NULL'),
      ('"events"', 'aggregate_type', ARRAY['text', 'character varying'], true, false, true, 'text NOT NULL'),
      ('"events"', 'aggregate_id', ARRAY['text', 'character varying'], true, false, true, 'text NOT NULL'),
      ('"events"', 'aggregate_version', ARRAY['bigint'], true, false, true, 'bigint NOT NULL'),
      ('"events"', 'event_id', ARRAY['uuid'], true, false, true, 'uuid NOT NULL'),
      ('"events"', 'event_type', ARRAY['text', 'character varying'], true, false, true, 'text NOT NULL'),
      ('"events"', 'event_version', ARRAY['integer'], true, false, true, 'integer NOT NULL'),
      ('"events"', 'payload', ARRAY['bytea'], true, false, true, 'bytea NOT NULL'),
      ('"events"', 'trace_id', ARRAY['text', 'character varying'], false, false, false, 'text'),
      ('"events"', 'correlation_id', ARRAY['text', 'character varying'], false, false, false, 'text'),
      ('"events"', 'causation_id', ARRAY['text', 'character varying'], false, false, false, 'text'),
      ('"events"', 'metadata', ARRAY['jsonb'], false, false, true, 'jsonb'),
      ('"events"', 'created_at', ARRAY['timestamp with time zone'], true, true, true, 'timestamp with time zone NOT NULL with a default'),
      ('"aggregate_heads"', 'bounded_context', ARRAY['text', 'character varying'], true, false, true, 'text NOT NULL'),
      ('"aggregate_heads"', 'aggregate_type', ARRAY['text', 'character varying'], true, false, true, 'text NOT NULL'),
      ('"aggregate_heads"', 'aggregate_id', ARRAY['text', 'character varying'], true, false, true, 'text NOT NULL'),
      ('"aggregate_heads"', 'aggregate_version', ARRAY['bigint'], true, false, true, 'bigint NOT NULL'),
      ('"aggregate_heads"', 'updated_at', ARRAY['timestamp with time zone'], true, true, true, 'timestamp with time zone NOT NULL with a default')
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
      ('"events"', ARRAY['global_position'], 'global_position'),
      ('"events"', ARRAY['event_id'], 'event_id'),
      ('"events"', ARRAY['aggregate_id', 'aggregate_type', 'aggregate_version', 'bounded_context'], 'bounded_context, aggregate_type, aggregate_id, aggregate_version'),
      ('"aggregate_heads"', ARRAY['aggregate_id', 'aggregate_type', 'bounded_context'], 'bounded_context, aggregate_type, aggregate_id')
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
    FROM (VALUES ('"events"'), ('"aggregate_heads"')) AS t (tab)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = to_regclass(t.tab) AND a.attnum > 0 AND NOT a.attisdropped
    WHERE a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''
      AND (t.tab, a.attname::text) NOT IN (
        ('"events"', 'global_position'),
        ('"events"', 'bounded_context'),
        ('"events"', 'aggregate_type'),
        ('"events"', 'aggregate_id'),
        ('"events"', 'aggregate_version'),
        ('"events"', 'event_id'),
        ('"events"', 'event_type'),
        ('"events"', 'event_version'),
        ('"events"', 'payload'),
        ('"events"', 'trace_id'),
        ('"events"', 'correlation_id'),
        ('"events"', 'causation_id'),
        ('"events"', 'metadata'),
        ('"events"', 'created_at'),
        ('"aggregate_heads"', 'bounded_context'),
        ('"aggregate_heads"', 'aggregate_type'),
        ('"aggregate_heads"', 'aggregate_id'),
        ('"aggregate_heads"', 'aggregate_version'),
        ('"aggregate_heads"', 'updated_at')
      )
    UNION ALL
    SELECT t.tab, a.attname::text, format('compared by the nondeterministic collation %s', o.oid::regcollation),
      'a deterministic collation, because equal texts must have equal hashes', true
    FROM (VALUES
      ('"events"', 'bounded_context'),
      ('"events"', 'aggregate_type'),
      ('"events"', 'aggregate_id'),
      ('"events"', 'event_type'),
      ('"aggregate_heads"', 'bounded_context'),
      ('"aggregate_heads"', 'aggregate_type'),
      ('"aggregate_heads"', 'aggregate_id'),
      ('"orchestrator_generations"', NULL),
      ('"orchestrator_workers"', NULL),
      ('"orchestrator_heartbeats"', NULL),
      ('"orchestrator_checkpoints"', NULL),
      ('"orchestrator_parked_events"', NULL),
      ('"orchestrator_incarnations"', NULL),
      ('"orchestrator_presence_keys"', NULL),
      ('"orchestrator_meta"', NULL)
    ) AS t (tab, col)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = to_regclass(t.tab) AND a.attnum > 0 AND NOT a.attisdropped
      AND a.attname = coalesce(t.col, a.attname)
    JOIN pg_catalog.pg_collation o ON o.oid = a.attcollation AND NOT o.collisdeterministic
  ) AS d
  WHERE d.blocking;
  IF found IS NOT NULL THEN
    RAISE EXCEPTION 'the tables differ from what this library needs: %', found
      USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Change the tables, or choose other names for them.';
  END IF;
  IF to_regclass('"aggregate_heads"') IS NULL THEN
    CREATE TABLE "aggregate_heads" (
      bounded_context text NOT NULL,
      aggregate_type text NOT NULL,
      aggregate_id text NOT NULL,
      aggregate_version bigint NOT NULL,
      updated_at timestamptz NOT NULL DEFAULT now(),
      PRIMARY KEY (bounded_context, aggregate_type, aggregate_id)
    );
    CREATE INDEX "idx_aggregate_heads_updated"
      ON "aggregate_heads" (updated_at);
    INSERT INTO "aggregate_heads"
      (bounded_context, aggregate_type, aggregate_id, aggregate_version, updated_at)
    SELECT bounded_context, aggregate_type, aggregate_id, max(aggregate_version), max(created_at)
    FROM "events"
    GROUP BY bounded_context, aggregate_type, aggregate_id;
  END IF;
END
$do$;
