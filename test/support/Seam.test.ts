/**
 * The seam itself: every statement of the library passes through it on its way to PostgreSQL, and the hooks take
 * effect.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import * as SqlClient from "effect/sql/SqlClient"
import { describe } from "vitest"
import * as Listener from "../../src/layers/postgres/connection/Listener.ts"
import { isConnectionLoss } from "../../src/layers/postgres/connection/SqlErrors.ts"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import * as Seam from "./Seam.ts"

/** A client behind the hooks, on its own migrated database, and the library's stores over it. */
const behind = (hooks: Seam.Hooks) =>
  Layer.unwrap(Effect.map(PostgresTest.TestDatabase, ({ url }) => {
    const client = Seam.client({ url: Redacted.make(url) }, hooks)
    return Layer.provideMerge(Seam.stores(hooks), Layer.provideMerge(Migrations.layer, client))
  })).pipe(Layer.provide(Layer.effect(PostgresTest.TestDatabase)(PostgresTest.make())))

const live = <A, E>(
  title: string,
  hooks: Seam.Hooks,
  test: Effect.Effect<A, E, Layer.Success<ReturnType<typeof behind>>>
) => it.live(title, () => Effect.provide(test, behind(hooks)))

const append = (aggregateId: string) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    sql`
      INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
      VALUES ('app', 'A', ${aggregateId}, 1, gen_random_uuid(), 'Written', ''::bytea)`)

const count = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) =>
    Effect.map(sql<{ readonly count: bigint }>`SELECT count(*) AS count FROM events`, ([row]) => Number(row?.count))
)

describe("Seam", () => {
  const seen = new Map<string, Set<string>>()
  const watching: Seam.Hooks = {
    rewrite: ({ session, text }) => {
      const texts = seen.get(session)
      if (texts === undefined) seen.set(session, new Set([text]))
      else texts.add(text)
      return text
    }
  }
  live(
    "every statement of two workers passes through it, including transactions",
    watching,
    Effect.gen(function*() {
      const handled = yield* Deferred.make<void>()
      const projection = Projection.make("seen", { handle: () => Deferred.succeed(handled, undefined) })
      const worker = Effect.flatMap(
        Orchestrator.make({ replicaSet: "main", projections: [projection] }),
        (orchestrator) => orchestrator.run
      )
      const first = yield* Effect.forkChild(worker)
      // Workers in the same process share its presence; only another process can be watched.
      const second = yield* Effect.forkChild(Effect.provide(worker, Layer.fresh(Seam.stores(watching))))
      yield* append("a")
      yield* Deferred.await(handled)
      const sql = yield* SqlClient.SqlClient
      const names = "pupsourcing-orchestrator"
      yield* TimeLimits.waitUntil(
        "the neighbour is watched",
        sql`SELECT FROM pg_stat_activity WHERE application_name = ${`${names} presence`}`,
        (rows) => rows.length > 0 && seen.has(`${names} presence`)
      )
      assert.deepStrictEqual(
        [...seen.keys()].sort(),
        ["pool", ...["coordination", "listener", "presence", "reader"].map((name) => `${names} ${name}`)]
      )
      assert.containsAllKeys(Object.fromEntries([...seen.get("pool")!].map((text) => [text, true])), [
        "BEGIN",
        "COMMIT"
      ])
      assert.isTrue([...seen.get(`${names} listener`)!].some((text) => text.startsWith("LISTEN")))
      yield* Fiber.interruptAll([first, second])
    })
  )

  live(
    "a hook can rewrite a statement",
    { rewrite: ({ text }) => text.replace("'Written'", "'Rewritten'") },
    Effect.gen(function*() {
      yield* append("a")
      const sql = yield* SqlClient.SqlClient
      const [row] = yield* sql<{ readonly type: string }>`SELECT event_type AS type FROM events`
      assert.strictEqual(row?.type, "Rewritten")
    })
  )

  const lossy = (lost: "before" | "after") => {
    let armed = false
    const hooks: Seam.Hooks = {
      around: (statement, send) => {
        // The migrations commit too.
        if (statement.text.includes("'Written'")) armed = true
        if (!armed || statement.text !== "COMMIT") return send
        armed = false
        return lost === "before" ? statement.lose : Effect.andThen(send, statement.lose)
      }
    }
    return hooks
  }
  for (const [lost, rows] of [["before", 0], ["after", 1]] as const) {
    live(
      `a connection lost ${lost} COMMIT fails it, and the pool recovers`,
      lossy(lost),
      Effect.gen(function*() {
        const pg = yield* PgClient.PgClient
        const error = yield* Effect.flip(Effect.sandbox(pg.withTransaction(append("a"))))
        const isLoss = error.reasons.some((reason) =>
          reason._tag === "Fail" && reason.error._tag === "SqlError" && isConnectionLoss(reason.error)
        )
        assert.isTrue(isLoss, String(error))
        assert.strictEqual(yield* count, rows)
      })
    )
  }

  const dropsFirst: Seam.Hooks = {
    deliver: ({ payload }, hand) => payload === "first" ? Effect.void : hand
  }
  live(
    "a notification that a hook drops is not received",
    dropsFirst,
    Effect.scoped(Effect.gen(function*() {
      const listener = yield* Listener.make.pipe(Effect.provide(Seam.database(dropsFirst)))
      const heard = yield* listener.subscribe("channel")
      assert.strictEqual(yield* Queue.take(heard), Listener.reconnected)
      const sql = yield* SqlClient.SqlClient
      yield* sql`SELECT pg_notify('channel', 'first')`
      yield* sql`SELECT pg_notify('channel', 'second')`
      assert.strictEqual(yield* Queue.take(heard), "second")
    }))
  )
})
