import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Scheduler from "effect/Scheduler"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import * as TxRef from "effect/TxRef"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as MemoryWorld from "../../../src/layers/memory/MemoryWorld.ts"
import * as EventFilter from "../../../src/schema/EventFilter.ts"
import type { Request } from "../../../src/schema/Plan.ts"
import * as Worker from "../../../src/schema/Worker.ts"
import { EventStore } from "../../../src/services/EventStore.ts"
import { Membership } from "../../../src/services/Membership.ts"
import { enter, event, rules } from "../../services/World.ts"
import * as Tests from "../../support/Tests.ts"

const test = Tests.on(it.effect, Effect.all({ world: MemoryStores.makeWorld }))

const replicaSet = "main"
const projection = "carts"
const batch = (from: bigint) => ({ from, idleTimeout: Duration.seconds(5) })

const options = (workerId: string) => ({ replicaSet, workerId, projections: [projection], rules })

const request = (registration: Worker.Registration, leaving = false): Request => ({
  registration,
  projections: [{ name: projection, filter: EventFilter.canonical({}), startPosition: 0n }],
  activeKeys: new Set(),
  leaving,
  rules
})

test("processes of one world share its state; another layer has a world of its own", function*({ world }) {
  const position = Effect.flatMap(EventStore, (store) => store.settledPosition)
  yield* Effect.flatMap(EventStore, (store) => store.append([event("a")])).pipe(
    Effect.provide(MemoryStores.layerWorld(world))
  )
  assert.strictEqual(yield* Effect.provide(position, MemoryStores.layerWorld(world)), 1n)
  assert.strictEqual(yield* Effect.provide(position, MemoryStores.layer), 0n)
  assert.strictEqual(world.processes, 2)
})

test("an append wakes a waiting reader without any time passing", function*({ world }) {
  const [reader, writer] = [yield* enter(world), yield* enter(world)]
  const fiber = yield* Effect.forkChild(reader.events.settledBeyond(0n, Duration.hours(1)), {
    startImmediately: true
  })
  yield* writer.events.append([event("a"), event("a")])
  assert.strictEqual(yield* Fiber.join(fiber), 2n)
})

test("a process that is cut off reaches no store, and its neighbour is woken", function*({ world }) {
  const [victim, other] = [yield* enter(world), yield* enter(world)]
  const registration = yield* other.membership.join(options("other"))
  const scope = yield* Scope.make()
  const lost = yield* Scope.provide(victim.membership.join(options("victim")), scope)
  const { generation } = yield* other.coordination.apply(request(registration))
  const { ownedRows: [row] } = yield* victim.coordination.apply(request(lost))
  yield* other.membership.watch(registration, generation!)
  const wakeUps = yield* other.membership.wakeUps(registration)
  yield* Queue.clear(wakeUps)

  const started = yield* Deferred.make<void>()
  const go = yield* Deferred.make<void>()
  const effects = yield* TxRef.make(0)
  const inFlight = yield* Effect.forkChild(victim.checkpoints.commit(
    row!,
    batch(0n),
    TxRef.update(effects, (count) => count + 1).pipe(
      Effect.andThen(Deferred.succeed(started, undefined)),
      Effect.andThen(Deferred.await(go)),
      Effect.as(1n)
    )
  ))
  yield* Deferred.await(started)
  yield* victim.handle.cut
  yield* Queue.take(wakeUps)

  yield* Deferred.succeed(go, undefined)
  const late: ReadonlyArray<Effect.Effect<unknown, unknown>> = [
    victim.events.append([event("a")]),
    victim.membership.heartbeat(lost),
    victim.coordination.apply(request(lost, true)),
    victim.checkpoints.advance(row!, { from: 0n, to: 1n })
  ]
  const calls = yield* Effect.forEach(late, (call) => Effect.forkChild(Effect.exit(call), { startImmediately: true }))
  yield* Scope.close(scope, Exit.void)
  yield* TestClock.adjust(rules.presenceGraceMillis)
  assert.isTrue([...calls, inFlight].every((fiber) => fiber.pollUnsafe() === undefined))

  const taken = yield* other.coordination.apply(request(registration))
  assert.deepStrictEqual(taken.evict.map(({ workerId }) => workerId), ["victim"])
  assert.isTrue(taken.isComplete)
  yield* Fiber.interruptAll([...calls, inFlight])
  assert.strictEqual(yield* TxRef.get(effects), 0)
  assert.strictEqual(yield* other.events.headPosition, 0n)
  assert.deepStrictEqual((yield* other.checkpoints.rows(projection)).map(({ position }) => position), [0n])
})

test("waiting for a worker id can be interrupted", function*({ world }) {
  const { membership } = yield* enter(world)
  const scope = yield* Scope.make()
  yield* Scope.provide(membership.join(options("a")), scope)
  yield* Scope.close(scope, Exit.void)
  const joining = yield* Effect.forkChild(Effect.scoped(membership.join(options("a"))), { startImmediately: true })
  yield* Fiber.interrupt(joining)
  yield* TestClock.adjust("3 seconds")
  assert.strictEqual(world.workers.value.get(MemoryWorld.workerKey({ replicaSet, workerId: "a" }))?.incarnation, 1n)
})

test("the presence of a process's workers ends with the process", function*({ world }) {
  const scope = yield* Scope.make()
  const process = yield* Layer.buildWithScope(MemoryStores.layerWorld(world), scope)
  const registration = yield* Context.get(process, Membership).join(options("a"))
  const record = () => world.workers.value.get(MemoryWorld.workerKey(registration))
  assert.isUndefined(record()?.absentSince)
  yield* TestClock.adjust("3 seconds")
  yield* Scope.close(scope, Exit.void)
  assert.strictEqual(record()?.absentSince, 3_000)
  assert.isUndefined(record()?.stoppedAt)
})

test("conflicting batches run again until both are counted", function*({ world }) {
  const { checkpoints, coordination, membership } = yield* enter(world)
  const registrations = [yield* membership.join(options("a")), yield* membership.join(options("b"))]
  const rows = yield* Effect.forEach(
    registrations,
    (registration) => Effect.map(coordination.apply(request(registration)), ({ ownedRows: held }) => held[0]!)
  )
  const total = yield* TxRef.make(0)
  const started = yield* Effect.forEach(rows, () => Deferred.make<void>())
  let runs = 0
  yield* Effect.forEach(rows, (row, index) =>
    checkpoints.commit(
      row,
      batch(0n),
      TxRef.update(total, (count) => count + 1).pipe(
        Effect.tap(() => Effect.sync(() => runs++)),
        Effect.andThen(Deferred.succeed(started[index]!, undefined)),
        Effect.andThen(Effect.forEach(started, (other) => Deferred.await(other), { discard: true })),
        Effect.as(1n)
      )
    ), { concurrency: "unbounded" })
  assert.strictEqual(yield* TxRef.get(total), 2)
  assert.strictEqual(runs, 3)
  assert.deepStrictEqual((yield* checkpoints.rows(projection)).map(({ position }) => position), [1n, 1n])
})

test("events that a handler appends become readable when its batch commits", function*({ world }) {
  const { checkpoints, coordination, events, membership } = yield* enter(world)
  const { ownedRows: [row] } = yield* coordination.apply(request(yield* membership.join(options("a"))))
  const waiting = yield* Effect.forkChild(events.settledBeyond(0n, Duration.hours(1)), { startImmediately: true })
  const failed = yield* Effect.flip(checkpoints.commit(
    row!,
    batch(0n),
    Effect.andThen(events.append([event("a")]), Effect.fail("no"))
  ))
  assert.strictEqual(failed._tag, "HandlerFailure")
  assert.strictEqual(yield* events.headPosition, 0n)
  yield* checkpoints.commit(
    row!,
    batch(0n),
    Effect.gen(function*() {
      yield* events.append([event("a")])
      yield* TestClock.adjust("1 second")
      assert.isUndefined(waiting.pollUnsafe())
      assert.deepStrictEqual((yield* events.read({ after: 0n })).events, [])
      return 1n
    })
  )
  assert.strictEqual(yield* Fiber.join(waiting), 1n)
  const { events: read } = yield* events.read({ after: 0n })
  assert.deepStrictEqual(read.map((event) => [event.globalPosition, event.createdAt.getTime()]), [[1n, 0]])
})

test("a generation is active once the heartbeats of all its members display that they run it", function*({ world }) {
  const { coordination, membership } = yield* enter(world)
  const [first, second] = [yield* membership.join(options("a")), yield* membership.join(options("b"))]
  const { generation } = yield* coordination.apply(request(first))
  const states = () => world.generations.value.get(replicaSet)!.map(({ state }) => state)
  yield* membership.heartbeat(first, Worker.display(first, "running", generation))
  yield* membership.heartbeat(second, Worker.display(second, "ready", generation))
  assert.deepStrictEqual(states(), ["pending"])
  yield* membership.heartbeat(second, Worker.display(second, "running", generation))
  assert.deepStrictEqual(states(), ["active"])
  const record = world.workers.value.get(MemoryWorld.workerKey(second))
  assert.deepStrictEqual([record?.state, record?.generationId, record?.partitionKey], ["running", 1n, 1])
  yield* coordination.apply(request(second, true))
  assert.deepStrictEqual(states(), ["superseded", "pending"])
  assert.strictEqual(world.workers.value.get(MemoryWorld.workerKey(second))?.state, "stopped")
})

test("the history of generations is bounded", function*({ world }) {
  const { coordination, membership } = yield* enter(world)
  const first = yield* membership.join(options("a"))
  for (let index = 0; index < 60; index++) {
    const second = yield* membership.join(options("b"))
    yield* coordination.apply(request(first))
    yield* coordination.apply(request(second, true))
  }
  const kept = world.generations.value.get(replicaSet)!
  assert.strictEqual(kept.length, 100)
  assert.strictEqual(kept[99]?.generationId, 120n)
})

test("concurrent decisions are serialized, however their steps interleave", function*() {
  for (let steps = 3; steps <= 60; steps++) {
    const world = yield* MemoryStores.makeWorld
    const { checkpoints, coordination, membership } = yield* enter(world)
    // The worker that forms the generation does not carry the projection, so the others create its row.
    const former = yield* membership.join({ ...options("former"), projections: ["other"] })
    const carriers = [yield* membership.join(options("a")), yield* membership.join(options("b"))]
    yield* coordination.apply({ ...request(former), projections: [] })
    const decided = yield* Effect.forEach(carriers, (registration) => coordination.apply(request(registration)), {
      concurrency: "unbounded"
    }).pipe(Effect.provideService(Scheduler.MaxOpsBeforeYield, steps))
    assert.isTrue(decided.every(({ form, isComplete: settled }) => form === undefined && settled))
    assert.strictEqual(decided.flatMap(({ create }) => create).length, 1, `${steps} steps`)
    assert.deepStrictEqual(
      yield* checkpoints.rows(projection),
      decided.flatMap(({ ownedRows: held }) => held).sort((x, y) => x.range.start - y.range.start)
    )
  }
})

test("changes in another replica set cause no wake-ups", function*({ world }) {
  const { coordination, membership } = yield* enter(world)
  const wakeUps = yield* membership.wakeUps(yield* membership.join(options("a")))
  const other = yield* membership.join({ ...options("a"), replicaSet: "other" })
  yield* coordination.apply(request(other))
  yield* coordination.apply(request(other, true))
  assert.strictEqual((yield* Queue.clear(wakeUps)).length, 0)
})

it("hashes are spread evenly over the hash space", () => {
  const parts = Array.from({ length: 8 }, () => 0)
  for (let index = 0; index < 8_000; index++) {
    const hash = MemoryWorld.hash(`cart-${index}`)
    assert.isTrue(Number.isInteger(hash) && 0 <= hash && hash < 2 ** 32)
    parts[Math.floor(hash / 2 ** 29)]!++
  }
  assert.isTrue(parts.every((count) => 850 < count && count < 1_150), String(parts))
})
