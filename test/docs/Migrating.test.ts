/**
 * The recipes of docs/migrating.md, on tables as Go's libraries create them.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as SqlClient from "effect/sql/SqlClient"
import type * as Migrations from "../../src/layers/postgres/Migrations.ts"
import type * as PostgresStores from "../../src/layers/postgres/PostgresStores.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import { waitUntil } from "../../src/testing/TimeLimits.ts"
import * as Tests from "../support/Tests.ts"
import * as Pages from "./Pages.ts"

/** The columns of Go's tables: its orchestrator, pupsourcing 1.0 and core. */
const goTables = `
CREATE TABLE orchestrator_generations (id uuid PRIMARY KEY, replica_set text NOT NULL, total_partitions integer NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE orchestrator_workers (id uuid PRIMARY KEY, replica_set text NOT NULL,
  generation_id uuid NOT NULL REFERENCES orchestrator_generations (id), partition_key integer NOT NULL DEFAULT -1,
  state text NOT NULL DEFAULT 'pending', last_heartbeat timestamptz NOT NULL DEFAULT now(), started_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE projection_checkpoints (projection_name text PRIMARY KEY, last_global_position bigint NOT NULL DEFAULT 0,
  updated_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE consumer_segments (consumer_name text NOT NULL, segment_id integer NOT NULL, total_segments integer NOT NULL,
  owner_id text, checkpoint bigint NOT NULL DEFAULT 0, PRIMARY KEY (consumer_name, segment_id));
`

const given = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const pg = yield* PgClient.PgClient
  const page = yield* Pages.importBlock<{
    readonly Stores: typeof PostgresStores.layer
    readonly Migrations: typeof Migrations.layer
  }>("migrating", "stores")
  yield* Pages.runSql(sql, goTables)
  yield* Effect.provide(Effect.void, Layer.provide(page.Migrations, Layer.succeed(PgClient.PgClient)(pg)))
  yield* sql`CREATE TABLE users (position bigint PRIMARY KEY)`
  const stores = yield* Layer.build(page.Stores)
  const block = (name: string, values: Readonly<Record<string, string>> = {}) =>
    Effect.map(Pages.runSql(sql, Pages.substitute(Pages.block("migrating", name), values)), (rows) => rows.flat())
  const { users } = yield* Pages.importBlock<{ readonly users: Projection.Projection<unknown, SqlClient.SqlClient> }>(
    "migrating",
    "start-from"
  )
  const worker = (options: Partial<Projection.Any>) =>
    Orchestrator.make({
      replicaSet: "main-projections",
      projections: [{ ...users, startFrom: "beginning" as const, ...options, handler: users.handler }],
      pollInterval: "1 hour"
    }).pipe(Effect.provideContext(stores))
  return {
    sql,
    block,
    filter: Projection.filterText(users),
    worker,
    /** Appends as Go does: plain inserts. */
    goAppends: (count: number) =>
      sql`
        INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
        SELECT 'accounts', 'User', gen_random_uuid()::text, 1, gen_random_uuid(), 'UserCreated', '{}'
        FROM generate_series(1, ${count}::int)`,
    checkpoint: (name: string, position: number) =>
      sql`INSERT INTO projection_checkpoints VALUES (${name}, ${String(position)}::bigint)`,
    segment: (id: number, total: number, position: number) =>
      sql`INSERT INTO consumer_segments VALUES ('users', ${id}::int, ${total}::int, 'gone', ${
        String(position)
      }::bigint)`,
    /** Catches up, and returns the first and last position that were handled, and how many. */
    handledAfter: (options: Partial<Projection.Any> = {}) =>
      Effect.andThen(
        Effect.flatMap(worker(options), ({ catchUp }) => catchUp),
        Effect.map(
          sql<{ readonly first: bigint; readonly last: bigint; readonly n: bigint }>`
            SELECT min(position) AS first, max(position) AS last, count(*) AS n FROM users`,
          ([row]) => [row!.first, row!.last, row!.n]
        )
      )
  }
})

const test = Tests.live(PostgresTest.layer, given)

test("the tables of both libraries fit beside each other", function*({ sql }) {
  const tables = yield* sql<{ readonly name: string }>`
    SELECT relname::text AS name FROM pg_class WHERE relkind = 'r' AND relname ~ '_(generations|workers)$' ORDER BY 1`
  assert.deepStrictEqual(tables.map(({ name }) => name), [
    "orchestrator_generations",
    "orchestrator_workers",
    "pupsourcing_generations",
    "pupsourcing_workers"
  ])
})

test("import takes over one row, and the next event is the first to be handled", function*(world) {
  const { block, checkpoint, filter, goAppends, handledAfter } = world
  yield* goAppends(30)
  yield* checkpoint("users", 20)
  yield* checkpoint("orders", 30)
  assert.deepStrictEqual(yield* block("go-positions"), [
    { projection_name: "orders", last_global_position: 30n, behind: 0n },
    { projection_name: "users", last_global_position: 20n, behind: 10n }
  ])
  assert.include(Pages.block("migrating", "import"), filter)
  assert.deepStrictEqual(yield* block("import"), [{ position: 20n }])
  assert.deepStrictEqual(yield* handledAfter(), [21n, 30n, 10n])
  // Progress is not overwritten.
  const again = yield* Effect.exit(block("import"))
  assert.strictEqual(again._tag, "Failure")
})

test("startFrom takes over the same position", function*({ goAppends, handledAfter }) {
  yield* goAppends(30)
  assert.deepStrictEqual(yield* handledAfter({ startFrom: 20n }), [21n, 30n, 10n])
})

test(
  "import-partitions requires all rows, at one position",
  function*({ block, checkpoint, goAppends, handledAfter, sql }) {
    yield* goAppends(30)
    yield* checkpoint("users_p0", 20)
    assert.deepStrictEqual(yield* block("import-partitions"), [])
    yield* checkpoint("users_p1", 14)
    assert.deepStrictEqual(yield* block("import-partitions"), [])
    assert.deepStrictEqual(yield* block("gap"), [{ low: 14n, high: 20n, events: 6n }])
    yield* sql`UPDATE projection_checkpoints SET last_global_position = 20`
    assert.deepStrictEqual(yield* block("import-partitions"), [{ position: 20n }])
    assert.deepStrictEqual(yield* handledAfter(), [21n, 30n, 10n])
  }
)

test("import-partitions without the condition repeats at most the gap", function*(world) {
  const { block, checkpoint, goAppends, handledAfter } = world
  yield* goAppends(30)
  yield* checkpoint("users_p0", 20)
  yield* checkpoint("users_p1", 14)
  const lowest = { " AND min(last_global_position) = max(last_global_position)": "" }
  assert.deepStrictEqual(yield* block("import-partitions", lowest), [{ position: 14n }])
  assert.deepStrictEqual(yield* handledAfter(), [15n, 30n, 16n])
})

test(
  "import-segments requires all segments, at one position",
  function*({ block, goAppends, handledAfter, segment, sql }) {
    yield* goAppends(30)
    yield* segment(0, 2, 20)
    assert.deepStrictEqual(yield* block("import-segments"), [])
    yield* segment(1, 2, 18)
    assert.deepStrictEqual(yield* block("import-segments"), [])
    yield* sql`UPDATE consumer_segments SET checkpoint = 20`
    assert.deepStrictEqual(yield* block("import-segments"), [{ position: 20n }])
    assert.deepStrictEqual(yield* handledAfter(), [21n, 30n, 10n])
  }
)

test("go-running counts workers with a heartbeat, and go-partitions finds the newest N", function*({ block, sql }) {
  yield* sql`
    INSERT INTO orchestrator_generations VALUES (gen_random_uuid(), 'main', 1, now() - interval '1 hour'),
      ('00000000-0000-0000-0000-000000000001', 'main', 2, now())`
  const worker = (state: string, silent: string) =>
    sql`INSERT INTO orchestrator_workers VALUES (gen_random_uuid(), 'main', '00000000-0000-0000-0000-000000000001', 0,
      ${state}, now() - ${silent}::interval)`
  yield* worker("running", "2 minutes")
  yield* worker("stopped", "1 second")
  assert.deepStrictEqual(yield* block("go-running"), [{ running: 0n }])
  yield* worker("running", "1 second")
  assert.deepStrictEqual(yield* block("go-running"), [{ running: 1n }])
  assert.deepStrictEqual(yield* block("go-partitions"), [{ replica_set: "main", total_partitions: 2 }])
})

test("a notification of another writer wakes a worker that would not poll for an hour", function*(world) {
  const { block, goAppends, sql, worker } = world
  yield* Effect.forkScoped(Effect.flatMap(worker({}), ({ run }) => run))
  yield* waitUntil(
    "the worker owns the range",
    sql`SELECT FROM orchestrator_checkpoints WHERE worker_id IS NOT NULL`,
    (rows) => rows.length === 1
  )
  // The first event may be found by the worker's first read, the others only because of the notification.
  for (const n of [1, 4]) {
    yield* goAppends(n === 1 ? 1 : 3)
    yield* block("notify")
    yield* waitUntil("the events are handled", sql`SELECT FROM users`, (rows) => rows.length === n)
  }
})
