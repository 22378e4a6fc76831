-- A process that appends events and reads streams.
--
--   psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -v role=NAME -f appender.sql
--
-- The role must exist and be able to connect. Without psql, replace :"role" by the quoted name of the role.
-- Run the file after the migrations, as the owner of the tables. Replace their names and public if they differ.

-- Resolves the names of the tables.
GRANT USAGE ON SCHEMA public TO :"role";

-- Read when the stores open.
GRANT SELECT ON orchestrator_meta TO :"role";

-- Read to check the expected version, and appended to.
GRANT SELECT, INSERT ON events TO :"role";

-- One row for each aggregate, which serializes its appends.
GRANT SELECT, INSERT, UPDATE ON aggregate_heads TO :"role";

-- Positions are drawn from it. Readers of the settled position read its last value.
GRANT USAGE, SELECT ON SEQUENCE events_global_position_seq TO :"role";
