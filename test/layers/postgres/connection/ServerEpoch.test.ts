/** Data read before the server went down is not written after it comes back. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Listener from "../../../../src/layers/postgres/connection/Listener.ts"
import * as ServerEpochSql from "../../../../src/layers/postgres/connection/ServerEpochSql.ts"
import * as EventStorePostgres from "../../../../src/layers/postgres/events/EventStorePostgres.ts"
import { CheckpointStore } from "../../../../src/services/CheckpointStore.ts"
import { EventStore } from "../../../../src/services/EventStore.ts"
import * as CoordinationStores from "../../../support/CoordinationStores.ts"
import * as EventStores from "../../../support/EventStores.ts"
import * as Seam from "../../../support/Seam.ts"

const layer = CoordinationStores.layer.pipe(Layer.provideMerge(EventStores.layerWith()))

const reader = "pupsourcing-orchestrator reader"

/** The event store with its statements behind the hooks. */
const behind = (hooks: Seam.Hooks) =>
  Layer.fresh(
    Layer.effect(EventStore)(EventStorePostgres.make).pipe(
      Layer.provideMerge(Layer.effect(Listener.Listener)(Listener.make)),
      Layer.provideMerge(Seam.database(hooks))
    )
  ).pipe(Layer.provideMerge(EventStores.database()))

const append = Effect.fnUntraced(function*(aggregateId: string) {
  const appended = yield* (yield* EventStore).append([EventStores.event(aggregateId)])
  return appended.positions[0]!
})

const poll = Duration.millis(50)
const idleTimeout = Duration.seconds(20)

/** As in a crash of the server: the session that read is gone. */
const loseReader = Effect.flatMap(PgClient.PgClient, (sql) =>
  sql`
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = ${reader}`)

const readAll = Effect.fnUntraced(function*(after: bigint) {
  const store = yield* EventStore
  return yield* store.read({ after, upTo: yield* store.settledBeyond(after, poll) })
})

it.live("a batch and progress commit while the session that read them exists", () =>
  Effect.gen(function*() {
    const checkpoints = yield* CheckpointStore
    const row = yield* CoordinationStores.held("users")
    yield* append("a")
    const first = yield* readAll(0n)
    yield* checkpoints.commit(row, { from: 0n, idleTimeout, epoch: first.epoch }, Effect.succeed(first.position))
    yield* append("a")
    const second = yield* readAll(first.position)
    assert.strictEqual(second.epoch, first.epoch)
    yield* checkpoints.advance(row, { from: first.position, to: second.position, epoch: second.epoch })
    assert.strictEqual((yield* checkpoints.rows("users"))[0]?.position, second.position)
  }).pipe(Effect.provide(layer)))

it.live("a batch, progress and a halt are refused once the session that read them is gone", () =>
  Effect.gen(function*() {
    const checkpoints = yield* CheckpointStore
    const row = yield* CoordinationStores.held("users")
    yield* append("a")
    const { epoch, position } = yield* readAll(0n)
    yield* loseReader
    let handled = 0
    const handle = Effect.sync(() => {
      handled++
      return position
    })
    for (
      const refused of [
        checkpoints.commit(row, { from: 0n, idleTimeout, epoch }, handle),
        checkpoints.advance(row, { from: 0n, to: position, epoch }),
        checkpoints.halt(row, {
          at: 0n,
          epoch,
          error: "no",
          position,
          eventId: globalThis.crypto.randomUUID(),
          key: "a"
        })
      ]
    ) assert.strictEqual((yield* Effect.flip(refused))._tag, "EpochEnded")
    assert.strictEqual(handled, 0)
    const [stored] = yield* checkpoints.rows("users")
    assert.deepStrictEqual([stored?.position, stored?.halt], [0n, undefined])
    // Data read from here on belongs to the current epoch.
    const again = yield* readAll(0n)
    assert.notStrictEqual(again.epoch, epoch)
    yield* checkpoints.commit(row, { from: 0n, idleTimeout, epoch: again.epoch }, handle)
    assert.strictEqual(handled, 1)
  }).pipe(Effect.provide(layer)))

it.live("the position that one reader passes in does not move another reader past an open writer", () =>
  Effect.gen(function*() {
    const sql = yield* PgClient.PgClient
    const store = yield* EventStore
    yield* append("a")
    // A burnt position: without checking the writers, no position beyond it is known to be settled.
    yield* Effect.exit(sql.withTransaction(Effect.andThen(append("b"), Effect.fail("no"))))
    const before = yield* append("a")
    const open = yield* Deferred.make<bigint>()
    const done = yield* Deferred.make<void>()
    const writer = yield* Effect.forkChild(sql.withTransaction(
      Effect.flatMap(append("c"), (position) => Effect.andThen(Deferred.succeed(open, position), Deferred.await(done)))
    ))
    const held = yield* Deferred.await(open)
    const beyond = yield* append("a")
    const claims = yield* Effect.forkChild(store.settledBeyond(beyond, poll))
    const honest = yield* Effect.forkChild(store.settledBeyond(before, poll))
    yield* Effect.sleep("500 millis")
    assert.isUndefined(honest.pollUnsafe(), `passed ${held}, whose transaction is open`)
    yield* Deferred.succeed(done, undefined)
    yield* Fiber.join(writer)
    assert.strictEqual(yield* Fiber.join(honest), beyond)
    yield* Fiber.interrupt(claims)
  }).pipe(Effect.provide(layer)))

it.live("a range continues on a new session while a writer stays open, without moving other readers", () =>
  Effect.gen(function*() {
    const sql = yield* PgClient.PgClient
    const store = yield* EventStore
    const checkpoints = yield* CheckpointStore
    const row = yield* CoordinationStores.held("users")
    yield* append("a")
    yield* Effect.exit(sql.withTransaction(Effect.andThen(append("b"), Effect.fail("no"))))
    yield* append("a")
    const { epoch, position } = yield* readAll(1n)
    yield* checkpoints.advance(row, { from: 0n, to: position, epoch })
    const next = yield* append("a")
    // Open from here on: the new session proves nothing before this transaction ends.
    const open = yield* Deferred.make<void>()
    const done = yield* Deferred.make<void>()
    const writer = yield* Effect.forkChild(sql.withTransaction(
      Effect.andThen(append("c"), Effect.andThen(Deferred.succeed(open, undefined), Deferred.await(done)))
    ))
    yield* Deferred.await(open)
    yield* append("d")
    yield* loseReader
    assert.strictEqual(yield* store.settledBeyond(position, poll), next)
    assert.strictEqual((yield* store.read({ after: position, upTo: next })).position, next)
    assert.strictEqual((yield* store.read({ after: 0n, upTo: next })).position, 1n)
    yield* Deferred.succeed(done, undefined)
    yield* Fiber.join(writer)
    const upTo = yield* store.settledPosition
    assert.strictEqual((yield* store.read({ after: 0n, upTo })).events.length, 5)
  }).pipe(Effect.provide(layer)))

it.live("a page comes from one server epoch, however many statements it took", () => {
  let statements = 0
  let meanwhile: Effect.Effect<unknown> = Effect.void
  const hooks: Seam.Hooks = {
    // The session is lost before the second statement, and another reader has proved the same position on the next
    // session before the read is retried.
    around: ({ lose, session, text }, send) =>
      session === reader && text.includes("LIMIT $3") && ++statements === 2 ? Effect.andThen(meanwhile, lose) : send
  }
  return Effect.gen(function*() {
    const sql = yield* PgClient.PgClient
    const store = yield* EventStore
    const scope = yield* Effect.scope
    const first = yield* append("a")
    // Further apart than one statement of a filtered read covers.
    yield* sql`SELECT setval(pg_get_serial_sequence('events', 'global_position'), 30000)`
    const last = yield* append("a")
    const upTo = yield* store.settledBeyond(first, poll)
    assert.strictEqual(upTo, last)
    let proved: Fiber.Fiber<bigint, unknown> | undefined
    meanwhile = Effect.map(Effect.forkIn(store.settledPosition, scope, { startImmediately: true }), (fiber) => {
      proved = fiber
    })
    const page = yield* store.read({ after: 0n, upTo, filter: { eventTypes: ["Happened"] } })
    assert.strictEqual(yield* Fiber.join(proved!), last)
    assert.deepStrictEqual(page.events.map(({ globalPosition }) => globalPosition), [first, last])
    assert.strictEqual(page.epoch, (yield* store.read({ after: first, upTo })).epoch)
  }).pipe(Effect.scoped, Effect.provide(behind(hooks)))
})

it.live("a later session or another role with the same process id is not the session that read", () =>
  Effect.gen(function*() {
    const sql = yield* PgClient.PgClient
    const role = `stranger_${globalThis.crypto.randomUUID().slice(0, 8)}`
    yield* sql.unsafe(`CREATE ROLE ${role}`)
    const lives = (epoch: string) =>
      Effect.map(
        sql<{ readonly alive: boolean }>`SELECT ${ServerEpochSql.isCurrent(sql, epoch)} AS alive`,
        ([row]) => row?.alive
      )
    yield* sql.withTransaction(Effect.gen(function*() {
      const [own] = yield* sql.unsafe<{ readonly epoch: string }>(`SELECT ${ServerEpochSql.select} AS epoch`)
      const [pid, server, since] = own!.epoch.split("@")
      const [other] = yield* sql<{ readonly pid: number }>`
        SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'`
      assert.isTrue(yield* lives(own!.epoch))
      assert.isFalse(yield* lives(`${pid}@${server}@1700000000.123456`))
      assert.isFalse(yield* lives(`${pid}@1700000000.123456@${since}`))
      // A role without privileges cannot read when these sessions started.
      yield* sql.unsafe(`SET LOCAL ROLE ${role}`)
      assert.isFalse(yield* lives(`${other!.pid}@${server}@${since}`))
      assert.isFalse(yield* lives(`${other!.pid}@1700000000.123456`))
    }))
    yield* sql.unsafe(`DROP ROLE ${role}`)
  }).pipe(Effect.provide(layer)))

it.live("a session connected to another server than the writes is reopened", () =>
  Effect.gen(function*() {
    const store = yield* EventStore
    yield* append("a")
    const first = yield* readAll(0n)
    yield* store.endEpoch(first.epoch)
    const second = yield* readAll(0n)
    assert.notStrictEqual(second.epoch, first.epoch)
    assert.strictEqual((yield* readAll(0n)).epoch, second.epoch)
  }).pipe(Effect.provide(layer)))

it.live("a checkpoint that was ahead of the events proves nothing once the events have reached it", () =>
  Effect.gen(function*() {
    const sql = yield* PgClient.PgClient
    const store = yield* EventStore
    yield* CoordinationStores.held("abandoned")
    yield* sql`UPDATE orchestrator_checkpoints SET position = 3`
    yield* append("a")
    const drawn = yield* Deferred.make<void>()
    const done = yield* Deferred.make<void>()
    const writer = yield* append("late").pipe(
      Effect.andThen(Deferred.succeed(drawn, undefined)),
      Effect.andThen(Deferred.await(done)),
      sql.withTransaction,
      Effect.forkChild
    )
    yield* Deferred.await(drawn)
    assert.strictEqual((yield* store.read({ after: 0n })).position, 1n)
    for (const id of ["b", "c", "d"]) yield* append(id)
    assert.deepStrictEqual((yield* store.read({ after: 0n })).position, 1n)
    yield* Deferred.succeed(done, undefined)
    yield* Fiber.join(writer)
    const all = yield* readAll(1n)
    assert.deepStrictEqual(all.events.map(({ aggregateId }) => aggregateId), ["late", "b", "c", "d"])
  }).pipe(Effect.provide(layer)))
