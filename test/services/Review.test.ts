import { assert, it } from "@effect/vitest"
import { Context, Effect, Exit, Fiber, Stream } from "effect"
import * as MemoryStores from "../../src/layers/memory/MemoryStores.ts"
import type { Activity } from "../../src/schema/Activity.ts"
import { DatabaseUnavailable } from "../../src/schema/Errors.ts"
import { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import { Decisions } from "../../src/services/Decisions.ts"
import { Membership } from "../../src/services/Membership.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import { enter, event, logs, pass } from "./World.ts"

const away = new DatabaseUnavailable({
  reason: "connection lost",
  server: "nowhere:5432",
  database: "test",
  user: "test",
  cause: new Error("cut")
})

/** A handler that nothing stops. */
const stubborn = Projection.make("stubborn", { handle: () => Effect.uninterruptible(Effect.never) })

it.effect("a handler that does not stop does not keep the worker from leaving", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const process = yield* enter(world)
    yield* process.events.append([event("a")])
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [stubborn] }).pipe(
      Effect.provide(process.stores)
    )
    const fiber = yield* Effect.forkDetach(orchestrator.run)
    yield* pass(500)
    yield* Effect.forkDetach(Fiber.interrupt(fiber))
    yield* pass(40_000, 250)
    assert.isDefined(fiber.pollUnsafe())
    assert.isDefined([...world.workers.value.values()][0]?.stoppedAt)
  }))

it.effect("a worker whose handler does not stop fails when its assignment cannot be reached", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const first = yield* enter(world)
    yield* first.events.append([event("a")])
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [stubborn] }).pipe(
      Effect.provide(first.stores)
    )
    const fiber = yield* Effect.forkDetach(orchestrator.run)
    yield* pass(500)
    const second = yield* enter(world)
    const other = yield* Orchestrator.make({ replicaSet: "main", projections: [stubborn] }).pipe(
      Effect.provide(second.stores)
    )
    yield* Effect.forkScoped(other.run)
    yield* pass(100_000, 250)
    const exit = fiber.pollUnsafe()
    assert.isTrue(exit !== undefined && Exit.isFailure(exit))
    assert.include(String(exit), "CoordinationTimeout")
  }))

it.effect("catchUp tries again what an earlier run halted at", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const process = yield* enter(world)
    yield* process.events.append([event("a")])
    const broken = Projection.make("users", { handle: () => Effect.fail("not yet") })
    const before = yield* Orchestrator.make({ replicaSet: "main", projections: [broken] }).pipe(
      Effect.provide(process.stores)
    )
    const failing = yield* Effect.forkDetach(Effect.exit(before.catchUp))
    yield* pass(5000)
    assert.include(String(failing.pollUnsafe()), "ProjectionHalted")
    const mended = Projection.make("users", { handle: () => Effect.void })
    const after = yield* Orchestrator.make({ replicaSet: "main", projections: [mended] }).pipe(
      Effect.provide((yield* enter(world)).stores)
    )
    const fiber = yield* Effect.forkDetach(Effect.exit(after.catchUp))
    yield* pass(5000)
    assert.deepStrictEqual(fiber.pollUnsafe(), Exit.succeed(Exit.void))
  }))

it.effect("catchUp waits for a database that is away for a moment", () =>
  Effect.gen(function*() {
    const process = yield* enter(yield* MemoryStores.makeWorld)
    yield* process.events.append([event("a")])
    let isAway = true
    const users = Projection.make("users", { handle: () => Effect.void })
    const { catchUp } = yield* Orchestrator.make({ replicaSet: "main", projections: [users] }).pipe(
      Effect.provide(Context.add(process.stores, CheckpointStore, {
        ...process.checkpoints,
        rows: (name) => Effect.suspend(() => isAway ? Effect.fail(away) : process.checkpoints.rows(name))
      }))
    )
    const fiber = yield* Effect.forkDetach(Effect.exit(catchUp))
    yield* pass(1000)
    isAway = false
    yield* pass(3000)
    assert.deepStrictEqual(fiber.pollUnsafe(), Exit.succeed(Exit.void))
  }))

it.effect("a worker that drains is still heard of", () =>
  Effect.gen(function*() {
    const process = yield* enter(yield* MemoryStores.makeWorld)
    yield* process.events.append([event("a")])
    let beats = 0
    const slow = Projection.make("slow", { handle: () => Effect.sleep("8 seconds") })
    const orchestrator = yield* Orchestrator.make({
      replicaSet: "main",
      projections: [slow],
      heartbeatInterval: "1 second",
      staleWorkerTimeout: "3 seconds"
    }).pipe(
      Effect.provide(Context.add(process.stores, Membership, {
        ...process.membership,
        heartbeat: (self) =>
          Effect.suspend(() => {
            beats++
            return process.membership.heartbeat(self)
          })
      }))
    )
    const fiber = yield* Effect.forkDetach(orchestrator.run)
    yield* pass(1500)
    const before = beats
    yield* Effect.forkDetach(Fiber.interrupt(fiber))
    yield* pass(5000)
    assert.isUndefined(fiber.pollUnsafe())
    assert.isAtLeast(beats - before, 4)
    yield* pass(5000)
    assert.isDefined(fiber.pollUnsafe())
  }))

it.effect("a heartbeat that gets no answer stops the projections in time", () =>
  Effect.gen(function*() {
    const process = yield* enter(yield* MemoryStores.makeWorld)
    let isCut = false
    const seen: Array<Activity["_tag"]> = []
    const users = Projection.make("users", { handle: () => Effect.void })
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [users] }).pipe(
      Effect.provide(Context.add(process.stores, Membership, {
        ...process.membership,
        heartbeat: (self) => Effect.suspend(() => isCut ? Effect.never : process.membership.heartbeat(self))
      }))
    )
    yield* orchestrator.activity.pipe(
      Stream.runForEach(({ _tag }) => Effect.sync(() => seen.push(_tag))),
      Effect.forkScoped
    )
    yield* Effect.forkScoped(orchestrator.run)
    yield* pass(1000)
    isCut = true
    yield* pass(30_000, 250)
    assert.include(seen, "Suspended")
    assert.include(seen, "RangeGivenUp")
  }))

it.effect("time without a database does not count against reaching the assignment", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const process = yield* enter(world)
    let isAway = false
    const users = Projection.make("users", { handle: () => Effect.void })
    const { lines, layer } = logs()
    const stores = Context.add(process.stores, Decisions, {
      look: (request) => Effect.suspend(() => isAway ? Effect.fail(away) : process.decisions.look(request)),
      decide: (request) =>
        Effect.suspend(() => isAway ? Effect.fail(away) : process.decisions.decide(request)).pipe(
          // Never settled: another one still holds a part.
          Effect.map((decision) => ({ ...decision, settled: false }))
        )
    }).pipe(Context.add(Membership, process.membership))
    const orchestrator = yield* Orchestrator.make({
      replicaSet: "main",
      projections: [users],
      coordinationTimeout: "11 seconds"
    }).pipe(Effect.provide(Context.add(stores, Decisions, {
      ...Context.get(stores, Decisions),
      look: (request) =>
        Effect.map(Context.get(stores, Decisions).look(request), (decision) => ({ ...decision, settled: false }))
    })))
    const fiber = yield* Effect.forkDetach(orchestrator.run.pipe(Effect.provide(layer)))
    yield* pass(1000)
    isAway = true
    yield* pass(60_000, 250)
    isAway = false
    yield* pass(2000)
    assert.isUndefined(fiber.pollUnsafe())
    assert.isBelow(lines.filter(({ text }) => text.startsWith("Coordination failed")).length, 60)
    yield* Effect.forkDetach(Fiber.interrupt(fiber))
    yield* pass(2000)
  }))
