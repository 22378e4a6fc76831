-- The orchestrator's tables: generations, workers, heartbeats, checkpoints.

-- Keeps the events. Also keeps tables of other software with these names: they have no meta table.
DO $do$
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended('pupsourcing-orchestrator/migrations', 0));
  IF to_regclass('"orchestrator_meta"') IS NOT NULL THEN
    DROP TABLE IF EXISTS "orchestrator_generations";
    DROP TABLE IF EXISTS "orchestrator_workers";
    DROP TABLE IF EXISTS "orchestrator_heartbeats";
    DROP TABLE IF EXISTS "orchestrator_checkpoints";
    DROP TABLE IF EXISTS "orchestrator_parked_events";
    DROP SEQUENCE IF EXISTS "orchestrator_incarnations";
    DROP SEQUENCE IF EXISTS "orchestrator_presence_keys";
    DROP TABLE IF EXISTS "orchestrator_meta";
  END IF;
END
$do$;
