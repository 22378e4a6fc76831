/**
 * Finds the privileges that the current role lacks for a migration. Each query returns one row per missing privilege,
 * named as in GRANT.
 */
import { qualified, type TableKey, type TableNames } from "../../../schema/TableNames.ts"
import { literal, textArray } from "./Sql.ts"

const role = "current_user::text AS role"

/** The privilege to resolve names in the schemas; without it even `to_regclass` fails. */
export const toUseSchemas = (names: TableNames): string =>
  `SELECT ${role}, format('USAGE on schema %I', n.nspname) AS privilege FROM pg_namespace AS n
WHERE n.nspname = ANY (${
    textArray([names.schema, names.eventStoreSchema].filter((name) => name !== undefined))
  }::name[]) AND NOT has_schema_privilege(n.oid, 'USAGE')`

/** The privilege to read a table, if the table exists. */
export const toRead = (names: TableNames, key: TableKey): string =>
  `SELECT ${role}, format('SELECT on table %s', t.oid::regclass) AS privilege
FROM (VALUES (to_regclass(${literal(qualified(names, key))}))) AS t (oid)
WHERE t.oid IS NOT NULL AND NOT has_table_privilege(t.oid, 'SELECT')`

/** The privilege to create tables: in an existing schema, or together with a new schema. */
export const toCreate = (schemaName: string | undefined): string => {
  const schema = schemaName === undefined ? "current_schema()" : literal(schemaName)
  return `SELECT ${role}, missing.privilege
FROM (VALUES (${schema}::name)) AS wanted (schema)
LEFT JOIN pg_namespace AS n ON n.nspname = wanted.schema
CROSS JOIN LATERAL (
  SELECT format('CREATE on schema %I', n.nspname)
  WHERE n.oid IS NOT NULL AND NOT has_schema_privilege(n.oid, 'CREATE')
  UNION ALL
  SELECT format('CREATE on database %I', current_database())
  WHERE n.oid IS NULL AND wanted.schema IS NOT NULL AND NOT has_database_privilege(current_database(), 'CREATE')
  UNION ALL
  SELECT format('USAGE on an existing schema of its search_path (%s)', current_setting('search_path'))
  WHERE wanted.schema IS NULL
) AS missing (privilege)`
}

/** The privilege to change or drop tables: existing tables must belong to the role. */
export const toChange = (names: TableNames, keys: ReadonlyArray<TableKey>): string =>
  `SELECT ${role}, format('ownership of %s', c.oid::regclass) AS privilege
FROM pg_class AS c
WHERE c.oid IN (${keys.map((key) => `to_regclass(${literal(qualified(names, key))})`).join(", ")})
  AND NOT pg_has_role(c.relowner, 'USAGE')
ORDER BY c.oid`
