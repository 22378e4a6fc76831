import * as Effect from "effect/Effect"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as EventStoreSuite from "../../suites/EventStoreSuite.ts"
import { virtualTime } from "../../suites/Suite.ts"

EventStoreSuite.suite("memory", MemoryStores.layer, { time: virtualTime, transact: Effect.tx })
