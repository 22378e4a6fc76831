/**
 * Finds the schemas of the tables. Temporary tables of a session are ignored, although they come before all schemas in
 * the resolution of unqualified names.
 */
import * as TableNames from "../../schema/TableNames.ts"
import { literal } from "./migrations/Sql.ts"

/**
 * SQL: the schemas in which the session resolves unqualified names, as an array, without the schema of its temporary
 * tables. Schemas of the `search_path` on which the role lacks USAGE come last, so that the first statement on a table
 * that is only there fails with that reason.
 */
export const searchPath = `ARRAY(
    SELECT s.name FROM pg_catalog.unnest(pg_catalog.current_schemas(false)::text[]) WITH ORDINALITY AS s (name, place)
    JOIN pg_catalog.pg_namespace n ON n.nspname = s.name AND n.oid <> pg_catalog.pg_my_temp_schema()
    ORDER BY s.place
  ) || ARRAY(
    SELECT n.nspname::text
    FROM pg_catalog.string_to_table(pg_catalog.current_setting('search_path'), ',') WITH ORDINALITY AS s (name, place)
    JOIN pg_catalog.pg_namespace n
      ON n.nspname = CASE pg_catalog.btrim(s.name, ' "') WHEN '$user' THEN current_user ELSE pg_catalog.btrim(s.name, ' "') END
    WHERE NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
    ORDER BY s.place
  )`

/**
 * SQL: the schema of each table and sequence as a JSON array, in the order of `TableNames.keys`; null if it does not
 * exist. `path` is the array of schemas for tables whose schema is not configured.
 */
export const find = (names: TableNames.TableNames, path: string): string =>
  `(SELECT json_agg((
      SELECT n.nspname FROM unnest(t.path) WITH ORDINALITY AS s (name, place)
      JOIN pg_catalog.pg_namespace n ON n.nspname = s.name
      JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.name
      ORDER BY s.place LIMIT 1
    ) ORDER BY t.place) FROM (VALUES ${
    TableNames.keys.map((key, place) => {
      const schema = TableNames.schemaOf(names, key)
      return `(${place}, ${literal(names[key])}, ${schema === undefined ? path : `ARRAY[${literal(schema)}]`})`
    }).join(", ")
  }) AS t (place, name, path))`

/** The names with the schemas that `find` has found; `otherwise` supplies the schema of tables that do not exist. */
export const locate = (
  names: TableNames.TableNames,
  found: ReadonlyArray<string | null>,
  otherwise?: string | null
): TableNames.TableNames => ({
  ...names,
  located: Object.fromEntries(TableNames.keys.flatMap((key, index) => {
    const schema = found[index] ?? TableNames.schemaOf(names, key) ?? otherwise
    return typeof schema === "string" ? [[key, schema]] : []
  }))
})
