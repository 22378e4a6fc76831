import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import { CheckpointStore } from "../../../src/services/CheckpointStore.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import { enter, event, pass, restorePoint, unavailable } from "../World.ts"

const outcome = (fiber: Fiber.Fiber<Exit.Exit<void, unknown>>): string => {
  const exit = fiber.pollUnsafe()
  return exit === undefined ? "running" : Exit.isFailure(exit) ? "died" : exit.value._tag
}

it.effect("catchUp retries the event at which an earlier run halted", () =>
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
    assert.strictEqual(outcome(fiber), "Success")
  }))

it.effect("catchUp retries while the database is briefly unreachable", () =>
  Effect.gen(function*() {
    const process = yield* enter(yield* MemoryStores.makeWorld)
    yield* process.events.append([event("a")])
    let isAway = true
    const users = Projection.make("users", { handle: () => Effect.void })
    const { catchUp } = yield* Orchestrator.make({ replicaSet: "main", projections: [users] }).pipe(
      Effect.provide(Context.add(process.stores, CheckpointStore, {
        ...process.checkpoints,
        rows: (name) => Effect.suspend(() => isAway ? Effect.fail(unavailable) : process.checkpoints.rows(name))
      }))
    )
    const fiber = yield* Effect.forkDetach(Effect.exit(catchUp))
    yield* pass(1000)
    isAway = false
    yield* pass(3000)
    assert.strictEqual(outcome(fiber), "Success")
  }))

it.effect("catchUp returns although the server has lost the events that it waits for", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const process = yield* enter(world)
    yield* process.events.append([event("a")])
    const comeBack = restorePoint(world, [world.log])
    yield* process.events.append([event("b")])
    let isSlow = true
    const users = Projection.make("users", { handle: () => Effect.suspend(() => Effect.sleep(isSlow ? 2000 : 0)) })
    const { catchUp } = yield* Orchestrator.make({ replicaSet: "main", projections: [users] }).pipe(
      Effect.provide(process.stores)
    )
    const fiber = yield* Effect.forkDetach(Effect.exit(catchUp))
    yield* pass(500)
    yield* comeBack
    isSlow = false
    yield* pass(20_000)
    assert.strictEqual(outcome(fiber), "Success")
  }))
