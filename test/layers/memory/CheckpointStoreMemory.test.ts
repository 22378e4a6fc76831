import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as TxHashMap from "effect/TxHashMap"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as CheckpointStoreSuite from "../../suites/CheckpointStoreSuite.ts"
import { virtualTime } from "../../suites/Suite.ts"

const counts = Effect.runSync(TxHashMap.empty<string, number>())

CheckpointStoreSuite.suite("memory", MemoryStores.layer, {
  time: virtualTime,
  effects: {
    record: (key) => TxHashMap.modifyAt(counts, key, (count) => Option.some(Option.getOrElse(count, () => 0) + 1)),
    count: (key) => Effect.map(TxHashMap.get(counts, key), Option.getOrElse(() => 0))
  }
})
