/** Building blocks of the migrations' statements. Names have been validated by `TableNames.make`. */
import { quoted } from "../../../schema/TableNames.ts"

/**
 * A text as an SQL literal, as the server's `quote_literal` writes it: the meaning of a backslash outside of `E''`
 * depends on the setting `standard_conforming_strings`.
 */
export const literal = (text: string): string => {
  const quoted = `'${text.replaceAll("'", "''")}'`
  return text.includes("\\") ? `E${quoted.replaceAll("\\", "\\\\")}` : quoted
}

/** A list of texts as an SQL array. */
export const textArray = (texts: ReadonlyArray<string>): string => `ARRAY[${texts.map(literal).join(", ")}]`

/** Indents all lines but the first, for a block inside another one. */
export const indented = (text: string, by: number): string => text.replaceAll(/\n(?=.)/g, `\n${" ".repeat(by)}`)

/**
 * A PL/pgSQL block as one statement. Names may contain "$", so dollar quotes are chosen that the body does not contain.
 */
export const block = (body: string): string => {
  let tag = "$do$"
  for (let n = 1; body.includes(tag); n++) tag = `$do${n}$`
  return `DO ${tag}\n${body}\n${tag}`
}

/**
 * PL/pgSQL that creates a missing schema. `CREATE SCHEMA IF NOT EXISTS` needs the privilege to create schemas even if
 * the schema exists.
 */
export const createSchema = (schema: string | undefined): string =>
  schema === undefined ? "" : `
  IF to_regnamespace(${literal(quoted(schema))}) IS NULL THEN
    CREATE SCHEMA ${quoted(schema)};
  END IF;`

/** SQL: waits for other migrations and holds the lock until the transaction ends. */
export const lock = "pg_advisory_xact_lock(hashtextextended('pupsourcing-orchestrator/migrations', 0))"
