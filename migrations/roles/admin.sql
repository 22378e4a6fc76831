-- A role that runs the migrations. It owns the tables that it creates, and so may also append, run workers and read the
-- status. Run this file as the owner of the schema or as a superuser, before the migrations.
--
-- If another role owns the tables already:           GRANT that_owner TO :"role";
-- To create a schema with migrate up --schema:       GRANT CREATE ON DATABASE this_database TO :"role";
--
--   psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -v role=NAME -f admin.sql
--
-- The role must exist and be able to connect. Without psql, replace :"role" by the quoted name of the role.
-- Replace public if the tables are in another schema.

-- The tables are created in it.
GRANT USAGE, CREATE ON SCHEMA public TO :"role";
