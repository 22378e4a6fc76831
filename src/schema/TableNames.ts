/**
 * Names of the tables and sequences, and of their schemas.
 *
 * @since 0.1.0
 */
import * as Result from "effect/Result"
import { InvalidSettings } from "./Errors.ts"

/**
 * Names as the database stores them: neither quoted nor qualified.
 *
 * @category models
 * @since 0.1.0
 */
export interface TableNames {
  /** The schema of the orchestrator's tables; if undefined, the connection's `search_path` determines it. */
  readonly schema: string | undefined
  /** The schema of `events` and `aggregateHeads`; if undefined, the connection's `search_path` determines it. */
  readonly eventStoreSchema: string | undefined
  readonly generations: string
  readonly workers: string
  readonly heartbeats: string
  readonly checkpoints: string
  /** Events that projections have parked. */
  readonly parkedEvents: string
  readonly meta: string
  /** The sequence from which incarnations are drawn. */
  readonly incarnations: string
  /** The sequence from which each process draws the key of its presence lock. */
  readonly presenceKeys: string
  readonly events: string
  readonly aggregateHeads: string
  /** The schemas in which the tables were found; `qualified` adds them to the names. */
  readonly located?: { readonly [K in TableKey]?: string } | undefined
}

/**
 * The key of a table or sequence in `tables`.
 *
 * @category models
 * @since 0.1.0
 */
export type TableKey =
  | "generations"
  | "workers"
  | "heartbeats"
  | "checkpoints"
  | "parkedEvents"
  | "meta"
  | "incarnations"
  | "presenceKeys"
  | "events"
  | "aggregateHeads"

/**
 * Names that can be configured. Absent ones keep their defaults.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options {
  readonly schema?: string | undefined
  /** The schema of the event store's tables, if it differs from `schema`. */
  readonly eventStoreSchema?: string | undefined
  readonly tables?: { readonly [K in TableKey]?: string | undefined } | undefined
}

/**
 * @category constructors
 * @since 0.1.0
 */
export const defaults: TableNames = {
  schema: undefined,
  eventStoreSchema: undefined,
  generations: "orchestrator_generations",
  workers: "orchestrator_workers",
  heartbeats: "orchestrator_heartbeats",
  checkpoints: "orchestrator_checkpoints",
  parkedEvents: "orchestrator_parked_events",
  meta: "orchestrator_meta",
  incarnations: "orchestrator_incarnations",
  presenceKeys: "orchestrator_presence_keys",
  events: "events",
  aggregateHeads: "aggregate_heads"
}

/**
 * The keys of all tables and sequences.
 *
 * @category constructors
 * @since 0.1.0
 */
export const keys: ReadonlyArray<TableKey> = Object.keys(defaults).filter((key): key is TableKey =>
  key !== "schema" && key !== "eventStoreSchema"
)

/**
 * The maximum length of a table's name, in bytes. PostgreSQL truncates identifiers at 63 bytes, and the longest name
 * that is derived from a table's name (`idx_…_correlation`) must remain distinct from its siblings.
 *
 * @category constructors
 * @since 0.1.0
 */
export const maximumTableLength = 63 - "idx__correlation".length

const maximumSchemaLength = 63

const identifier = /^[A-Za-z_][A-Za-z0-9_$]*$/

/**
 * Fills in the defaults and validates the names. They must be plain identifiers (upper case is kept, so they are always
 * quoted), short enough, and distinct from one another.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (options: Options = {}): Result.Result<TableNames, InvalidSettings> => {
  const invalid = (setting: string, problem: string) => Result.fail(new InvalidSettings({ setting, problem }))
  const check = (name: unknown, maximum: number): string | undefined => {
    if (typeof name !== "string" || !identifier.test(name)) {
      return `${
        JSON.stringify(name)
      } is not a plain identifier. Use letters, digits, "_" and "$", beginning with a letter or "_"; the schema is a separate setting.`
    }
    if (name.length > maximum) {
      return `"${name}" has ${name.length} characters, at most ${maximum} are possible. Shorten it.`
    }
    if (maximum === maximumSchemaLength && /^pg_/i.test(name)) {
      return `"${name}" begins with "pg_", which PostgreSQL reserves. Choose another name.`
    }
    return undefined
  }
  for (const setting of ["schema", "eventStoreSchema"] as const) {
    if (options[setting] === undefined) continue
    const problem = check(options[setting], maximumSchemaLength)
    if (problem !== undefined) return invalid(setting, problem)
  }
  const chosen = new Map<string, string | undefined>(Object.entries(options.tables ?? {}))
  for (const key of chosen.keys()) {
    if (!(keys as ReadonlyArray<string>).includes(key)) {
      return invalid(`tables.${key}`, `There is no such table. The tables are ${keys.join(", ")}.`)
    }
  }
  const seen = new Map<string, TableKey>()
  for (const key of keys) {
    const name = chosen.get(key) ?? defaults[key]
    const problem = check(name, maximumTableLength)
    if (problem !== undefined) return invalid(`tables.${key}`, problem)
    const other = seen.get(name)
    if (other !== undefined) {
      return invalid(`tables.${key}`, `"${name}" is the name of ${other} too. Give each table a name of its own.`)
    }
    seen.set(name, key)
  }
  const name = (key: TableKey): string => chosen.get(key) ?? defaults[key]
  return Result.succeed({
    schema: options.schema,
    eventStoreSchema: options.eventStoreSchema ?? options.schema,
    generations: name("generations"),
    workers: name("workers"),
    heartbeats: name("heartbeats"),
    checkpoints: name("checkpoints"),
    parkedEvents: name("parkedEvents"),
    meta: name("meta"),
    incarnations: name("incarnations"),
    presenceKeys: name("presenceKeys"),
    events: name("events"),
    aggregateHeads: name("aggregateHeads")
  })
}

/**
 * Returns an identifier quoted for SQL.
 *
 * @category utils
 * @since 0.1.0
 */
export const quoted = (name: string): string => `"${name.replaceAll("\"", "\"\"")}"`

/**
 * The schema of a table or sequence; undefined if the `search_path` determines it.
 *
 * @category utils
 * @since 0.1.0
 */
export const schemaOf = (names: TableNames, key: TableKey): string | undefined =>
  names.located?.[key] ?? (key === "events" || key === "aggregateHeads" ? names.eventStoreSchema : names.schema)

/**
 * Returns the name of a table or sequence for SQL: `"schema"."table"`, or `"table"` without a schema.
 *
 * @category utils
 * @since 0.1.0
 */
export const qualified = (names: TableNames, key: TableKey): string => {
  const schema = schemaOf(names, key)
  return schema === undefined ? quoted(names[key]) : `${quoted(schema)}.${quoted(names[key])}`
}

/** The maximum length of a channel's name in PostgreSQL, in bytes. */
const maximumChannelLength = 63

const channels = { events: "pupsourcing_events", generations: "pupsourcing_control" }

/**
 * The channel of LISTEN and NOTIFY for changes of a table: `pupsourcing_events` for `events`, and `pupsourcing_control`
 * for the orchestrator's generations and workers.
 *
 * **Details**
 *
 * If the schema is not `public` or the name is not the default, `_`, the schema, `_` and the table's name are appended.
 * Characters other than ASCII letters, digits, `_` and `$` are replaced by `_`, and the name is truncated after 63
 * characters.
 *
 * A channel depends on names only, so other writers can notify it, and it does not change when tables are dropped and
 * created again. Two sets of tables whose channels have the same name wake each other unnecessarily, which is harmless.
 *
 * @category utils
 * @since 0.1.0
 */
export const channel = (names: TableNames, key: keyof typeof channels, schema: string): string =>
  schema === "public" && names[key] === defaults[key]
    ? channels[key]
    : `${channels[key]}_${schema}_${names[key]}`.replaceAll(/[^A-Za-z0-9_$]/g, "_").slice(0, maximumChannelLength)
