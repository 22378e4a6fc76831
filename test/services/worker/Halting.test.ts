import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as Projection from "../../../src/services/Projection.ts"
import { Broken, event, pass, runner } from "../World.ts"

it.effect("a request to skip that is replaced before it is executed is not reported as a failure", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    let isBroken = true
    let beforeCommit: Effect.Effect<unknown> = Effect.void
    const projection = Projection.make("users", {
      boundedContexts: ["app"],
      handle: () => Effect.suspend(() => isBroken ? Effect.fail(new Broken({ message: "broken" })) : Effect.void)
    })
    const worker = yield* runner(world, projection, {
      checkpoints: (real) => ({
        commit: (held, options, work) =>
          Effect.suspend(() => {
            const replace = beforeCommit
            beforeCommit = Effect.void
            return Effect.andThen(replace, real.commit(held, options, work))
          })
      })
    })
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(1_000)
    const eventId = (yield* worker.row).halt!.eventId
    const request = (request: "retry" | "skip") =>
      Effect.orDie(worker.parkedEvents.requestOnHalt("users", { eventId, request }))

    isBroken = false
    beforeCommit = request("retry")
    yield* request("skip")
    yield* pass(5_000)
    assert.deepStrictEqual(worker.tags().filter((tag) => tag !== "CaughtUp"), ["RangeHalted", "BatchCommitted"])
    assert.isUndefined((yield* worker.row).halt)
    yield* worker.drain(fiber)
  }))
