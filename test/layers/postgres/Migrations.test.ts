import { PgClient } from "@effect/sql-pg"
import { assert, it } from "@effect/vitest"
import { Effect, Layer, Redacted, Ref } from "effect"
import * as Migrations from "../../../src/layers/postgres/Migrations.ts"
import * as OrchestratorTables from "../../../src/layers/postgres/migrations/OrchestratorTables.ts"
import * as PostgresStores from "../../../src/layers/postgres/PostgresStores.ts"
import { InvalidSettings } from "../../../src/schema/Errors.ts"
import * as TableNames from "../../../src/schema/TableNames.ts"
import { EventStore } from "../../../src/services/EventStore.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as PostgresTest from "../../../src/testing/PostgresTest.ts"
import { append, catalog, pupsourcing, rows } from "../../support/MigratedTables.ts"
import * as Tests from "../../support/Tests.ts"

const test = Tests.postgres

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

const definitions = (tables: string) =>
  rows<{ definition: string }>(
    `SELECT format('%s %s %s %s', table_name, column_name, data_type, is_nullable || coalesce(column_default, '')) AS definition
     FROM information_schema.columns WHERE table_name IN (${tables})
     UNION ALL SELECT indexdef FROM pg_indexes WHERE tablename IN (${tables})
     UNION ALL SELECT format('%s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
       FROM pg_constraint WHERE conrelid::regclass::text IN (${tables})
     ORDER BY 1`
  )

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

test("updates tables of versions 1 and 2 with their rows, once, and so do the files", function*() {
  const columns = rows(
    `SELECT table_name::text, column_name::text, data_type::text, is_nullable::text FROM information_schema.columns
       WHERE table_name ~ '^orchestrator' ORDER BY 1, 2`
  )
  yield* Migrations.up
  const expected = yield* columns
  const data = rows(
    `SELECT to_jsonb(c) - 'halted_incarnation' - 'halted_request' AS row FROM orchestrator_checkpoints c
       UNION ALL SELECT to_jsonb(w) - 'evicted_by' FROM orchestrator_workers w`
  )
  yield* rows(`INSERT INTO orchestrator_checkpoints (projection_name, range_start, range_end, position, replica_set,
        worker_id, incarnation, generation_id, filter, halted_since, halted_error, halted_position, halted_event_id,
        halted_hash)
      VALUES ('users', 0, 4294967296, 17, 'main', 'w1', 5, 2, '[null,null,null]', now(), 'boom', 18, 'e', 7)`)
  yield* rows(`INSERT INTO orchestrator_workers (replica_set, worker_id, incarnation, state, projections)
      VALUES ('main', 'w1', 5, 'running', '["users"]')`)
  const before = yield* data
  const toVersion2 = Effect.gen(function*() {
    yield* rows("ALTER TABLE orchestrator_checkpoints DROP COLUMN halted_request")
    yield* rows("DROP TABLE orchestrator_parked_events")
    yield* rows("UPDATE orchestrator_meta SET schema_version = 2")
  })
  const toVersion1 = Effect.gen(function*() {
    yield* toVersion2
    yield* rows("ALTER TABLE orchestrator_checkpoints DROP COLUMN halted_incarnation")
    yield* rows("ALTER TABLE orchestrator_workers DROP COLUMN evicted_by")
    yield* rows("UPDATE orchestrator_meta SET schema_version = 1")
  })
  const byFile = Effect.forEach(OrchestratorTables.up(TableNames.defaults), (statement) => rows(statement))
  for (const [up, version] of [[Migrations.up, 1], [byFile, 1], [Migrations.up, 2], [byFile, 2]] as const) {
    yield* version === 1 ? toVersion1 : toVersion2
    assert.strictEqual((yield* Migrations.status).version, version)
    for (let times = 0; times < 2; times++) {
      yield* up
      assert.strictEqual((yield* Migrations.status).version, OrchestratorTables.schemaVersion)
      assert.deepStrictEqual(yield* data, before)
      assert.deepStrictEqual(yield* columns, expected)
    }
  }
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

it.live("is also available as a layer", () =>
  Effect.gen(function*() {
    assert.strictEqual((yield* Migrations.status).version, OrchestratorTables.schemaVersion)
  }).pipe(Effect.provide(Layer.provideMerge(Migrations.layer, PostgresTest.layer))))
