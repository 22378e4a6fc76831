import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as HashRange from "../../../src/schema/HashRange.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as Ranges from "../../../src/services/worker/Ranges.ts"
import * as Hostile from "../../support/Hostile.ts"
import { logs, pass } from "../World.ts"

it.effect("logs the cause of a runner's death, whatever it is, and restarts the runner a second later", () =>
  Effect.gen(function*() {
    const { layer, lines } = logs()
    yield* Effect.gen(function*() {
      for (const [what, value] of Hostile.values) {
        const ranges = yield* Ranges.make({
          runner: { run: () => Effect.die(value) },
          drainTimeout: Duration.seconds(1),
          onChange: () => {},
          caughtUp: Latch.makeUnsafe(false),
          onFailure: () => Effect.void
        })
        const held = {
          projection: "users",
          range: HashRange.whole,
          position: 0n,
          replicaSet: "main",
          fence: { workerId: "worker", incarnation: 1n, generationId: 1n },
          filter: "",
          halt: undefined
        }
        yield* ranges.open(held, {
          projection: Projection.make("users", { handle: () => Effect.void }),
          captured: Context.empty() as Context.Context<unknown>,
          settings: {
            batchSize: 1,
            batchBytes: 1,
            pollInterval: Duration.seconds(1),
            staleWorkerTimeout: Duration.seconds(30)
          },
          record: () => Effect.void
        })
        assert.strictEqual(ranges.all.size, 1, `${what}: restarted before the delay`)
        yield* pass(1_000)
        assert.strictEqual(ranges.all.size, 0, what)
      }
    }).pipe(Effect.provide(layer))
    assert.strictEqual(lines.length, Hostile.values.length)
    for (const { level, text } of lines) {
      assert.strictEqual(level, "Error")
      assert.match(text, /^The runner of projection "users" died and is restarted: ./)
    }
  }))
