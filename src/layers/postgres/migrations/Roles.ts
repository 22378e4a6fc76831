/**
 * The privileges of the roles under which processes use the tables: the files in `migrations/roles`, and the look-up of what
 * a role lacks.
 */
import * as TableNames from "../../../schema/TableNames.ts"
import { literal } from "./Sql.ts"

/** The roles that do not own the tables. */
export type Role = "appender" | "status" | "worker"

type On = TableNames.TableKey | "positions" | "schema"

interface Grant {
  /** `positions` is the sequence of the events' positions. */
  readonly on: On
  readonly privileges: ReadonlyArray<string>
  /** What they are needed for. */
  readonly why: string
}

const opening: ReadonlyArray<Grant> = [
  { on: "schema", privileges: ["USAGE"], why: "Resolves the names of the tables." },
  { on: "meta", privileges: ["SELECT"], why: "Read when the stores open." }
]

/** No privilege is superfluous: `test/layers/postgres/Roles.test.ts` revokes one at a time. */
export const grants: Readonly<Record<Role, ReadonlyArray<Grant>>> = {
  appender: [
    ...opening,
    { on: "events", privileges: ["SELECT", "INSERT"], why: "Read to check the expected version, and appended to." },
    {
      on: "aggregateHeads",
      privileges: ["SELECT", "INSERT", "UPDATE"],
      why: "One row for each aggregate, which serializes its appends."
    },
    {
      on: "positions",
      privileges: ["USAGE", "SELECT"],
      why: "Positions are drawn from it. Readers of the settled position read its last value."
    }
  ],
  worker: [
    ...opening,
    { on: "events", privileges: ["SELECT"], why: "Handed to the handlers." },
    {
      on: "positions",
      privileges: ["SELECT"],
      why: "Detects positions that were reset behind the events. Without it, workers run and this is not checked."
    },
    {
      on: "generations",
      privileges: ["SELECT", "INSERT", "UPDATE", "DELETE"],
      why: "Formed, displayed as active or superseded, and pruned."
    },
    {
      on: "workers",
      privileges: ["SELECT", "INSERT", "UPDATE", "DELETE"],
      why: "Registrations; those that stopped a week ago are deleted."
    },
    {
      on: "heartbeats",
      privileges: ["SELECT", "INSERT", "UPDATE", "DELETE"],
      why: "Renewed; deleted with the registration."
    },
    {
      on: "checkpoints",
      privileges: ["SELECT", "INSERT", "UPDATE", "DELETE"],
      why: "Progress. Ranges that are cut are inserted; ranges that are merged are deleted."
    },
    {
      on: "parkedEvents",
      privileges: ["SELECT", "INSERT", "UPDATE", "DELETE"],
      why: "Events that cannot be handled, and those that queue behind them."
    },
    { on: "incarnations", privileges: ["USAGE"], why: "Numbers the registrations." },
    { on: "presenceKeys", privileges: ["USAGE"], why: "Numbers the presence locks of processes." }
  ],
  status: [
    ...opening,
    { on: "generations", privileges: ["SELECT"], why: "The newest generation of each replica set." },
    { on: "workers", privileges: ["SELECT"], why: "The registered workers." },
    { on: "heartbeats", privileges: ["SELECT"], why: "When each worker last answered." },
    { on: "checkpoints", privileges: ["SELECT"], why: "Position, owner and halt of each range." },
    { on: "events", privileges: ["SELECT"], why: "The head, and the lag of each range." },
    { on: "parkedEvents", privileges: ["SELECT"], why: "Counted, and listed by \"parked list\"." }
  ]
}

const descriptions: Readonly<Record<Role | "admin", ReadonlyArray<string>>> = {
  appender: ["A process that appends events and reads streams."],
  worker: [
    "A process that runs workers. Its handlers also need privileges on their read models, and if they append, those of",
    "appender.sql."
  ],
  status: [
    "A process that only reads the status and parked events: \"pupsourcing-orchestrator status\", \"parked list\",",
    "Projections.status and Projections.parked. To request a retry, a removal or a skip, use worker.sql.",
    "",
    "The status lists the transactions for which readers wait. PostgreSQL hides when a transaction of another role began,",
    "so this is absent unless the role may read it:",
    "",
    "  GRANT pg_read_all_stats TO :\"role\";"
  ],
  admin: [
    "A role that runs the migrations. It owns the tables that it creates, and so may also append, run workers and read the",
    "status. Run this file as the owner of the schema or as a superuser, before the migrations.",
    "",
    "If another role owns the tables already:           GRANT that_owner TO :\"role\";",
    "To create a schema with migrate up --schema:       GRANT CREATE ON DATABASE this_database TO :\"role\";"
  ]
}

const header = (role: Role | "admin"): ReadonlyArray<string> => [
  ...descriptions[role],
  "",
  `  psql "$DATABASE_URL" -v ON_ERROR_STOP=1 -v role=NAME -f ${role}.sql`,
  "",
  "The role must exist and be able to connect. Without psql, replace :\"role\" by the quoted name of the role.",
  ...(role === "admin" ? ["Replace public if the tables are in another schema."] : [
    "Run the file after the migrations, as the owner of the tables. Replace their names and public if they differ."
  ])
]

/** The names in the files: the defaults, found through the search path. */
const nameOf = (on: On): string =>
  on === "schema"
    ? "SCHEMA public"
    : on === "positions"
    ? "SEQUENCE events_global_position_seq"
    : `${on === "incarnations" || on === "presenceKeys" ? "SEQUENCE " : ""}${TableNames.defaults[on]}`

const grant = ({ on, privileges, why }: Grant): string =>
  `-- ${why}\nGRANT ${privileges.join(", ")} ON ${nameOf(on)} TO :"role";\n`

/** The files in `migrations/roles`. */
export const files: ReadonlyArray<{ readonly name: string; readonly content: string }> = (
  ["admin", "appender", "status", "worker"] as const
).map((role) => ({
  name: `${role}.sql`,
  content: [
    `${header(role).map((line) => `-- ${line}`.trimEnd()).join("\n")}\n`,
    ...(role === "admin"
      ? [grant({ on: "schema", privileges: ["USAGE", "CREATE"], why: "The tables are created in it." })]
      : grants[role].map(grant))
  ].join("\n")
}))

/** A privilege that the current role lacks. */
export interface Missing {
  readonly role: string
  /** As in GRANT: `INSERT on table public.orchestrator_workers`. */
  readonly privilege: string
}

/** The privileges that all of these roles need. */
const common = ([first, ...others]: ReadonlyArray<Role>) =>
  grants[first!].flatMap(({ on, privileges }) =>
    privileges.filter((privilege) =>
      others.every((role) => grants[role].some((grant) => grant.on === on && grant.privileges.includes(privilege)))
    ).map((privilege) => ({ on, privilege }))
  )

/** SQL: the oid of the sequence that the column `global_position` of table `t` owns. */
const positionsOid = `(SELECT d.objid FROM pg_catalog.pg_depend AS d
      JOIN pg_catalog.pg_class AS q ON q.oid = d.objid AND q.relkind = 'S'
      JOIN pg_catalog.pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
      WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
        AND d.refobjid = t.oid AND d.deptype IN ('a', 'i') AND a.attname = 'global_position' LIMIT 1)`

/**
 * SQL: the privileges that all of these roles need and that the current role lacks, as rows of `Missing`. It resolves
 * names in the catalog, because `regclass` needs USAGE on the schema.
 */
export const missing = (names: TableNames.TableNames, roles: ReadonlyArray<Role>): string => {
  const needed = common(roles).flatMap(({ on, privilege }) =>
    (on === "schema" ? TableNames.keys : [on === "positions" ? "events" : on]).map((key) =>
      [on, TableNames.schemaOf(names, key) ?? "", names[key], privilege].map(literal).join(", ")
    )
  )
  return `SELECT current_user::text AS role, w.privilege ||
    CASE w.kind WHEN 'schema' THEN format(' on schema %I', n.nspname)
      ELSE format(' on %s %I.%I', CASE c.relkind WHEN 'S' THEN 'sequence' ELSE 'table' END, s.nspname, c.relname)
    END AS privilege
  FROM (VALUES ${
    needed.map((row, place) => `(${place}, ${row})`).join(", ")
  }) AS w (place, kind, schema, name, privilege)
  JOIN pg_catalog.pg_namespace AS n ON n.nspname = w.schema
  JOIN pg_catalog.pg_class AS t ON t.relnamespace = n.oid AND t.relname = w.name
  JOIN pg_catalog.pg_class AS c ON c.oid = CASE w.kind WHEN 'positions' THEN ${positionsOid} ELSE t.oid END
  JOIN pg_catalog.pg_namespace AS s ON s.oid = c.relnamespace
  WHERE NOT CASE WHEN w.kind = 'schema' THEN has_schema_privilege(n.oid, w.privilege)
    WHEN c.relkind = 'S' THEN has_sequence_privilege(c.oid, w.privilege)
    ELSE has_table_privilege(c.oid, w.privilege) END
  GROUP BY 2 ORDER BY min(w.place)`
}
