-- The event store, as pupsourcing creates it: events and aggregate heads.

-- Fails while the table contains events.
DO $do$
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('pupsourcing-orchestrator/migrations', 0));
  IF to_regclass('"events"') IS NOT NULL THEN
    LOCK TABLE "events" IN ACCESS EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM "events") THEN
      RAISE EXCEPTION 'the table of events is not empty'
        USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Events are never dropped by a migration.';
    END IF;
  END IF;
  DROP TABLE IF EXISTS "events";
  DROP TABLE IF EXISTS "aggregate_heads";
END
$do$;
