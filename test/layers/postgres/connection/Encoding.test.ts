/** Databases whose encoding is not UTF8. */
import type * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as SqlClient from "effect/sql/SqlClient"
import { syncBuiltinESMExports } from "node:module"
import Os from "node:os"
import {
  EventStore,
  Orchestrator,
  PostgresStores,
  Projection,
  type Projections,
  type Stores
} from "pupsourcing-orchestrator"
import { afterAll } from "vitest"
import { event } from "../../../services/World.ts"
import * as EventStores from "../../../support/EventStores.ts"
import { reasonOf } from "../../../support/StoreErrors.ts"

const host = "büro-\u{1F600}"
const hostname = Os.hostname
Object.assign(Os, { hostname: () => host })
syncBuiltinESMExports()
afterAll(() => {
  Object.assign(Os, { hostname })
  syncBuiltinESMExports()
})

const encodings = ["LATIN1", "EUC_JP", "SQL_ASCII"] as const

/** Characters that every one of the encodings contains. */
const own: { readonly [encoding in typeof encodings[number]]: string } = {
  LATIN1: "é",
  EUC_JP: "日本",
  SQL_ASCII: "é 日本 \u{1F600}"
}

const live = (
  title: string,
  test: (encoding: typeof encodings[number]) => Effect.Effect<
    unknown,
    unknown,
    EventStore.EventStore | PgClient.PgClient | Projections.Projections | SqlClient.SqlClient | Stores.Stores
  >
) =>
  it.live.each(encodings)(`${title} (%s)`, (encoding) =>
    test(encoding).pipe(
      Effect.provide(
        PostgresStores.layer.pipe(
          Layer.provideMerge(EventStores.database({ encoding, client: { applicationName: host } }))
        )
      ),
      Effect.provideService(References.MinimumLogLevel, "None")
    ))

const worker = <E, R>(
  projections: ReadonlyArray<Projection.Projection<E, R>>,
  settings: Partial<Omit<Orchestrator.Options<[]>, "projections">> = {}
) => Orchestrator.make({ replicaSet: "main", projections, pollInterval: "50 millis", ...settings })

live("records a halt whatever the text of its error is", (encoding) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const events = yield* EventStore.EventStore
    yield* events.append([event("a")])
    const errors = [
      `${own[encoding]} is not allowed`,
      "“quoted” – no country “ZZ” …",
      "\u{1F600}".repeat(3000),
      "a\u0000b\uD83D",
      "x".repeat(10_000)
    ]
    for (const [index, error] of errors.entries()) {
      let calls = 0
      const name = `projection_${index}`
      const orchestrator = yield* worker([
        Projection.make(name, {
          handle: () => Effect.suspend(() => Effect.die(new Error(`${error} (call ${++calls})`)))
        })
      ])
      const halted = yield* Effect.flip(orchestrator.catchUp)
      assert.strictEqual(halted._tag, "ProjectionHalted")
      assert.strictEqual(calls, 1, "the handler is not called again")
      const [row] = yield* sql<{ error: string }>`
        SELECT halted_error AS error FROM orchestrator_checkpoints WHERE projection_name = ${name}`
      assert.include(row?.error, "Error: ")
      assert.isAtMost(row!.error.length, 2000)
      if (index === 0) assert.include(row?.error, own[encoding], "what can be stored is kept")
    }
  }))

live(
  "refuses names and filters that cannot be stored, but registers under any host name",
  (encoding) =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      const nothing = (name: string, filter: Projection.CommonOptions = {}) =>
        Projection.make(name, { handle: () => Effect.void, ...filter })
      const storable = own[encoding]
      const fits = yield* worker([
        nothing(`users ${storable}`, { aggregateTypes: [storable], partitionBy: { metadata: storable } })
      ], {
        replicaSet: `main ${storable}`,
        workerId: `worker ${storable}`
      })
      yield* fits.catchUp
      const [row] = yield* sql<{ host: string }>`SELECT host FROM orchestrator_workers`
      assert.strictEqual(row?.host, "b\\u{fc}ro-\\u{1f600}")
      if (encoding === "SQL_ASCII") return
      const name = "\u{1F680}"
      for (
        const [setting, refused] of [
          ["replicaSet", worker([nothing("users")], { replicaSet: name })],
          ["workerId", worker([nothing("users")], { workerId: name })],
          ["projections", worker([nothing(name)])],
          ["projections", worker([nothing("users", { startFrom: "now" }), nothing(name, { startFrom: "now" })])],
          ["projections", worker([nothing("users", { eventTypes: [name] })])],
          ["projections", worker([nothing("users", { partitionBy: { metadata: name } })])]
        ] as const
      ) {
        const error = yield* Effect.flip(Effect.flatMap(refused, ({ run }) => run))
        assert.strictEqual(error._tag, "InvalidSettings")
        if (error._tag !== "InvalidSettings") return
        assert.strictEqual(error.setting, setting)
        assert.include(error.message, `"${name}"`)
        assert.include(error.message, "ENCODING 'UTF8'")
      }
    })
)

live("reports why an event cannot be stored", (encoding) =>
  Effect.gen(function*() {
    const events = yield* EventStore.EventStore
    const stored = yield* events.append([event(own[encoding])])
    assert.strictEqual(stored.positions.length, 1)
    if (encoding === "SQL_ASCII") return
    const error = yield* Effect.flip(events.append([event("\u{1F680}")]))
    assert.strictEqual(reasonOf(error)._tag, "StatementFailed")
    assert.include(error.message, "22P05")
    assert.include(error.message, "ENCODING 'UTF8'")
  }))

it.live("records a halt whose text is longer than the column", () =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const events = yield* EventStore.EventStore
    yield* events.append([event("a")])
    yield* sql`ALTER TABLE orchestrator_checkpoints ALTER COLUMN halted_error TYPE varchar(100)`
    const orchestrator = yield* worker([
      Projection.make("users", { handle: () => Effect.die(new Error("x".repeat(200))) })
    ])
    const halted = yield* Effect.flip(orchestrator.catchUp)
    assert.strictEqual(halted._tag, "ProjectionHalted")
    assert.include(halted.message, "see the log")
  }).pipe(
    Effect.provide(PostgresStores.layer.pipe(Layer.provideMerge(EventStores.database()))),
    Effect.provideService(References.MinimumLogLevel, "None")
  ))
