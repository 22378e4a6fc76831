/**
 * Unusual events that occur in practice: each is handled unchanged or causes a typed error. Uses the public API on a
 * real server.
 */
import { PgClient } from "@effect/sql-pg"
import { assert, describe } from "@effect/vitest"
import { Clock, Console, Effect, Layer, Redacted, Schema } from "effect"
import * as Crypto from "node:crypto"
import { Event, EventStore, PostgresStores, Projection } from "pupsourcing-orchestrator"
import { event } from "../support/EventStores.ts"
import { append, catchUp, halted, recorded, recording, test } from "./OneProcess.ts"

const mega = 1024 * 1024

describe("sizes", () => {
  test(
    "handles empty payloads and payloads of 15 MiB; one above the client's limit halts until the limit is raised",
    function*({ url }) {
      const sizes = [0, 15 * mega, 17 * mega, 1]
      const positions: Array<bigint> = []
      for (const size of sizes) positions.push(...yield* append(event("a", { payload: new Uint8Array(size) })))
      const error = yield* halted(recording("sizes"))
      assert.strictEqual(error.position, positions[2])
      assert.include(error.message, "maxMessageSize")
      assert.deepStrictEqual((yield* recorded("sizes")).map(({ bytes }) => bytes), sizes.slice(0, 2))

      yield* catchUp(recording("sizes")).pipe(
        Effect.provide(
          PostgresStores.layerWith({}).pipe(
            Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxMessageSize: 32 * mega }))
          )
        )
      )
      assert.deepStrictEqual((yield* recorded("sizes")).map(({ bytes }) => bytes), sizes)
    }
  )

  test("columns other than the payload may be too large as well", function*() {
    const [small] = yield* append(event("a"))
    const [large] = yield* append(event("b", { traceId: "x".repeat(17 * mega) }))
    assert.strictEqual((yield* halted(recording("beside"))).position, large)
    assert.deepStrictEqual((yield* recorded("beside")).map(({ position }) => position), [small])
  })

  test(
    "pages are measured by the size that events have when they are sent, not when they are stored",
    function*({ sql }) {
      const store = yield* EventStore.EventStore
      const events = Array.from({ length: 100 }, () => event("a", { metadata: { text: "x".repeat(80_000) } }))
      const positions = yield* append(...events)
      const stored = yield* sql`SELECT FROM events WHERE pg_column_size(metadata) < 1000`
      assert.strictEqual(stored.length, events.length)
      const found: Array<Event.Event> = []
      for (let after = 0n; after < positions[99]!;) {
        const page = yield* store.read({ after, bytes: mega })
        assert.isAtMost(JSON.stringify(page.events.map(({ metadata }) => metadata)).length, mega)
        found.push(...page.events)
        after = page.position
      }
      assert.deepStrictEqual(found, yield* store.readStream(events[0]!))
    }
  )

  test("measures no more events than a page may need", function*({ sql }) {
    const [first] = yield* append(event("a", { metadata: { text: "x".repeat(mega) } }))
    // The copies are already compressed. Measuring all of them takes longer than the statement timeout.
    yield* sql`
        INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload,
          metadata)
        SELECT 'test', 'Test', 'a', n, gen_random_uuid(), 'Happened', payload, metadata
        FROM events, generate_series(2, 3000) AS n`
    const page = yield* (yield* EventStore.EventStore).read({ after: 0n, limit: 5000 })
    assert.strictEqual(page.events[0]?.globalPosition, first)
    assert.isBelow(page.events.length, 5)
  })

  test(
    "handles ten thousand aggregates, and one aggregate with ten thousand events",
    { tags: ["long"] },
    function*({ sql }) {
      const count = 10_000
      yield* sql`
        INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
        SELECT 'test', 'Many', 'a-' || n, 1, gen_random_uuid(), 'Happened', '{}' FROM generate_series(1, ${count}::int) AS n`
      yield* sql`
        INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
        SELECT 'test', 'One', 'a', n, gen_random_uuid(), 'Happened', '{}' FROM generate_series(1, ${count}::int) AS n`
      for (const type of ["Many", "One"]) {
        const began = yield* Clock.monotonicTimeNanos
        yield* catchUp(recording(type, { aggregateTypes: [type] }))
        const millis = ((yield* Clock.monotonicTimeNanos) - began) / 1_000_000n
        yield* Console.log(`${type}: ${count} events in ${millis} ms`)
      }
      assert.strictEqual(new Set((yield* recorded("Many")).map(({ aggregateId }) => aggregateId)).size, count)
      const versions = (yield* recorded("One")).map(({ version }) => version)
      assert.deepStrictEqual(versions, Array.from({ length: count }, (_, index) => BigInt(index + 1)))
    }
  )
})

describe("payloads", () => {
  const payloads = {
    "not JSON": new TextEncoder().encode("private"),
    "half of a JSON text": new TextEncoder().encode("{\"secret\":\"private"),
    "not UTF-8": Uint8Array.of(0xff, 0xfe),
    "nothing": new Uint8Array(0),
    "JSON of another shape": new TextEncoder().encode("{\"secret\":\"private\"}")
  }
  const json = (event: Event.Event) => Event.json(event, Schema.Struct({ secret: Schema.Int }))

  test("that are not JSON reach a handler of bytes; a handler of JSON can detect them, or halts with a typed error", function*() {
    const sizes = Object.values(payloads).map(({ length }) => length)
    const positions: Array<bigint> = []
    for (const [what, payload] of Object.entries(payloads)) {
      positions.push(...yield* append(event(what, { aggregateType: what, payload })))
    }
    yield* Effect.forEach(
      Object.keys(payloads),
      Effect.fnUntraced(function*(what, index) {
        const error = yield* halted(Projection.make(what, { aggregateTypes: [what], handle: json }), {
          replicaSet: what
        })
        assert.strictEqual(error.position, positions[index])
        assert.include(error.error, "SchemaError")
        assert.notInclude(error.error, "private")
      }),
      { concurrency: "unbounded" }
    )
    yield* catchUp(recording("bytes"))
    assert.deepStrictEqual((yield* recorded("bytes")).map(({ bytes }) => bytes), sizes)

    const told: Array<string> = []
    yield* catchUp(Projection.make("tells", {
      handle: (event) =>
        Effect.catchTag(json(event), "SchemaError", () => Effect.sync(() => told.push(event.aggregateId)))
    }))
    assert.deepStrictEqual(told, Object.keys(payloads))
  })

  test("metadata may be NULL, JSON's null, or any JSON", function*({ sql }) {
    const kinds = [null, "null", "{}", "[]", "\"text\"", "1e300", "{\"a\":{\"b\":[null,true]}}"]
    for (const [index, metadata] of kinds.entries()) {
      yield* sql`
          INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type,
            payload, metadata)
          VALUES ('test', 'Test', 'a', ${index + 1}, gen_random_uuid(), 'Happened', '', ${metadata}::jsonb)`
    }
    yield* catchUp(recording("metadata"))
    assert.deepStrictEqual(
      (yield* recorded("metadata")).map(({ metadata }) => metadata),
      kinds.map((metadata): unknown => metadata === null ? null : JSON.parse(metadata))
    )
  })
})

describe("names", () => {
  const names = [
    "O'Brien \"the 3rd\" \\ $1 ${x} -- ; DROP TABLE events; /*",
    "%_*?[a-z]{1}",
    "👩‍👩‍👧‍👦 \u{1F600}",
    // These two look alike but differ.
    "\u00e9",
    "e\u0301",
    "مرحبا \u202eabc",
    " a\tb\r\n ",
    "null",
    "a".repeat(10_000)
  ]

  test("are stored unchanged, whatever they contain", function*() {
    const store = yield* EventStore.EventStore
    for (const name of names) {
      const stream = { boundedContext: name, aggregateType: name, aggregateId: name }
      const written = {
        ...stream,
        eventType: name,
        traceId: name,
        correlationId: name,
        causationId: name,
        metadata: { [name]: name }
      }
      yield* append(event(name, written))
      const [found, ...others] = yield* store.readStream(stream)
      assert.deepStrictEqual(others, [])
      assert.deepInclude(found, written)
    }
    // Names of projections and workers may contain the same characters.
    for (const name of names.slice(0, -1)) {
      const filter = { boundedContexts: [name], aggregateTypes: [name], eventTypes: [name] }
      yield* catchUp(recording(name, filter), { replicaSet: name, workerId: name })
      assert.deepStrictEqual((yield* recorded(name)).map(({ aggregateId }) => aggregateId), [name])
    }
  })

  test("that the database cannot index are refused, and nothing is stored", function*() {
    const store = yield* EventStore.EventStore
    const long = event(Crypto.randomBytes(5000).toString("hex"))
    const error = yield* Effect.flip(store.append([long]))
    assert(error._tag === "StoreError" && error.reason._tag === "StatementFailed")
    assert.strictEqual(error.reason.code, "54000")
    assert.strictEqual(yield* store.headPosition, 0n)
    yield* append(event("short"))
    yield* catchUp(recording("after it"))
    assert.strictEqual((yield* recorded("after it")).length, 1)
  })
})

describe("the ends of int8", () => {
  const last = 2n ** 63n - 1n

  test("handles an aggregate's last possible version, and refuses any after it", function*({ sql }) {
    const store = yield* EventStore.EventStore
    yield* sql`
        INSERT INTO aggregate_heads (bounded_context, aggregate_type, aggregate_id, aggregate_version)
        VALUES ('test', 'Test', 'a', ${last - 2n}::bigint)`
    yield* sql`
        INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
        VALUES ('test', 'Test', 'a', ${last - 2n}::bigint, gen_random_uuid(), 'Happened', '{}')`
    assert.strictEqual((yield* store.append([event("a")], { expectedVersion: last - 2n })).lastVersion, last - 1n)
    // Two events at once do not fit, and neither is stored.
    for (const events of [[event("a"), event("a")], [event("a"), event("a"), event("a")]]) {
      const error = yield* Effect.flip(store.append(events))
      assert(error._tag === "StoreError" && error.reason._tag === "StatementFailed")
      assert.strictEqual(error.reason.code, "22003")
    }
    assert.strictEqual((yield* store.append([event("a")])).lastVersion, last)
    for (const expectedVersion of ["any", last] as const) {
      const error = yield* Effect.flip(store.append([event("a")], { expectedVersion }))
      assert(error._tag === "StoreError" && error.reason._tag === "StatementFailed")
      assert.strictEqual(error.reason.code, "22003")
    }
    const beyond = yield* Effect.flip(store.append([event("b")], { expectedVersion: last + 1n }))
    assert.strictEqual(beyond._tag, "ConcurrencyConflict")
    yield* catchUp(recording("versions"))
    assert.deepStrictEqual((yield* recorded("versions")).map(({ version }) => version), [last - 2n, last - 1n, last])
  })

  test("handles the last possible position, and refuses any after it", function*({ sql }) {
    const store = yield* EventStore.EventStore
    yield* append(event("a"))
    yield* catchUp(recording("positions"))
    yield* sql`SELECT setval('events_global_position_seq', ${last - 2n}::bigint)`
    assert.deepStrictEqual(yield* append(event("a"), event("a")), [last - 1n, last])
    const error = yield* Effect.flip(store.append([event("a")]))
    assert(error._tag === "StoreError" && error.reason._tag === "StatementFailed")
    assert.strictEqual(error.reason.code, "2200H")
    yield* catchUp(recording("positions"))
    assert.deepStrictEqual((yield* recorded("positions")).map(({ position }) => position), [1n, last - 1n, last])
    // No later position can exist, and this must not be an error.
    yield* catchUp(recording("positions"))
  })
})
