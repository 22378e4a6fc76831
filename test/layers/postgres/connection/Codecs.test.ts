/** Clients whose codecs the application has changed: the changes do not affect the library's statements. */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as PgTypes from "@effect/sql-pg/PgTypes"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as SqlClient from "effect/sql/SqlClient"
import * as Migrations from "../../../../src/layers/postgres/Migrations.ts"
import * as PostgresStores from "../../../../src/layers/postgres/PostgresStores.ts"
import type { Event } from "../../../../src/schema/Event.ts"
import { EventStore } from "../../../../src/services/EventStore.ts"
import * as Orchestrator from "../../../../src/services/Orchestrator.ts"
import * as Projection from "../../../../src/services/Projection.ts"
import * as PostgresTest from "../../../../src/testing/PostgresTest.ts"
import * as EventStores from "../../../support/EventStores.ts"

/** A value that only a codec of the application produces. */
interface Custom {
  readonly custom: string
}

/** Decodes to a `Custom`, and refuses to encode anything else. */
const custom: PgTypes.Codec<Custom> = {
  decode: (bytes) => Result.succeed({ custom: Buffer.from(bytes).toString("hex") }),
  encode: (value) =>
    typeof value === "object" && "custom" in value
      ? Result.succeed(new Uint8Array(Buffer.from(value.custom, "hex")))
      : Result.fail(new PgTypes.CodecError({ message: `Expected a custom value, got ${typeof value}` }))
}

const { bytea, byteaArray, text, textArray } = PgTypes.OID

/** Every type whose values are neither bytes nor text. */
const oids: ReadonlyArray<number> = Object.values(PgTypes.OID).filter((oid) =>
  ![bytea, byteaArray, text, textArray].some((other) => other === oid)
)

const registry = (register: (registry: PgTypes.Registry) => void) => {
  const registry = PgTypes.makeRegistry()
  register(registry)
  return registry
}

const client = (config: Omit<PgClient.PgPoolConfig, "url">) =>
  Layer.unwrap(
    Effect.map(PostgresTest.TestDatabase, ({ url }) => PgClient.layer({ ...config, url: Redacted.make(url) }))
  )

const newEvent = {
  boundedContext: "test",
  aggregateType: "Test",
  aggregateId: "a",
  eventType: "Happened",
  eventVersion: 3,
  payload: new Uint8Array([0, 92, 255]),
  metadata: { depth: [1, null, "ä"] },
  traceId: "trace"
}

const isAsPromised = (event: Event, version: bigint) => {
  assert.strictEqual(event.aggregateVersion, version)
  assert.strictEqual(event.globalPosition, version)
  assert.strictEqual(event.eventVersion, 3)
  assert.match(event.eventId, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/)
  assert.instanceOf(event.payload, Uint8Array)
  assert.deepStrictEqual([...event.payload], [0, 92, 255])
  assert.deepStrictEqual(event.metadata, newEvent.metadata)
  assert.instanceOf(event.createdAt, Date)
  assert.isBelow(Math.abs(event.createdAt.getTime() - Date.now()), 24 * 3600 * 1000)
  assert.deepStrictEqual([event.traceId, event.correlationId, event.causationId], ["trace", null, null])
}

/** Uses everything that the library runs on the application's pool, and what handlers receive. */
const everything = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const status = yield* Migrations.up
  assert.deepStrictEqual([status.version, status.differences], [status.expected, []])
  assert.deepStrictEqual(yield* Migrations.up, status)
  assert.deepStrictEqual(yield* Migrations.status, status)
  yield* sql`CREATE TABLE handled (aggregate_id text)`
  const received: Array<Event> = []
  let failing = true
  const projection = Projection.make("seen", {
    eventTypes: ["Happened"],
    handle: Effect.fnUntraced(function*(event) {
      received.push(event)
      yield* sql`INSERT INTO handled VALUES (${event.aggregateId})`
      if (event.aggregateVersion === 3n && failing) return yield* Effect.fail("not yet")
    })
  })
  yield* Effect.gen(function*() {
    const store = yield* EventStore
    const first = yield* store.append([newEvent, newEvent], { expectedVersion: "none" })
    assert.deepStrictEqual(
      [first.firstVersion, first.lastVersion, first.positions] as const,
      [1n, 2n, [1n, 2n]] as const
    )
    const conflict = yield* Effect.flip(store.append([newEvent], { expectedVersion: 7n }))
    assert(conflict._tag === "ConcurrencyConflict")
    assert.strictEqual(conflict.actual, 2n)
    yield* sql.withTransaction(store.append([newEvent], { expectedVersion: 2n }))
    const stream = yield* store.readStream(newEvent, { from: 1n, to: 2n, limit: 10 })
    assert.strictEqual(stream.length, 2)
    for (const [index, event] of stream.entries()) isAsPromised(event, BigInt(index + 1))
    const worker = Orchestrator.layer({ replicaSet: "main", projections: [projection] })
    const halted = yield* Effect.flip(Effect.provide(Orchestrator.catchUp, worker))
    assert.strictEqual(halted._tag, "ProjectionHalted")
    failing = false
    yield* Effect.provide(Orchestrator.catchUp, worker)
    // No event matches: progress is written without a batch.
    yield* store.append([{ ...newEvent, eventType: "Ignored" }])
    yield* Effect.provide(Orchestrator.catchUp, worker)
    const stored = (yield* store.readStream(newEvent))[0]!.eventId
    for (const expectedVersion of ["any", "none"] as const) {
      const repeated = yield* Effect.flip(store.append([{ ...newEvent, eventId: stored }], { expectedVersion }))
      assert.strictEqual(repeated._tag, "DuplicateEvent")
      assert.include(repeated.message, stored)
    }
  }).pipe(Effect.provide(PostgresStores.layer))
  for (const event of received) isAsPromised(event, event.aggregateVersion)
  assert.strictEqual(received[received.length - 1]?.aggregateVersion, 3n)
  const rows = yield* sql.withoutTransforms()<{ readonly events: string; readonly position: string }>`
    SELECT count(*)::text AS events, (SELECT min(position)::text FROM orchestrator_checkpoints) AS position FROM handled`
  assert.deepStrictEqual(rows, [{ events: "3", position: "4" }])
})

const refusal = <A>(oid: number, codec: PgTypes.Codec<A>) =>
  Effect.flip(Layer.build(PostgresStores.layer)).pipe(
    Effect.scoped,
    Effect.provide(client({ types: registry((registry) => registry.register(oid, codec)) }))
  )

describe("the application's codecs", () => {
  it.live("do not affect the library when set through the client's types", () => {
    const types = registry((registry) => {
      for (const oid of oids) registry.register(oid, custom)
    })
    return Effect.provide(everything, client({ types }).pipe(Layer.provideMerge(PostgresTest.layer)))
  })

  it.live("do not affect the library when registered for all clients", () =>
    Effect.gen(function*() {
      const { url } = yield* PostgresTest.TestDatabase
      for (const oid of oids) PgTypes.register(oid, custom)
      yield* Effect.provide(everything, PgClient.layer({ url: Redacted.make(url) }))
    }).pipe(
      Effect.ensuring(Effect.sync(() => oids.forEach(PgTypes.unregister))),
      Effect.provide(PostgresTest.layer)
    ))

  it.live("do not affect the library where 64-bit numbers are numbers and times are strings, nor do name transforms", () => {
    const types = registry((registry) => {
      registry.register<number>(PgTypes.OID.int8, {
        decode: (bytes) => Result.succeed(Number(Buffer.from(bytes).readBigInt64BE())),
        encode: (value) => {
          const bytes = Buffer.alloc(8)
          bytes.writeBigInt64BE(BigInt(value))
          return Result.succeed(new Uint8Array(bytes))
        }
      })
      registry.register<string>(PgTypes.OID.timestamptz, {
        decode: (bytes) => Result.succeed(String(Buffer.from(bytes).readBigInt64BE())),
        encode: () => Result.fail(new PgTypes.CodecError({ message: "no times" }))
      })
    })
    const transforms = {
      transformResultNames: (name: string) => name.toUpperCase(),
      transformQueryNames: (name: string) => name.toLowerCase(),
      transformJson: true
    }
    return Effect.provide(everything, client({ ...transforms, types }).pipe(Layer.provideMerge(PostgresTest.layer)))
  })

  it.live("are refused for text and bytea, with the name of the setting", () =>
    Effect.gen(function*() {
      const hex: PgTypes.Codec<string> = {
        decode: (bytes) => Result.succeed(Buffer.from(bytes).toString("hex")),
        encode: (value) =>
          typeof value === "string"
            ? Result.succeed(new Uint8Array(Buffer.from(value, "hex")))
            : Result.fail(new PgTypes.CodecError({ message: "Expected hexadecimal digits" }))
      }
      const unreadable: PgTypes.Codec<string> = {
        ...hex,
        decode: () => Result.fail(new PgTypes.CodecError({ message: "unreadable" }))
      }
      for (const oid of [bytea, text]) {
        for (const error of [yield* refusal(oid, custom), yield* refusal(oid, hex), yield* refusal(oid, unreadable)]) {
          assert.strictEqual(error._tag, "InvalidSettings")
          assert.match(error.message, /^Setting "types": .*(bytea|text)/)
        }
      }
    }).pipe(Effect.provide(EventStores.database())))
})
