-- A process that only reads the status and parked events: "pupsourcing-orchestrator status", "parked list",
-- Projections.status and Projections.parked. To request a retry, a removal or a skip, use worker.sql.
--
-- The status lists the transactions for which readers wait. PostgreSQL hides when a transaction of another role began,
-- so this is absent unless the role may read it:
--
--   GRANT pg_read_all_stats TO :"role";
--
--   psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -v role=NAME -f status.sql
--
-- The role must exist and be able to connect. Without psql, replace :"role" by the quoted name of the role.
-- Run the file after the migrations, as the owner of the tables. Replace their names and public if they differ.

-- Resolves the names of the tables.
GRANT USAGE ON SCHEMA public TO :"role";

-- Read when the stores open.
GRANT SELECT ON orchestrator_meta TO :"role";

-- The newest generation of each replica set.
GRANT SELECT ON orchestrator_generations TO :"role";

-- The registered workers.
GRANT SELECT ON orchestrator_workers TO :"role";

-- When each worker last answered.
GRANT SELECT ON orchestrator_heartbeats TO :"role";

-- Position, owner and halt of each range.
GRANT SELECT ON orchestrator_checkpoints TO :"role";

-- The head, and the lag of each range.
GRANT SELECT ON events TO :"role";

-- Counted, and listed by "parked list".
GRANT SELECT ON orchestrator_parked_events TO :"role";
