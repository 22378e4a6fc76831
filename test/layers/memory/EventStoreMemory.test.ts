import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import { enter, event, restorePoint } from "../../services/World.ts"
import * as EventStoreSuite from "../../suites/EventStoreSuite.ts"
import * as PartitionKeySuite from "../../suites/PartitionKeySuite.ts"
import { virtualTime } from "../../suites/Suite.ts"

EventStoreSuite.suite("memory", MemoryStores.layer, { time: virtualTime, transact: Effect.tx })
PartitionKeySuite.suite("memory", MemoryStores.layer, { time: virtualTime })

it.effect("reads the events of the new epoch after the server has lost commits", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const { events } = yield* enter(world)
    yield* events.append([event("a")])
    const comeBack = restorePoint(world)
    yield* events.append([event("b")])
    yield* events.read({ after: 0n })
    yield* comeBack
    yield* events.append([event("c")])
    const page = yield* events.read({ after: 0n })
    assert.deepStrictEqual(page.events.map(({ aggregateId }) => aggregateId), ["a", "c"])
  }))
