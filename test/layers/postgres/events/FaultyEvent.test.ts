/**
 * Events whose stored bytes cannot be read. Each is named, and only the ranges that would receive it halt.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as Schema from "effect/Schema"
import type * as SqlClient from "effect/sql/SqlClient"
import * as FaultyEvent from "../../../../src/layers/postgres/events/FaultyEvent.ts"
import * as PostgresStores from "../../../../src/layers/postgres/PostgresStores.ts"
import { StatementFailed } from "../../../../src/schema/Errors.ts"
import type { NewEvent } from "../../../../src/schema/Event.ts"
import * as HashRange from "../../../../src/schema/HashRange.ts"
import { EventStore, type ReadOptions } from "../../../../src/services/EventStore.ts"
import * as Orchestrator from "../../../../src/services/Orchestrator.ts"
import * as Projection from "../../../../src/services/Projection.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import * as Damage from "../../../support/Damage.ts"
import * as EventStores from "../../../support/EventStores.ts"
import * as Seam from "../../../support/Seam.ts"
import { reasonOf } from "../../../support/StoreErrors.ts"

const { event, storeTest, test } = EventStores

/** Reads to the end as a runner does, past unreadable events. Returns the positions and the errors. */
const readAll = Effect.fnUntraced(function*(options: Partial<ReadOptions> = {}) {
  const store = yield* EventStore
  const delivered: Array<bigint> = []
  const errors: Array<unknown> = []
  const upTo = yield* store.settledPosition
  for (let after = 0n; after < upTo;) {
    const result = yield* Effect.result(store.read({ ...options, after, upTo }))
    if (result._tag === "Success") {
      delivered.push(...result.success.events.map(({ globalPosition }) => globalPosition))
      after = result.success.position
    } else if (result.failure._tag === "EventUnreadable") {
      errors.push(result.failure)
      after = result.failure.position
    } else {
      return yield* result.failure
    }
  }
  return { delivered, errors }
})

const long = (aggregateId: string, rest: Partial<NewEvent> = {}) =>
  event(aggregateId, { payload: new Uint8Array(5000), metadata: { key: "value" }, ...rest })

describe("an event that cannot be read", () => {
  for (const { code, make, name } of Damage.all) {
    storeTest(`is reported, and the events around it are read: ${name}`, function*({ sql, store }) {
      yield* Damage.prepare(sql)
      for (const one of [event("a"), event("b"), long("c"), event("d"), event("e", { aggregateType: "Other" })]) {
        yield* store.append([one])
      }
      const [stored] = yield* store.readStream({ ...event("c"), aggregateId: "c" })
      yield* make(sql, 3n)
      for (const limit of [1000, 1]) {
        const { errors, delivered } = yield* readAll({ limit })
        assert.deepStrictEqual(delivered, [1n, 2n, 4n, 5n])
        assert.strictEqual(errors.length, 1)
        const error = errors[0]
        assert.include(error, { _tag: "EventUnreadable", position: 3n, code, eventId: stored?.eventId })
      }
      const others = yield* readAll({ filter: { aggregateTypes: ["Other"] } })
      assert.deepStrictEqual(others, { delivered: [5n], errors: [] })
      const parts = yield* Effect.forEach([0, 1, 2, 3], (part) => readAll({ range: HashRange.partition(part, 4) }))
      assert.strictEqual(parts.flatMap(({ errors }) => errors).length, 1)
      assert.sameMembers(parts.flatMap(({ delivered }) => delivered), [1n, 2n, 4n, 5n])
    })
  }
})

describe("the key of an event that cannot be returned", () => {
  const keyed = (key: string, rest: Partial<NewEvent> = {}) => event("a", { metadata: { key }, ...rest })
  const partitionBy = { metadata: "key" }

  storeTest("is part of the error if it can be read", function*({ sql, store }) {
    yield* Damage.prepare(sql)
    for (const key of ["first", "it's \"quoted\"", "y".repeat(5_000), "damaged"]) {
      yield* store.append([keyed(key)])
    }
    const [traceId, metadata] = ["a text that is not valid", "metadata whose text is not valid"].map((name) =>
      Damage.all.find((damage) => damage.name === name)!
    )
    yield* traceId!.make(sql, 2n)
    yield* traceId!.make(sql, 3n)
    yield* metadata!.make(sql, 4n)
    const { delivered, errors } = yield* readAll({ partitionBy, range: HashRange.whole })
    assert.deepStrictEqual(delivered, [1n])
    assert.include(errors[0], { position: 2n, aggregateId: "a", key: "it's \"quoted\"" })
    assert.include(errors[1], { position: 3n, aggregateId: "a" })
    assert.notProperty(errors[1], "key", "a long key is left out")
    assert.include(errors[2], { position: 4n, aggregateId: "a" })
    assert.notProperty(errors[2], "key", "it is the part that cannot be read")
    const others = yield* readAll()
    assert.notProperty(others.errors[0], "key", "the aggregate id is the key")
  })

  storeTest(
    "is also part of the error about an event that is too large",
    { client: { maxMessageSize: 100_000 } },
    function*({ store }) {
      const { positions } = yield* store.append([keyed("big", { payload: new Uint8Array(200_000) })])
      while ((yield* store.settledPosition) < positions[0]!) yield* Effect.sleep(10)
      const failure = yield* Effect.flip(store.read({ after: 0n, partitionBy }))
      assert.include(failure, { _tag: "EventTooLarge", key: "big" })
    }
  )
})

/** Raises an error instead of reading the payload at a position. */
const raising = (code: string, position: bigint) => {
  let statements = 0
  const hooks: Seam.Hooks = {
    rewrite: ({ text }) =>
      text.replace(/FROM ((?:"\w+"\.)?"events")(?=\s+WHERE global_position > \$1)/, (_, events) => {
        statements++
        return `FROM (
          SELECT global_position, bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type,
            event_version, raised('${code}', payload, global_position = ${position}) AS payload, trace_id, correlation_id,
            causation_id, metadata, created_at
          FROM ${events}) AS e`
      })
  }
  return { hooks, statements: () => statements }
}

const prepareRaising = (sql: SqlClient.SqlClient) =>
  sql.unsafe(`CREATE FUNCTION raised(code text, payload bytea, bad bool) RETURNS bytea LANGUAGE plpgsql STABLE AS $$
      BEGIN IF bad THEN RAISE EXCEPTION 'raised' USING ERRCODE = code; END IF; RETURN payload; END $$`).unprepared

const over = (hooks: Seam.Hooks): Layer.Layer<EventStore, unknown, PgClient.PgClient> => Layer.fresh(Seam.stores(hooks))

const append = Effect.fnUntraced(function*(count: number) {
  const sql = yield* PgClient.PgClient
  yield* sql`
    INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
    SELECT 'test', 'Test', i::text, 1, gen_random_uuid(), 'Happened', '' FROM generate_series(1, ${count}::int) AS i`
})

describe("an error of one row", () => {
  test("is attributed to its event, which is found by halving", function*() {
    yield* append(5_000)
    yield* prepareRaising(yield* PgClient.PgClient)
    for (const code of ["54000", "22021", "22P05", "XX001", "XX002", "58P01"]) {
      const raised = raising(code, 3_456n)
      const { errors, delivered } = yield* Effect.provide(readAll(), over(raised.hooks))
      assert.strictEqual(errors.length, 1)
      assert.include(errors[0], { position: 3_456n, code })
      assert.strictEqual(delivered.length, 4_999)
      assert.isBelow(raised.statements(), 60)
    }
  })

  test("is not attributed to the event if it may pass or is a missing privilege", function*() {
    yield* append(5)
    yield* prepareRaising(yield* PgClient.PgClient)
    for (const code of ["40001", "42501", "42P01", "53200", "57014", "58030"]) {
      const error = yield* Effect.flip(Effect.provide(readAll(), over(raising(code, 3n).hooks)))
      assert.include(["StatementFailed", "DatabaseUnavailable"], (reasonOf(error) as { readonly _tag: string })._tag)
    }
  })

  test("of the last row stops neither the settled position nor the head", function*({ sql }) {
    const raised = raising("XX001", 5n)
    yield* prepareRaising(sql)
    yield* append(5)
    yield* sql.unsafe(`CREATE FUNCTION read_position(number int8) RETURNS int8 LANGUAGE plpgsql STABLE AS $$
        BEGIN PERFORM raised('XX001', '', number = 5); RETURN number; END $$`).unprepared
    // As if the page of the row were damaged: not even its position can be read.
    const hooks: Seam.Hooks = {
      rewrite: (statement) =>
        (raised.hooks.rewrite?.(statement) ?? "")
          .replaceAll(
            /(?<=SELECT )global_position(?=(?: AS position,[^F]+)? FROM)/g,
            "read_position(global_position)"
          )
    }
    yield* Effect.gen(function*() {
      const store = yield* EventStore
      assert.strictEqual(yield* store.settledPosition, 5n)
      assert.strictEqual(yield* store.headPosition, 5n)
      const { errors, delivered } = yield* readAll()
      assert.deepStrictEqual(delivered, [1n, 2n, 3n, 4n])
      assert.include(errors[0], { position: 5n, code: "XX001" })
    }).pipe(Effect.provide(over(hooks)))
  })

  test("is not attributed to an event if reading no row fails as well", function*({ sql }) {
    yield* append(5)
    yield* sql.unsafe(`CREATE FUNCTION broken() RETURNS bool LANGUAGE plpgsql STABLE AS $$
        BEGIN RAISE EXCEPTION 'broken' USING ERRCODE = 'XX002'; END $$`).unprepared
    const hooks: Seam.Hooks = {
      rewrite: ({ text }) =>
        text.replace(/(?<=FROM (?:"\w+"\.)?"events"\s+WHERE )(?=global_position > \$1)/, "broken() AND ")
    }
    const error = yield* Effect.flip(Effect.provide(readAll(), over(hooks)))
    assert.include(reasonOf(error), { _tag: "StatementFailed", code: "XX002" })
  })

  test(
    "is attributed to its event, although the time limit ends statements that read much before it",
    function*({ sql }) {
      yield* append(100)
      yield* prepareRaising(sql)
      yield* sql.unsafe(`CREATE FUNCTION limited(rows int8) RETURNS int8 LANGUAGE plpgsql STABLE AS $$
        BEGIN IF rows > 8 THEN RAISE EXCEPTION 'too long' USING ERRCODE = '57014'; END IF; RETURN rows; END $$`)
        .unprepared
      const raised = raising("XX001", 90n)
      const hooks: Seam.Hooks = {
        rewrite: (statement) =>
          (raised.hooks.rewrite?.(statement) ?? "").replace("count(bytes) AS rows", "limited(count(bytes)) AS rows")
      }
      const { errors, delivered } = yield* Effect.provide(readAll(), over(hooks))
      assert.include(errors[0], { position: 90n, code: "XX001" })
      assert.strictEqual(delivered.length, 99)
    }
  )

  test("is not attributed to an event of another server that takes over after the search", function*({ sql }) {
    yield* append(5)
    yield* sql`UPDATE events SET aggregate_type = 'Other' WHERE global_position = 3`
    yield* prepareRaising(sql)
    const raised = raising("XX001", 3n)
    let reads = 0
    const hooks: Seam.Hooks = {
      rewrite: raised.hooks.rewrite,
      // The second read repeats what precedes the event that was found.
      around: (statement, send) => statement.text.includes("AS judged") && ++reads === 2 ? statement.lose : send
    }
    yield* Effect.gen(function*() {
      const store = yield* EventStore
      const filter = { aggregateTypes: ["Other"] }
      const page = yield* store.read({ after: 0n, upTo: yield* store.settledPosition, filter })
      assert.include(page, { position: 2n })
      assert.strictEqual(reads, 3)
      assert.include(yield* Effect.flip(store.read({ after: 2n, filter })), { position: 3n, epoch: page.epoch })
    }).pipe(Effect.provide(over(hooks)))
  })

  test("is not attributed to an event if it passes while the event is searched for", function*({ sql }) {
    yield* append(50)
    yield* sql.unsafe(`CREATE FUNCTION broken() RETURNS bool LANGUAGE plpgsql STABLE AS $$
        BEGIN RAISE EXCEPTION 'cache lookup failed' USING ERRCODE = 'XX000'; END $$`).unprepared
    for (const failing of [2, 4, 6]) {
      let statements = 0
      const hooks: Seam.Hooks = {
        // The first statement reads the events; the others search for the damaged one.
        rewrite: ({ text }) =>
          text.replace(
            /(?<=FROM (?:"\w+"\.)?"events"\s+WHERE )(?=global_position > \$1)/,
            () => [1, failing].includes(++statements) ? "broken() AND " : ""
          )
      }
      yield* Effect.gen(function*() {
        const error = yield* Effect.flip(readAll())
        assert.include(reasonOf(error), { _tag: "StatementFailed", code: "XX000" })
        assert.isAtLeast(statements, failing)
        assert.strictEqual((yield* readAll()).delivered.length, 50)
      }).pipe(Effect.provide(over(hooks)))
    }
  })
})

const int = (minimum: number, maximum: number) => Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum, maximum })))

const failureAt = (position: bigint) =>
  new StatementFailed({ operation: "read", detail: String(position), cause: "damage" })

/** A check that fails at the first damaged event, or takes too long if more than `most` positions precede it. */
const checkOf = (damaged: ReadonlyArray<bigint>, most: bigint) => {
  let statements = 0
  const check = (after: bigint, upTo: bigint) =>
    Effect.sync(() => {
      statements++
      const first = damaged.find((position) => after < position && position <= upTo)
      return (first ?? upTo) - after > most ? "timeout" as const : first === undefined ? undefined : failureAt(first)
    })
  return { check, statements: () => statements }
}

describe("the search for an event that cannot be read", () => {
  it.effect.prop(
    "returns the first event that cannot be read, in few statements that each stop in time",
    { damaged: Schema.Array(int(1, 5_000)), after: int(0, 5_000), most: int(1, 5_000) },
    ({ after, damaged, most }) =>
      Effect.gen(function*() {
        const positions = damaged.map(BigInt).sort((one, other) => one < other ? -1 : one > other ? 1 : 0)
        const { check, statements } = checkOf(positions, BigInt(most))
        const found = yield* FaultyEvent.find(check, BigInt(after), 5_001n)
        assert.strictEqual(found?.position, positions.find((position) => position > BigInt(after)))
        assert.strictEqual(found?.failure.detail, found === undefined ? undefined : String(found.position))
        assert.isBelow(statements(), 60 + 5 * 5_000 / most)
      }),
    { arbitrary: { runs: 300, size: 20, seed: "faulty event" } }
  )

  it.effect("blames no event if reading no row fails as well, or the event can be read alone", () =>
    Effect.gen(function*() {
      const always = () => Effect.succeed(failureAt(1n))
      assert.isUndefined(yield* FaultyEvent.find(always, 0n, 10n))
      let statements = 0
      const once = () => Effect.sync(() => ++statements === 1 ? failureAt(1n) : undefined)
      assert.isUndefined(yield* FaultyEvent.find(once, 0n, 10n))
    }))
})

describe("a worker that reads such an event", () => {
  for (const { make, name } of [Damage.all[0]!, Damage.all[1]!]) {
    test(`halts its range and continues with everything else: ${name}`, function*({ sql }) {
      yield* Damage.prepare(sql)
      yield* sql`CREATE TABLE handled (projection text, position int8)`
      const store = yield* Effect.map(Layer.build(EventStores.stores()), Context.get(EventStore))
      const other = { aggregateType: "Other" }
      for (const one of [event("a"), event("b", other), long("c"), event("d"), event("e", other)]) {
        yield* store.append([one])
      }
      const projection = (name: string, type: string) =>
        Projection.make(name, {
          aggregateTypes: [type],
          handle: (event) => sql`INSERT INTO handled VALUES (${name}, ${event.globalPosition})`
        })
      const worker = Orchestrator.layer({
        replicaSet: "set",
        projections: [projection("damaged", "Test"), projection("healthy", "Other")]
      }).pipe(Layer.provide(PostgresStores.layer))
      const handled = Effect.map(
        sql<{ readonly all: string }>`
            SELECT coalesce(string_agg(projection || ' ' || position, ', ' ORDER BY position), '') AS all FROM handled`,
        ([row]) => row?.all ?? ""
      )
      const halt = Effect.map(
        sql<{ readonly position: bigint; readonly at: bigint | null; readonly error: string | null }>`
            SELECT position, halted_position AS at, halted_error AS error FROM orchestrator_checkpoints
            WHERE projection_name = 'damaged'`,
        ([row]) => row
      )
      const [before] = yield* sql<
        { readonly row: string }
      >`SELECT events::text AS row FROM events WHERE global_position = 3`
      yield* make(sql, 3n)
      const run = (until: Effect.Effect<unknown, unknown>) =>
        Effect.raceFirst(Effect.provide(Orchestrator.run, worker), until).pipe(
          Effect.provideService(References.MinimumLogLevel, "None")
        )
      // Once at startup, before the worker has read anything, and once after a restart.
      for (const expected of ["damaged 1, healthy 2, healthy 5", "damaged 1, healthy 2, healthy 5, healthy 6"]) {
        yield* run(Effect.gen(function*() {
          yield* TimeLimits.waitUntil("the healthy projection is done", handled, (all) => all === expected)
          const row = yield* TimeLimits.waitUntil("the range is halted", halt, (row) => row?.at === 3n)
          assert.strictEqual(row?.position, 2n)
          assert.include(row?.error, "position 3")
          assert.include(row?.error, "EventUnreadable")
        }))
        yield* store.append([event("f", other)])
      }
      assert.isDefined(before)
      yield* sql`DELETE FROM events WHERE global_position = 3`
      yield* sql`INSERT INTO events SELECT (${before?.row}::text::events).*`
      yield* run(
        TimeLimits.waitUntil(
          "everything is handled",
          handled,
          (all) => all === "damaged 1, healthy 2, damaged 3, damaged 4, healthy 5, healthy 6, healthy 7"
        )
      )
    })
  }
})
