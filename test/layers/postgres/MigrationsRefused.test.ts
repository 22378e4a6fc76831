import { PgClient } from "@effect/sql-pg"
import { assert } from "@effect/vitest"
import { Effect, Layer, Redacted, Result } from "effect"
import { SqlClient } from "effect/sql"
import * as Migrations from "../../../src/layers/postgres/Migrations.ts"
import * as EventStoreTables from "../../../src/layers/postgres/migrations/EventStoreTables.ts"
import * as OrchestratorTables from "../../../src/layers/postgres/migrations/OrchestratorTables.ts"
import { lock } from "../../../src/layers/postgres/migrations/Sql.ts"
import * as PostgresStores from "../../../src/layers/postgres/PostgresStores.ts"
import { SchemaVersionMismatch } from "../../../src/schema/Errors.ts"
import * as TableNames from "../../../src/schema/TableNames.ts"
import * as PostgresTest from "../../../src/testing/PostgresTest.ts"
import { append, catalog, poorRole, pupsourcing, refusedByFile, rows } from "../../support/MigratedTables.ts"
import * as Tests from "../../support/Tests.ts"

const test = Tests.postgres

test("refuses invalid rows", function*() {
  yield* Migrations.up
  const refused = (statement: string) =>
    Effect.map(
      Effect.flip(rows(statement)),
      (error) => assert.strictEqual(error.reason._tag, "ConstraintError", statement)
    )
  const checkpoint = (start: string, end: string, rest = "NULL, NULL, NULL", position = "0") =>
    `INSERT INTO orchestrator_checkpoints
         (projection_name, range_start, range_end, worker_id, incarnation, generation_id, position, replica_set, filter)
       VALUES ('p', ${start}, ${end}, ${rest}, ${position}, 's', '[]')`
  yield* rows(checkpoint("0", "2147483648"))
  yield* rows(checkpoint("2147483648", "4294967296", "'w', 1, 1"))
  yield* refused(checkpoint("5", "5"))
  yield* refused(checkpoint("-1", "5"))
  yield* refused(checkpoint("1", "4294967297"))
  yield* refused(checkpoint("1", "2", "'w', NULL, 1"))
  yield* refused(checkpoint("1", "2", "'w', 1, NULL"))
  yield* refused(checkpoint("1", "2", "NULL, NULL, NULL", "-1"))
  yield* refused(`INSERT INTO orchestrator_meta (singleton, schema_version, hash_answers) VALUES (false, 1, '{}')`)
  yield* refused(
    `INSERT INTO orchestrator_workers (replica_set, worker_id, incarnation, projections, state) VALUES ('s', 'w', 1, '[]', 'x')`
  )
})

test("drops the event store only without events", function*() {
  yield* Migrations.downEventStore
  yield* Migrations.up
  yield* append("user-1", 1)
  const error = yield* Effect.flip(Migrations.downEventStore)
  assert.instanceOf(error, Migrations.EventsExist)
  assert.deepStrictEqual(yield* rows("SELECT count(*) AS n FROM events"), [{ n: 1n }])
  yield* rows("DELETE FROM events")
  yield* Migrations.downEventStore
  const { tables } = yield* Migrations.status
  assert.deepStrictEqual(tables.filter((table) => !table.exists).map((table) => table.key), [
    "events",
    "aggregateHeads"
  ])
})

test("reports an event store that it cannot use, and changes nothing", function*() {
  yield* pupsourcing
  yield* rows(
    "ALTER TABLE events DROP COLUMN bounded_context, ALTER COLUMN aggregate_id TYPE uuid USING aggregate_id::uuid"
  )
  yield* rows("ALTER TABLE events ALTER COLUMN payload DROP NOT NULL, ALTER COLUMN created_at DROP DEFAULT")
  const before = yield* catalog(".*")
  const error = yield* Effect.flip(Migrations.up)
  if (!(error instanceof Migrations.EventStoreDiffers)) return assert.fail(String(error))
  assert.deepStrictEqual([...error.differences].sort(), [
    "\"events\": aggregate_id is uuid NOT NULL instead of text NOT NULL",
    "\"events\": bounded_context is nothing instead of text NOT NULL",
    "\"events\": bounded_context, aggregate_type, aggregate_id, aggregate_version is not unique instead of unique",
    "\"events\": created_at is timestamp with time zone NOT NULL instead of timestamp with time zone NOT NULL with a default",
    "\"events\": payload is bytea instead of bytea NOT NULL"
  ])
  assert.deepStrictEqual(yield* catalog(".*"), before)
  const { differences } = yield* Migrations.status
  assert.strictEqual(differences.length, 5)
  yield* refusedByFile(EventStoreTables.up(TableNames.defaults), "55000")
  assert.deepStrictEqual(yield* catalog(".*"), before)
})

test("refuses a nondeterministic collation on key columns, and so do the stores", function*({ url }) {
  yield* rows(
    "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
  )
  yield* rows("CREATE COLLATION german (provider = icu, locale = 'de')")
  yield* rows("CREATE DOMAIN name_ci AS text COLLATE ci")
  yield* Migrations.up
  // A column that the library does not compare, and a collation whose equal texts have equal bytes.
  yield* rows("ALTER TABLE events ADD COLUMN note text COLLATE ci, ALTER COLUMN trace_id TYPE text COLLATE ci")
  yield* rows("ALTER TABLE events ALTER COLUMN aggregate_id TYPE text COLLATE german")
  assert.deepStrictEqual((yield* Migrations.up).differences, [])
  const open = Effect.scoped(Layer.build(PostgresStores.layerWith({}))).pipe(
    Effect.provide(PgClient.layer({ url: Redacted.make(url) }))
  )
  yield* open
  const cases = [
    ["events", "aggregate_id"],
    ["events", "aggregate_type"],
    ["events", "bounded_context"],
    ["events", "event_type"],
    ["aggregate_heads", "aggregate_id"],
    ["orchestrator_checkpoints", "projection_name"],
    ["orchestrator_workers", "worker_id"],
    ["orchestrator_generations", "replica_set"]
  ] as const
  const refused = Effect.fnUntraced(function*(reason: string) {
    const error = yield* Effect.flip(Migrations.up)
    if (!(error instanceof Migrations.EventStoreDiffers)) return assert.fail(String(error))
    assert.include(error.message, reason)
    const refusal = yield* Effect.flip(open)
    assert(refusal._tag === "StoreError" && refusal.reason._tag === "UnsupportedDatabase")
    assert.include(refusal.message, reason)
  })
  for (const [table, column] of cases) {
    yield* rows(`ALTER TABLE ${table} ALTER COLUMN ${column} TYPE text COLLATE ci`)
    yield* refused(
      `"${table}": ${column} is compared by the nondeterministic collation ci instead of a deterministic collation`
    )
    yield* rows(`ALTER TABLE ${table} ALTER COLUMN ${column} TYPE text COLLATE "default"`)
  }
  yield* rows("ALTER TABLE events ALTER COLUMN aggregate_id TYPE name_ci")
  yield* refused(`"events": aggregate_id is name_ci NOT NULL instead of text NOT NULL`)
  yield* rows(`ALTER TABLE events ALTER COLUMN aggregate_id TYPE text COLLATE "default"`)
  yield* open
  // A key that would refuse the second of two streams whose names differ only in case.
  yield* rows("ALTER TABLE aggregate_heads DROP CONSTRAINT aggregate_heads_pkey")
  yield* rows(
    "CREATE UNIQUE INDEX heads ON aggregate_heads (bounded_context, aggregate_type, aggregate_id COLLATE ci)"
  )
  yield* refused("bounded_context, aggregate_type, aggregate_id is not unique instead of unique")
  yield* refusedByFile(EventStoreTables.up(TableNames.defaults), "55000")
})

test("leaves tables of other software unchanged", function*() {
  yield* rows("CREATE TABLE orchestrator_workers (id uuid)")
  const refused = yield* Effect.flip(Migrations.up)
  assert.instanceOf(refused, Migrations.TablesNotOurs)
  assert.instanceOf(yield* Effect.flip(Migrations.down), Migrations.TablesNotOurs)
  for (const statement of OrchestratorTables.down(TableNames.defaults)) yield* rows(statement)
  yield* refusedByFile(OrchestratorTables.up(TableNames.defaults), "42P07")
  assert.deepStrictEqual(yield* rows("SELECT relname::text FROM pg_class WHERE relname ~ '^orchestrator'"), [
    { relname: "orchestrator_workers" }
  ])
})

test("names the tables of Go's orchestrator, and works beside them under other names", function*() {
  yield* pupsourcing
  yield* append("user-1", 1)
  yield* rows("CREATE TABLE orchestrator_generations (id uuid PRIMARY KEY, replica_set text, total_partitions int)")
  yield* rows("CREATE TABLE orchestrator_workers (id uuid PRIMARY KEY, generation_id uuid, state text)")
  const error = yield* Effect.flip(Migrations.up)
  assert.deepStrictEqual(
    error,
    new Migrations.TablesNotOurs({
      tables: [`"orchestrator_generations"`, `"orchestrator_workers"`],
      keys: ["generations", "workers"]
    })
  )
  assert.include(
    error.message,
    "--table generations=pupsourcing_generations --table workers=pupsourcing_workers. Pass the same names as \"tables\" to"
  )
  assert.include(error.message, "If Go's pupsourcing-orchestrator created them and no longer runs, drop them")
  assert.notInclude(error.message, "schema")
  const status = yield* Migrations.status
  assert.deepStrictEqual(status.refusal, error)
  assert.deepStrictEqual(status.tables.filter((table) => table.isForeign).map((table) => table.key), [
    "generations",
    "workers"
  ])
  const tables = { generations: "pupsourcing_generations", workers: "pupsourcing_workers" }
  assert.strictEqual((yield* Migrations.upWith({ tables })).version, OrchestratorTables.schemaVersion)
  assert.deepStrictEqual(yield* rows("SELECT count(*) AS n FROM orchestrator_generations"), [{ n: 0n }])
  // Other tables with these names are not part of Go's orchestrator.
  yield* rows("CREATE SCHEMA other")
  yield* rows("CREATE SEQUENCE other.orchestrator_presence_keys")
  const other = yield* Effect.flip(Migrations.upWith({ schema: "other", eventStoreSchema: "public" }))
  assert.include(other.message, "--table presenceKeys=pupsourcing_presence_keys")
  assert.notInclude(other.message, "Go's")
})

test("creates no second event store beside one with events, unless requested", function*({ url }) {
  const { role, asRole } = yield* poorRole
  yield* pupsourcing
  // An empty event store has no events that could be left unprojected.
  yield* Migrations.upWith({ schema: "early" })
  yield* append("user-1", 1)
  const before = yield* catalog(".*")
  const expected = new Migrations.EventStoreElsewhere({
    missing: `"pup"."events"`,
    found: "public.events",
    schema: "public"
  })
  const error = yield* Effect.flip(Migrations.upWith({ schema: "pup" }))
  assert.deepStrictEqual(error, expected)
  assert.match(error.message, /--event-store-schema public .* --new-event-store/)
  assert.deepStrictEqual((yield* Migrations.statusWith({ schema: "pup" })).refusal, expected)
  assert.deepStrictEqual(yield* Effect.flip(Migrations.upWith({ eventStoreSchema: "pup" })), expected)
  // A role that may not read the events.
  assert.deepStrictEqual(yield* Effect.flip(asRole(Migrations.upWith({ schema: "pup" }))), expected)
  yield* rows(`GRANT SELECT ON events TO ${role}`)
  assert.deepStrictEqual(yield* Effect.flip(asRole(Migrations.upWith({ schema: "pup" }))), expected)
  const names = Result.getOrThrow(TableNames.make({ schema: "pup" }))
  yield* refusedByFile(EventStoreTables.up(names), "55000", "public.events holds events")
  assert.deepStrictEqual(yield* catalog(".*"), before)

  // Further down the search path, behind an empty event store and a temporary table.
  const deep = PgClient.layer({
    url: Redacted.make(url),
    maxConnections: 1,
    startupParameters: { search_path: "nowhere, early, public" }
  })
  const behind = Effect.gen(function*() {
    yield* rows("CREATE TEMP TABLE events (LIKE public.events)")
    assert.deepStrictEqual(yield* Effect.flip(Migrations.upWith({ schema: "pup" })), expected)
    yield* refusedByFile(EventStoreTables.up(names), "55000", "public.events holds events")
  })
  yield* Effect.provide(behind, deep)

  // An event store that exists now is used unchanged.
  assert.isUndefined((yield* Migrations.upWith({ schema: "early" })).refusal)
  // A table with that name that is not an event store.
  yield* rows("ALTER TABLE events RENAME COLUMN global_position TO place")
  yield* Migrations.upWith({ schema: "unrelated" })
  yield* rows("ALTER TABLE events RENAME COLUMN place TO global_position")

  const status = yield* Migrations.upWith({ schema: "pup", newEventStore: true })
  assert.isTrue(status.tables.every((table) => table.exists))
  assert.deepStrictEqual(yield* Migrations.upWith({ schema: "pup" }), status)
  assert.deepStrictEqual(yield* rows("SELECT count(*) AS n FROM pup.events"), [{ n: 0n }])
})

test("creates a schema for each part, and names the privilege that is missing", function*() {
  const { name } = yield* PostgresTest.TestDatabase
  const { role, asRole } = yield* poorRole
  const options = { schema: "work", eventStoreSchema: "facts" }
  yield* rows("CREATE SCHEMA work")
  const missing = () => Effect.flip(asRole(Migrations.upWith(options)))
  assert.include((yield* missing()).message, "USAGE on schema work")
  yield* rows(`GRANT USAGE ON SCHEMA work TO ${role}`)
  assert.include((yield* missing()).message, "CREATE on schema work")
  yield* rows(`GRANT CREATE ON SCHEMA work TO ${role}`)
  assert.include((yield* missing()).message, `CREATE on database ${name}`)
  yield* rows(`GRANT CREATE ON DATABASE ${name} TO ${role}`)
  assert.isTrue((yield* asRole(Migrations.upWith(options))).tables.every((table) => table.exists))
})

test("never changes tables of a newer version", function*() {
  yield* Migrations.up
  const expected = OrchestratorTables.schemaVersion
  yield* rows(`UPDATE orchestrator_meta SET schema_version = ${expected + 1}`)
  for (const migrating of [Migrations.up, Migrations.down]) {
    const error = yield* Effect.flip(migrating)
    assert.deepStrictEqual(error, new SchemaVersionMismatch({ found: expected + 1, expected }))
  }
  yield* refusedByFile(OrchestratorTables.up(TableNames.defaults), "55000")
  const status = yield* Migrations.status
  assert.strictEqual(status.version, expected + 1)
  assert.isTrue(status.tables.every((table) => table.exists))
})

test("the files also refuse orchestrator tables that belong to another events table", function*() {
  yield* Migrations.up
  const names = { ...TableNames.defaults, events: "100% of 'them'" }
  yield* refusedByFile(OrchestratorTables.up(names), "55000", "for the events table events, not for 100% of 'them'")
})

test("needs only SELECT if nothing has to be changed, and neither locks nor waits", function*() {
  const { role, asRole } = yield* poorRole
  for (const options of [{}, { schema: "Work" }]) {
    const status = yield* Migrations.upWith(options)
    const schema = options.schema ?? "public"
    yield* rows(`GRANT USAGE ON SCHEMA "${schema}" TO ${role}`)
    yield* rows(`GRANT SELECT ON "${schema}".orchestrator_meta TO ${role}`)
    assert.deepStrictEqual(yield* asRole(Migrations.upWith(options)), status)
    assert.deepStrictEqual(yield* asRole(Migrations.statusWith(options)), status)
    yield* asRole(Layer.build(Migrations.layerWith(options)))
    // Beside a running migration.
    const sql = yield* SqlClient.SqlClient
    yield* sql.withTransaction(Effect.andThen(
      rows(`SELECT ${lock}`),
      Effect.map(asRole(Migrations.upWith(options)), (again) => assert.deepStrictEqual(again, status))
    ))
  }
})

test("names the missing privilege", function*() {
  const { name, url } = yield* PostgresTest.TestDatabase
  const owner = `"${decodeURIComponent(new URL(url).username)}"`
  const { role, asRole } = yield* poorRole
  const lacks = Effect.fnUntraced(function*(
    self: Effect.Effect<unknown, unknown, SqlClient.SqlClient>,
    privileges: ReadonlyArray<string>
  ) {
    const error = yield* Effect.flip(asRole(self))
    if (!(error instanceof Migrations.MissingPrivileges)) return assert.fail(String(error))
    assert.deepStrictEqual([error.role, error.privileges], [role, privileges])
    assert.include(error.message, `Role "${role}" lacks privileges that "migrate `)
    assert.include(error.message, privileges[0] ?? "")
  })
  yield* rows(`REVOKE TEMPORARY ON DATABASE ${name} FROM PUBLIC`)
  yield* lacks(Migrations.up, ["CREATE on schema public"])
  yield* lacks(Migrations.upWith({ schema: "Work" }), [`CREATE on database ${name}`])
  yield* rows("REVOKE USAGE ON SCHEMA public FROM PUBLIC")
  yield* lacks(Migrations.up, [`USAGE on an existing schema of its search_path ("$user", public)`])
  yield* rows("GRANT USAGE ON SCHEMA public TO PUBLIC")

  yield* Migrations.up
  yield* lacks(Migrations.up, ["SELECT on table orchestrator_meta"])
  yield* lacks(Migrations.status, ["SELECT on table orchestrator_meta"])
  yield* rows(`GRANT SELECT ON orchestrator_meta TO ${role}`)
  yield* rows("DROP TABLE aggregate_heads")
  yield* lacks(Migrations.up, ["CREATE on schema public"])
  yield* rows(`GRANT CREATE ON SCHEMA public TO ${role}`)
  yield* lacks(Migrations.up, ["SELECT on table events"])
  yield* Migrations.up
  yield* rows("ALTER TABLE orchestrator_meta DROP COLUMN events_table")
  yield* rows(`GRANT CREATE ON SCHEMA public TO ${role}`)
  const owned = [
    "generations",
    "workers",
    "heartbeats",
    "checkpoints",
    "parked_events",
    "incarnations",
    "presence_keys",
    "meta"
  ].map((table) => `ownership of orchestrator_${table}`)
  const all = yield* Effect.flip(asRole(Migrations.up))
  if (!(all instanceof Migrations.MissingPrivileges)) return assert.fail(String(all))
  assert.deepStrictEqual([...all.privileges].sort(), owned.sort())
  assert.instanceOf(yield* Effect.flip(asRole(Migrations.down)), Migrations.MissingPrivileges)
  const eventStore = yield* Effect.flip(asRole(Migrations.downEventStore))
  if (!(eventStore instanceof Migrations.MissingPrivileges)) return assert.fail(String(eventStore))
  assert.deepStrictEqual(eventStore.privileges, ["ownership of events", "ownership of aggregate_heads"])

  yield* Migrations.upWith({ schema: "Work" })
  yield* lacks(Migrations.upWith({ schema: "Work" }), [`USAGE on schema "Work"`])
  // A member of the role that owns the tables may change them.
  yield* rows(`GRANT ${owner} TO ${role}`)
  assert.strictEqual((yield* asRole(Migrations.up)).version, OrchestratorTables.schemaVersion)
  yield* rows(`REVOKE ${owner} FROM ${role}`)
})
