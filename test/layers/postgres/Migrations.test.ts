import { PgClient } from "@effect/sql-pg"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Redacted, Ref, Result } from "effect"
import { SqlClient } from "effect/sql"
import * as Migrations from "../../../src/layers/postgres/Migrations.ts"
import * as EventStoreTables from "../../../src/layers/postgres/migrations/EventStoreTables.ts"
import * as OrchestratorTables from "../../../src/layers/postgres/migrations/OrchestratorTables.ts"
import { lock } from "../../../src/layers/postgres/migrations/Sql.ts"
import * as PostgresStores from "../../../src/layers/postgres/PostgresStores.ts"
import { InvalidSettings, SchemaVersionMismatch } from "../../../src/schema/Errors.ts"
import * as TableNames from "../../../src/schema/TableNames.ts"
import { EventStore } from "../../../src/services/EventStore.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as PostgresTest from "../../../src/testing/PostgresTest.ts"
import * as Roles from "../../support/Roles.ts"
import * as Tests from "../../support/Tests.ts"

const test = Tests.postgres

const rows = Effect.fnUntraced(function*<A extends object>(text: string) {
  const sql = yield* SqlClient.SqlClient
  return yield* sql.unsafe<A>(text)
})

/** Everything that the catalog contains about tables, columns, constraints, indexes and sequences. */
const catalog = (tables: string) =>
  rows(
    `SELECT c.oid::int8, c.relname::text, c.relkind::text, c.reloptions,
       (SELECT jsonb_agg(jsonb_build_array(a.attname, a.atttypid::int8, a.attnotnull, a.atthasdef) ORDER BY a.attnum)
        FROM pg_attribute a WHERE a.attrelid = c.oid) AS columns
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' AND c.relname ~ '${tables}'
     ORDER BY c.relname, c.oid`
  )

/** The tables as pupsourcing's own generator writes them (es/migrations/generator.go), retyped. */
const pupsourcing = Effect.gen(function*() {
  yield* rows(`CREATE TABLE IF NOT EXISTS events (
    global_position BIGSERIAL PRIMARY KEY,
    bounded_context TEXT NOT NULL, aggregate_type TEXT NOT NULL, aggregate_id TEXT NOT NULL,
    aggregate_version BIGINT NOT NULL,
    event_id UUID NOT NULL UNIQUE, event_type TEXT NOT NULL, event_version INT NOT NULL DEFAULT 1,
    payload BYTEA NOT NULL, trace_id TEXT, correlation_id TEXT, causation_id TEXT, metadata JSONB,
    created_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    UNIQUE (bounded_context, aggregate_type, aggregate_id, aggregate_version))`)
  yield* rows(`CREATE INDEX IF NOT EXISTS idx_events_aggregate
    ON events (bounded_context, aggregate_type, aggregate_id, aggregate_version)`)
  yield* rows(`CREATE INDEX IF NOT EXISTS idx_events_event_type ON events (event_type, global_position)`)
  yield* rows(`CREATE INDEX IF NOT EXISTS idx_events_correlation
    ON events (correlation_id) WHERE correlation_id IS NOT NULL`)
  yield* rows(`CREATE TABLE IF NOT EXISTS aggregate_heads (
    bounded_context TEXT NOT NULL, aggregate_type TEXT NOT NULL, aggregate_id TEXT NOT NULL,
    aggregate_version BIGINT NOT NULL, updated_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    PRIMARY KEY (bounded_context, aggregate_type, aggregate_id))`)
  yield* rows(`CREATE INDEX IF NOT EXISTS idx_aggregate_heads_updated ON aggregate_heads (updated_at)`)
})

const append = (aggregate: string, version: number) =>
  rows(
    `INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
    VALUES ('Identity', 'User', '${aggregate}', ${version}, gen_random_uuid(), 'UserCreated', '{}')`
  )

/** A worker that catches up; returns how many events it handled, each in the version after the previous one. */
const run = Effect.gen(function*() {
  const { url } = yield* PostgresTest.TestDatabase
  const versions = new Map<string, bigint>()
  let handled = 0
  yield* Effect.gen(function*() {
    const orchestrator = yield* Orchestrator.make({
      replicaSet: "go",
      projections: [Projection.make("go", {
        handle: (event) =>
          Effect.sync(() => {
            assert.strictEqual(event.aggregateVersion, (versions.get(event.aggregateId) ?? 0n) + 1n)
            versions.set(event.aggregateId, event.aggregateVersion)
            handled++
          })
      })]
    })
    yield* orchestrator.catchUp
  }).pipe(
    Effect.provide(PostgresStores.layerWith({}).pipe(Layer.provideMerge(PgClient.layer({ url: Redacted.make(url) }))))
  )
  return handled
})

/** A role that owns nothing, and a way to run an effect as that role. */
const poorRole = Effect.gen(function*() {
  // Before PostgreSQL 15 every role may create tables there.
  yield* rows("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
  const { name, url } = yield* Roles.make
  const layer = PgClient.layer({ url: Redacted.make(url.href), maxConnections: 1 })
  return {
    role: name,
    asRole: <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.scoped(Effect.provide(self, layer))
  }
})

const definitions = (tables: string) =>
  rows<{ definition: string }>(
    `SELECT format('%s %s %s %s', table_name, column_name, data_type, is_nullable || coalesce(column_default, '')) AS definition
     FROM information_schema.columns WHERE table_name IN (${tables})
     UNION ALL SELECT indexdef FROM pg_indexes WHERE tablename IN (${tables})
     UNION ALL SELECT format('%s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
       FROM pg_constraint WHERE conrelid::regclass::text IN (${tables})
     ORDER BY 1`
  )

describe("Migrations", () => {
  test("creates everything, once", function*() {
    const before = yield* Migrations.status
    assert.isUndefined(before.version)
    assert.isTrue(before.tables.every((table) => !table.exists))

    const status = yield* Migrations.up
    assert.strictEqual(status.version, OrchestratorTables.schemaVersion)
    assert.isTrue(status.tables.every((table) => table.exists))
    assert.deepStrictEqual(status.differences, [])

    yield* rows("UPDATE orchestrator_meta SET hash_answers = '{\"kept\": 1}'")
    const once = yield* catalog("^(orchestrator|events|aggregate|idx)")
    assert.deepStrictEqual(yield* Migrations.up, status)
    assert.deepStrictEqual(yield* catalog("^(orchestrator|events|aggregate|idx)"), once)
    assert.deepStrictEqual(yield* rows("SELECT hash_answers FROM orchestrator_meta"), [{ hash_answers: { kept: 1 } }])
  })

  test("creates the same event store as pupsourcing", function*() {
    yield* pupsourcing
    const theirs = yield* definitions("'events', 'aggregate_heads'")
    assert.isAbove(theirs.length, 25)
    yield* Migrations.downEventStore
    yield* Migrations.up
    assert.deepStrictEqual(yield* definitions("'events', 'aggregate_heads'"), theirs)
  })

  test("stores answers that the server gives", function*() {
    yield* Migrations.up
    const answers = yield* rows<{ key: string; stored: bigint; given: bigint }>(
      `SELECT key, value::int8 AS stored, hashtext(key COLLATE "C")::int8 & 4294967295 AS given
         FROM orchestrator_meta, jsonb_each_text(hash_answers) ORDER BY key`
    )
    assert.strictEqual(answers.length, 3)
    for (const { given, key, stored } of answers) assert.strictEqual(stored, given, key)
  })

  test("supports the queries of the documentation unchanged", function*() {
    yield* Migrations.up
    yield* rows(`INSERT INTO orchestrator_generations (replica_set, generation_id, members, total_partitions)
        SELECT 'main-projections', n, '[]', 0 FROM generate_series(1, 3) n`)
    yield* rows(`INSERT INTO orchestrator_workers (replica_set, worker_id, incarnation, projections)
        VALUES ('main-projections', 'worker-1', nextval('orchestrator_incarnations'), '[]')`)
    yield* rows(`INSERT INTO orchestrator_heartbeats (replica_set, worker_id, incarnation)
        SELECT 'main-projections', 'worker-' || n, n FROM generate_series(1, 12) n`)
    const generations = yield* rows<{ generation_id: bigint; state: string }>(
      "SELECT * FROM orchestrator_generations WHERE replica_set = 'main-projections' ORDER BY generation_id DESC LIMIT 1"
    )
    assert.deepStrictEqual(generations.map((row) => [row.generation_id, row.state]), [[3n, "pending"]])
    const workers = yield* rows<{ worker_id: string; partition_key: number; state: string; started_at: Date }>(
      "SELECT * FROM orchestrator_workers WHERE replica_set = 'main-projections'"
    )
    assert.deepStrictEqual(workers.map((row) => [row.worker_id, row.partition_key, row.state]), [[
      "worker-1",
      -1,
      "pending"
    ]])
    const heartbeats = yield* rows<{ heartbeat_at: Date }>(
      "SELECT * FROM orchestrator_heartbeats WHERE replica_set = 'main-projections' ORDER BY heartbeat_at DESC LIMIT 10"
    )
    assert.strictEqual(heartbeats.length, 10)
  })

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

  test("can run many times concurrently", function*({ url }) {
    const elsewhere = (n: number) =>
      Effect.provide(
        Migrations.upWith({ schema: "Work" }),
        Layer.fresh(PgClient.layer({ url: Redacted.make(url), applicationName: `migrator-${n}` }))
      )
    const results = yield* Effect.all(Array.from({ length: 6 }, (_, n) => elsewhere(n)), { concurrency: "unbounded" })
    for (const status of results) {
      assert.strictEqual(status.version, OrchestratorTables.schemaVersion)
      assert.isTrue(status.tables.every((table) => table.exists))
    }
  })

  test("preserves a pupsourcing schema with 10,000 events: up, run, append, down, up", function*() {
    yield* pupsourcing
    yield* rows(`INSERT INTO events
          (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload, metadata)
        SELECT 'Identity', 'User', 'user-' || (n % 500), 1 + n / 500, gen_random_uuid(), 'UserCreated',
          convert_to('{"n":' || n || '}', 'UTF8'), '{"go": true}'
        FROM generate_series(0, 9999) n`)
    yield* rows(`INSERT INTO aggregate_heads (bounded_context, aggregate_type, aggregate_id, aggregate_version)
        SELECT bounded_context, aggregate_type, aggregate_id, max(aggregate_version) FROM events GROUP BY 1, 2, 3`)
    const fingerprint = rows<{ events: bigint; hash: string }>(
      `SELECT count(*) AS events, md5(string_agg(e::text, '|' ORDER BY global_position)) AS hash
         FROM events e WHERE aggregate_id <> 'user-new'
         UNION ALL
         SELECT count(*), md5(string_agg(h::text, '|' ORDER BY aggregate_id)) FROM aggregate_heads h`
    )
    const before = { content: yield* fingerprint, catalog: yield* catalog("^(events|aggregate|idx_(events|agg))") }
    assert.strictEqual(before.content[0]?.events, 10000n)
    assert.strictEqual(before.content[1]?.events, 500n)
    const unharmed = Effect.gen(function*() {
      assert.deepStrictEqual(yield* fingerprint, before.content)
      assert.deepStrictEqual(yield* catalog("^(events|aggregate|idx_(events|agg))"), before.catalog)
    })

    assert.strictEqual((yield* Migrations.up).version, OrchestratorTables.schemaVersion)
    yield* unharmed
    assert.strictEqual(yield* run, 10_000)
    yield* unharmed
    yield* append("user-new", 1)
    yield* Migrations.down
    yield* unharmed
    assert.deepStrictEqual(yield* catalog("^(orchestrator|idx_orchestrator)"), [])
    assert.strictEqual((yield* Migrations.up).version, OrchestratorTables.schemaVersion)
    yield* unharmed
    yield* append("user-new", 2)
    assert.deepStrictEqual(yield* rows("SELECT count(*) AS n FROM events"), [{ n: 10002n }])
  })

  test("fills the heads when only they are missing", function*() {
    yield* pupsourcing
    yield* rows("DROP TABLE aggregate_heads")
    for (const version of [1, 2, 3]) yield* append("user-1", version)
    yield* Migrations.up
    assert.deepStrictEqual(yield* rows("SELECT aggregate_id, aggregate_version FROM aggregate_heads"), [
      { aggregate_id: "user-1", aggregate_version: 3n }
    ])
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
    const byFile = yield* Effect.flip(rows(EventStoreTables.up(TableNames.defaults)[0] ?? ""))
    assert.strictEqual((byFile.reason.cause as { code?: string }).code, "55000")
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
    const byFile = yield* Effect.flip(rows(EventStoreTables.up(TableNames.defaults)[0] ?? ""))
    assert.strictEqual((byFile.reason.cause as { code?: string }).code, "55000")
  })

  test("accepts an event store that it can only read", function*() {
    yield* pupsourcing
    yield* rows(
      "ALTER TABLE events ADD COLUMN tenant int NOT NULL, ADD COLUMN note text, ALTER COLUMN trace_id TYPE uuid USING NULL"
    )
    const { differences, version } = yield* Migrations.up
    assert.strictEqual(version, OrchestratorTables.schemaVersion)
    assert.deepStrictEqual(differences.map((difference) => [difference.subject, difference.blocking]).sort(), [
      ["tenant", false],
      ["trace_id", false]
    ])
  })

  test("leaves tables of other software unchanged", function*() {
    yield* rows("CREATE TABLE orchestrator_workers (id uuid)")
    const refused = yield* Effect.flip(Migrations.up)
    assert.instanceOf(refused, Migrations.TablesNotOurs)
    assert.instanceOf(yield* Effect.flip(Migrations.down), Migrations.TablesNotOurs)
    for (const statement of OrchestratorTables.down(TableNames.defaults)) yield* rows(statement)
    const byFile = yield* Effect.flip(rows(OrchestratorTables.up(TableNames.defaults)[0] ?? ""))
    assert.strictEqual((byFile.reason.cause as { code?: string }).code, "42P07")
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
    const byFile = yield* Effect.flip(rows(EventStoreTables.up(names)[0] ?? ""))
    assert.strictEqual((byFile.reason.cause as { code?: string }).code, "55000")
    assert.include(String(byFile.reason.cause), "public.events holds events")
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
      const byFile = yield* Effect.flip(rows(EventStoreTables.up(names)[0] ?? ""))
      assert.include(String(byFile.reason.cause), "public.events holds events")
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

  test("keeps the event store's tables in another schema than the orchestrator's", function*({ url }) {
    yield* pupsourcing
    for (const n of [1, 2, 3]) yield* append("user-1", n)
    const options = { schema: "work", eventStoreSchema: "public" }
    const status = yield* Migrations.upWith(options)
    assert.deepStrictEqual(status.tables.map((table) => table.name.split(".")[0]), [
      ...OrchestratorTables.owned.map(() => `"work"`),
      `"public"`,
      `"public"`
    ])
    const client = PgClient.layer({ url: Redacted.make(url), startupParameters: { search_path: "nowhere" } })
    const handled = yield* Ref.make(0)
    yield* Effect.gen(function*() {
      const store = yield* EventStore
      yield* store.append([{
        boundedContext: "Identity",
        aggregateType: "User",
        aggregateId: "user-2",
        eventType: "UserCreated",
        payload: {}
      }])
      const orchestrator = yield* Orchestrator.make({
        replicaSet: "split",
        projections: [Projection.make("split", { handle: () => Ref.update(handled, (n) => n + 1) })]
      })
      yield* orchestrator.catchUp
    }).pipe(Effect.provide(PostgresStores.layerWith(options).pipe(Layer.provideMerge(client))))
    assert.strictEqual(yield* Ref.get(handled), 4)
    assert.deepStrictEqual(yield* rows("SELECT count(*) AS n FROM public.events"), [{ n: 4n }])
    assert.deepStrictEqual(yield* rows("SELECT events_table FROM work.orchestrator_meta"), [
      { events_table: `"public"."events"` }
    ])

    // The same table spelled differently, and a different one with the same name.
    yield* rows(`CREATE TABLE work.events (LIKE public.events INCLUDING ALL)`)
    yield* rows(`CREATE TABLE work.aggregate_heads (LIKE public.aggregate_heads INCLUDING ALL)`)
    const refused = yield* Effect.flip(Migrations.upWith({ schema: "work" }))
    assert.include(refused.message, `for the events table "public"."events", not for "work"."events"`)
    const opened = yield* Effect.flip(
      Effect.provide(Layer.build(PostgresStores.layerWith({ schema: "work" })), client).pipe(Effect.scoped)
    )
    assert.strictEqual(opened.message, refused.message)
    yield* Migrations.up
    yield* Migrations.upWith({ eventStoreSchema: "public" })
    assert.instanceOf(yield* Effect.flip(Migrations.upWith({ eventStoreSchema: "work" })), InvalidSettings)

    yield* Migrations.downWith(options)
    assert.deepStrictEqual(yield* rows("SELECT count(*) AS n FROM public.events"), [{ n: 4n }])
    assert.instanceOf(yield* Effect.flip(Migrations.downEventStoreWith(options)), Migrations.EventsExist)
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

  test("updates tables of version 1 with their rows, once, and so do the files", function*() {
    const columns = rows(
      `SELECT table_name::text, column_name::text, data_type::text, is_nullable::text FROM information_schema.columns
         WHERE table_name ~ '^orchestrator' ORDER BY 1, 2`
    )
    yield* Migrations.up
    const expected = yield* columns
    const data = rows(
      `SELECT to_jsonb(c) - 'halted_incarnation' AS row FROM orchestrator_checkpoints c
         UNION ALL SELECT to_jsonb(w) - 'evicted_by' FROM orchestrator_workers w`
    )
    yield* rows(`INSERT INTO orchestrator_checkpoints (projection_name, range_start, range_end, position, replica_set,
          worker_id, incarnation, generation_id, filter, halted_since, halted_error, halted_position, halted_event_id,
          halted_hash)
        VALUES ('users', 0, 4294967296, 17, 'main', 'w1', 5, 2, '[null,null,null]', now(), 'boom', 18, 'e', 7)`)
    yield* rows(`INSERT INTO orchestrator_workers (replica_set, worker_id, incarnation, state, projections)
        VALUES ('main', 'w1', 5, 'running', '["users"]')`)
    const before = yield* data
    const downgrade = Effect.gen(function*() {
      yield* rows("ALTER TABLE orchestrator_checkpoints DROP COLUMN halted_incarnation")
      yield* rows("ALTER TABLE orchestrator_workers DROP COLUMN evicted_by")
      yield* rows("UPDATE orchestrator_meta SET schema_version = 1")
    })
    const byFile = Effect.forEach(OrchestratorTables.up(TableNames.defaults), (statement) => rows(statement))
    for (const up of [Migrations.up, byFile]) {
      yield* downgrade
      assert.strictEqual((yield* Migrations.status).version, 1)
      for (let times = 0; times < 2; times++) {
        yield* up
        assert.strictEqual((yield* Migrations.status).version, OrchestratorTables.schemaVersion)
        assert.deepStrictEqual(yield* data, before)
        assert.deepStrictEqual(yield* columns, expected)
      }
    }
  })

  test("never changes tables of a newer version", function*() {
    yield* Migrations.up
    const expected = OrchestratorTables.schemaVersion
    yield* rows("UPDATE orchestrator_meta SET schema_version = 3")
    for (const migrating of [Migrations.up, Migrations.down]) {
      const error = yield* Effect.flip(migrating)
      assert.deepStrictEqual(error, new SchemaVersionMismatch({ found: 3, expected }))
    }
    const byFile = yield* Effect.flip(rows(OrchestratorTables.up(TableNames.defaults)[0] ?? ""))
    assert.strictEqual((byFile.reason.cause as { code?: string }).code, "55000")
    const status = yield* Migrations.status
    assert.strictEqual(status.version, 3)
    assert.isTrue(status.tables.every((table) => table.exists))
  })

  test("the files also refuse orchestrator tables that belong to another events table", function*() {
    yield* Migrations.up
    const names = { ...TableNames.defaults, events: "100% of 'them'" }
    const byFile = yield* Effect.flip(rows(OrchestratorTables.up(names)[0] ?? ""))
    assert.strictEqual((byFile.reason.cause as { code?: string }).code, "55000")
    assert.include(String(byFile.reason.cause), "for the events table events, not for 100% of 'them'")
  })

  test("accepts other names and a schema, including quoted ones, side by side", function*() {
    const options = {
      schema: "Order",
      tables: {
        events: "user",
        workers: "W$do$x",
        checkpoints: "x".repeat(TableNames.maximumTableLength),
        meta: "select"
      }
    }
    yield* Migrations.up
    const status = yield* Migrations.upWith(options)
    assert.isTrue(status.tables.every((table) => table.exists))
    assert.include(status.tables.map((table) => table.name), "\"Order\".\"W$do$x\"")
    assert.deepStrictEqual(yield* Migrations.upWith(options), status)
    yield* rows(`INSERT INTO "Order"."user"
          (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
        VALUES ('a', 'b', 'c', 1, gen_random_uuid(), 'd', '')`)
    assert.instanceOf(yield* Effect.flip(Migrations.downEventStoreWith(options)), Migrations.EventsExist)
    yield* Migrations.downWith(options)
    assert.deepStrictEqual(
      (yield* Migrations.statusWith(options)).tables.filter((table) => table.exists).map((table) => table.key),
      ["events", "aggregateHeads"]
    )
    assert.isTrue((yield* Migrations.status).tables.every((table) => table.exists))
    const error = yield* Effect.flip(Migrations.upWith({ schema: "no schema" }))
    assert.instanceOf(error, InvalidSettings)
  })

  it.live("finds the tables under their own names through a client that transforms names", () =>
    Effect.gen(function*() {
      assert.strictEqual((yield* Migrations.up).version, OrchestratorTables.schemaVersion)
    }).pipe(
      Effect.provide(PostgresTest.layerWith({
        client: {
          transformResultNames: (name) => name.toUpperCase(),
          transformQueryNames: (name) => name.toUpperCase()
        }
      }))
    ))

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

  it.live("is also available as a layer", () =>
    Effect.gen(function*() {
      assert.strictEqual((yield* Migrations.status).version, OrchestratorTables.schemaVersion)
    }).pipe(Effect.provide(Layer.provideMerge(Migrations.layer, PostgresTest.layer))))
})
