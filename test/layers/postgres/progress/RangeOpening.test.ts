/** Which statements a worker sends on the application's pool when it opens a range. */
import { assert } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import { EventStore } from "../../../../src/services/EventStore.ts"
import * as Orchestrator from "../../../../src/services/Orchestrator.ts"
import { ParkedEvents } from "../../../../src/services/ParkedEvents.ts"
import * as Projection from "../../../../src/services/Projection.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import * as EventStores from "../../../support/EventStores.ts"
import * as Seam from "../../../support/Seam.ts"

const { event, test } = EventStores

/** Unlike the checks of a start, which name the table as well. */
const aboutParked = /"orchestrator_parked_events" AS p\b/

/** The stores, and the statements on the pool that are sent through them. */
const recording = (url: string) => {
  const statements: Array<string> = []
  const hooks: Seam.Hooks = {
    around: ({ session, text }, send) => {
      if (session === "pool") statements.push(text)
      return send
    }
  }
  const client = Seam.client({ url: Redacted.make(url), maxConnections: 3 }, hooks)
  return { layer: Layer.provideMerge(Seam.stores(hooks), client), statements }
}

/** Runs a worker until the projection has handled an event that is appended after the start, then stops it. */
const runUntilHandled = Effect.fnUntraced(function*(options: Projection.CommonOptions) {
  const handled = yield* Deferred.make<void>()
  const projection = Projection.make("users", { ...options, handle: () => Deferred.succeed(handled, undefined) })
  const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [projection] })
  const fiber = yield* Effect.forkChild(Effect.provide(orchestrator.run, Logger.layer([])))
  yield* (yield* EventStore).append([event("healthy")])
  yield* Deferred.await(handled)
  yield* Fiber.interrupt(fiber)
})

for (const onFailure of ["halt", "park"] as const) {
  test(`a range without parked events sends no statement about them (${onFailure})`, function*({ url }) {
    const { layer, statements } = recording(url)
    yield* Effect.provide(runUntilHandled({ onFailure }), layer)
    assert.isAbove(statements.length, 0)
    assert.deepStrictEqual(statements.filter((text) => aboutParked.test(text)), [])
  })
}

test("a range with parked events reads them, even if the projection does not park any more", function*({ url }) {
  const { layer, statements } = recording(url)
  const poison = Projection.make("users", { onFailure: "park", handle: () => Effect.fail("poison") })
  yield* Effect.gen(function*() {
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [poison] })
    const fiber = yield* Effect.forkChild(Effect.provide(orchestrator.run, Logger.layer([])))
    yield* (yield* EventStore).append([event("poisoned")])
    const parked = (yield* ParkedEvents).list("users")
    yield* TimeLimits.waitUntil("an event is parked", parked, ({ length }) => length === 1)
    yield* Fiber.interrupt(fiber)
    statements.length = 0
    yield* (yield* EventStore).append([event("poisoned")])
    yield* runUntilHandled({ onFailure: "halt" })
    assert.isAbove(statements.filter((text) => aboutParked.test(text)).length, 0)
    assert.lengthOf(yield* parked, 2)
  }).pipe(Effect.provide(layer))
})
