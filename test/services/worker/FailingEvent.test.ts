import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as Projection from "../../../src/services/Projection.ts"
import { Broken, event, pass, runner } from "../World.ts"

it.effect("reports a schedule that throws, and makes no further attempts", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    let calls = 0
    const projection = Projection.make("users", {
      boundedContexts: ["app"],
      retry: Schedule.recurs(5).pipe(
        Schedule.setInputType<Broken>(),
        Schedule.while((): boolean => {
          throw new TypeError("no such tier")
        })
      ),
      handle: () =>
        Effect.suspend(() => {
          calls++
          return Effect.fail(new Broken({ message: "broken" }))
        })
    })
    const worker = yield* runner(world, projection)
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(1_000)

    assert.strictEqual(calls, 1)
    assert.strictEqual((yield* worker.row).halt?.position, 1n)
    const line = worker.lines.find(({ text }) => text.includes("schedule"))
    assert.strictEqual(line?.level, "Error")
    assert.match(line?.text ?? "", /^The retry schedule of projection "users" .* TypeError: no such tier/)
    yield* worker.drain(fiber)
  }))

it.effect("reports an onFailure function that throws, and halts the range", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const projection = Projection.make("users", {
      boundedContexts: ["app"],
      handle: () => Effect.fail(new Broken({ message: "broken" })),
      onFailure: () => {
        throw new TypeError("no such tier")
      }
    })
    const worker = yield* runner(world, projection)
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(1_000)

    assert.strictEqual((yield* worker.row).halt?.position, 1n)
    const line = worker.lines.find(({ text }) => text.includes("onFailure"))
    assert.strictEqual(line?.level, "Error")
    assert.match(line?.text ?? "", /^onFailure of projection "users" .* TypeError: no such tier/)
    yield* worker.drain(fiber)
  }))
