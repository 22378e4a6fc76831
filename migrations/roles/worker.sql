-- A process that runs workers. Its handlers also need privileges on their read models, and if they append, those of
-- appender.sql.
--
--   psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -v role=NAME -f worker.sql
--
-- The role must exist and be able to connect. Without psql, replace :"role" by the quoted name of the role.
-- Run the file after the migrations, as the owner of the tables. Replace their names and public if they differ.

-- Resolves the names of the tables.
GRANT USAGE ON SCHEMA public TO :"role";

-- Read when the stores open.
GRANT SELECT ON orchestrator_meta TO :"role";

-- Handed to the handlers.
GRANT SELECT ON events TO :"role";

-- Detects positions that were reset behind the events. Without it, workers run and this is not checked.
GRANT SELECT ON SEQUENCE events_global_position_seq TO :"role";

-- Formed, displayed as active or superseded, and pruned.
GRANT SELECT, INSERT, UPDATE, DELETE ON orchestrator_generations TO :"role";

-- Registrations; those that stopped a week ago are deleted.
GRANT SELECT, INSERT, UPDATE, DELETE ON orchestrator_workers TO :"role";

-- Renewed; deleted with the registration.
GRANT SELECT, INSERT, UPDATE, DELETE ON orchestrator_heartbeats TO :"role";

-- Progress. Ranges that are cut are inserted; ranges that are merged are deleted.
GRANT SELECT, INSERT, UPDATE, DELETE ON orchestrator_checkpoints TO :"role";

-- Events that cannot be handled, and those that queue behind them.
GRANT SELECT, INSERT, UPDATE, DELETE ON orchestrator_parked_events TO :"role";

-- Numbers the registrations.
GRANT USAGE ON SEQUENCE orchestrator_incarnations TO :"role";

-- Numbers the presence locks of processes.
GRANT USAGE ON SEQUENCE orchestrator_presence_keys TO :"role";
