/** Handlers that ignore failures and leave fibers and resources behind. */
import { PgClient } from "@effect/sql-pg"
import { assert, describe } from "@effect/vitest"
import { Deferred, Effect, type Exit, Fiber, Redacted } from "effect"
import { SqlClient } from "effect/sql"
import { type Event, Projection } from "pupsourcing-orchestrator"
import { event } from "../support/EventStores.ts"
import { append, catchUp, halted, record, recorded, test } from "./OneProcess.ts"

const seventh = 7n

const isSeventh = (event: Event.Event): boolean => event.aggregateVersion === seventh

const twenty = Effect.suspend(() => append(...Array.from({ length: 20 }, () => event("a"))))

const versions = (projection: string) =>
  Effect.map(recorded(projection), (rows) => rows.map(({ version }) => Number(version)))

const upTo = (last: number) => Array.from({ length: last }, (_, index) => index + 1)

describe("a handler", () => {
  test(
    "that ignores a failed statement halts at its event, unless the statement ran in a savepoint",
    function*({ sql }) {
      const positions = yield* twenty
      const fails = sql`SELECT 1 / 0`
      const ignoring = (statement: Effect.Effect<unknown, unknown>) =>
        Projection.make("ignores", {
          handle: (event) =>
            Effect.andThen(record("ignores", event), isSeventh(event) ? Effect.ignore(statement) : Effect.void)
        })
      const error = yield* halted(ignoring(fails))
      assert.strictEqual(error.position, positions[6])
      assert.include(error.error, "its error was ignored")
      assert.deepStrictEqual(yield* versions("ignores"), upTo(6))
      yield* catchUp(ignoring(sql.withTransaction(fails)))
      assert.deepStrictEqual(yield* versions("ignores"), upTo(20))
    }
  )

  test("that leaves a fiber behind writes nothing with it, even if its connection is now in another transaction", function*() {
    const go = yield* Deferred.make<void>()
    const left: Array<Fiber.Fiber<unknown, unknown>> = []
    const outcomes: Array<Exit.Exit<unknown, unknown>> = []
    yield* append(event("a"), event("a"))
    const leaves = Projection.make("leaves", {
      handle: Effect.fnUntraced(function*(event) {
        yield* record("leaves", event)
        if (event.aggregateVersion === 1n) {
          left.push(yield* Effect.forkDetach(Effect.andThen(Deferred.await(go), record("late", event))))
        } else {
          yield* Deferred.succeed(go, undefined)
          outcomes.push(yield* Fiber.await(left[0]!))
        }
      })
    })
    yield* catchUp(leaves, { batchSize: 1 })
    assert.include(String(outcomes), "Pinned connection was released")
    assert.deepStrictEqual(yield* versions("leaves"), [1, 2])
    assert.deepStrictEqual(yield* recorded("late"), [])
  })

  test(
    "that opens a resource and forks a fiber per event never has more of them open than one batch has events",
    function*({ sql }) {
      const count = 10_000
      const batchSize = 500
      yield* sql`
        INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
        SELECT 'test', 'Test', 'a', n, gen_random_uuid(), 'Happened', '{}' FROM generate_series(1, ${count}::int) AS n`
      const open = { resources: 0, fibers: 0 }
      const most = { resources: 0, fibers: 0 }
      let handled = 0
      const hold = (kind: keyof typeof open) => {
        open[kind]++
        most[kind] = Math.max(most[kind], open[kind])
      }
      const letGo = (kind: keyof typeof open) => Effect.sync(() => void open[kind]--)
      yield* catchUp(
        Projection.make("leaks", {
          handle: () =>
            Effect.gen(function*() {
              handled++
              yield* Effect.acquireRelease(Effect.sync(() => hold("resources")), () => letGo("resources"))
              yield* Effect.forkChild(
                Effect.ensuring(Effect.andThen(Effect.sync(() => hold("fibers")), Effect.never), letGo("fibers")),
                { startImmediately: true }
              )
            })
        }),
        { batchSize }
      )
      assert.strictEqual(handled, count)
      assert.deepStrictEqual(open, { resources: 0, fibers: 0 })
      assert.isAtMost(most.resources, batchSize)
      assert.isAtMost(most.fibers, batchSize)
    }
  )

  test("whose failure throws when it is inspected halts at its event", function*() {
    const positions = yield* twenty
    const error = yield* halted(Projection.make("hostile", {
      handle: (event) =>
        Effect.andThen(
          record("hostile", event),
          isSeventh(event) ? Effect.die(Object.assign(new Error("x"), { stack: [] })) : Effect.void
        )
    }))
    assert.strictEqual(error.position, positions[6])
    assert.include(error.error, "Error: x")
    assert.deepStrictEqual(yield* versions("hostile"), upTo(6))
  })

  test("that inserts a row of another aggregate's event again halts with a hint at shared rows", function*({ sql }) {
    yield* sql`CREATE TABLE countries (code text PRIMARY KEY, parent text REFERENCES countries)`
    const positions = [...(yield* append(event("a"))), ...(yield* append(event("b")))]
    const inserting = (name: string, statement: (event: Event.Event) => Effect.Effect<unknown, unknown>) =>
      halted(Projection.make(name, { handle: statement }))
    const twice = yield* inserting("twice", () => sql`INSERT INTO countries VALUES ('DE')`)
    assert.strictEqual(twice.position, positions[1])
    for (
      const part of [
        "type Happened, Test \"b\", version 1: SqlError: UniqueViolation 23505 (countries_pkey).",
        "If an event of another aggregate writes that row too",
        "ON CONFLICT",
        "docs/concepts.md"
      ]
    ) {
      assert.include(twice.message, part)
    }
    const orphan = yield* inserting("orphan", () => sql`INSERT INTO countries VALUES ('BY', 'XX')`)
    assert.include(orphan.message, "no foreign keys between aggregates")
    const other = yield* inserting("other", () => sql`INSERT INTO countries VALUES (NULL)`)
    assert.notInclude(other.message, "another aggregate")
  })

  test("whose last statement lacks its yield* halts, and its earlier writes are rolled back", function*({ sql }) {
    const positions = yield* twenty
    const forgets = (name: string, last: Effect.Effect<unknown, unknown>) =>
      halted(Projection.make(name, {
        handle: (event) => isSeventh(event) ? Effect.andThen(record(name, event), last) : record(name, event)
      }))
    const statement = () => sql`INSERT INTO recorded VALUES ('forgotten', 1, 'a', 1, 0, NULL)`
    for (
      const [name, last] of [
        ["statement", Effect.sync(statement)],
        ["statements", Effect.sync(() => [1, 2].map(statement))],
        ["transaction", Effect.sync(() => sql.withTransaction(statement()))],
        ["stream", Effect.sync(() => statement().stream)]
      ] as const
    ) {
      const error = yield* forgets(name, last)
      assert.strictEqual(error.position, positions[6])
      assert.include(error.error, "HandlerResultUnused")
      assert.deepStrictEqual(yield* versions(name), upTo(6))
    }
    assert.deepStrictEqual(yield* recorded("forgotten"), [])
  })

  test(
    "that fails rolls back what it wrote through the stores' client, but not through other connections, as documented",
    function*({ sql, url }) {
      yield* append(event("a"))
      const write = (client: SqlClient.SqlClient, what: string) =>
        client`INSERT INTO recorded VALUES (${what}, 1, 'a', 1, 0, NULL)`
      const fromContext = (what: string) => Effect.flatMap(SqlClient.SqlClient, (client) => write(client, what))
      const ways: ReadonlyArray<readonly [string, boolean, Effect.Effect<unknown, unknown, SqlClient.SqlClient>]> = [
        ["context", false, fromContext("context")],
        ["variable", false, write(sql, "variable")],
        ["child", false, Effect.flatMap(Effect.forkChild(write(sql, "child")), Fiber.join)],
        [
          "own client",
          true,
          fromContext("own client").pipe(Effect.provide(PgClient.layer({ url: Redacted.make(url) })))
        ],
        [
          "reserved",
          true,
          Effect.scoped(
            Effect.flatMap(
              sql.reserve,
              (connection) =>
                connection.execute("INSERT INTO recorded VALUES ('reserved', 1, 'a', 1, 0, NULL)", [], undefined)
            )
          )
        ],
        ["runPromise", true, Effect.promise(() => Effect.runPromise(write(sql, "runPromise")))]
      ]
      for (const [what, remains, way] of ways) {
        yield* halted(Projection.make(what, { handle: () => Effect.andThen(way, Effect.die("fails")) }))
        assert.strictEqual((yield* recorded(what)).length, remains ? 1 : 0, what)
      }
    }
  )

  test("whose finalizer fails halts at the event that added it", function*() {
    const positions = yield* twenty
    const error = yield* halted(Projection.make("closes", {
      handle: (event) =>
        Effect.andThen(
          record("closes", event),
          Effect.addFinalizer(() => isSeventh(event) ? Effect.die(new Error("does not close")) : Effect.void)
        )
    }))
    assert.strictEqual(error.position, positions[6])
    assert.include(error.error, "does not close")
    assert.deepStrictEqual(yield* versions("closes"), upTo(6))
  })
})
