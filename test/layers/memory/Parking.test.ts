import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as TxHashMap from "effect/TxHashMap"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as ParkingSuite from "../../suites/ParkingSuite.ts"

const handled = Effect.runSync(TxHashMap.empty<string, ReadonlyArray<string>>())

ParkingSuite.suite("memory", MemoryStores.layer, {
  record: (projection, events) =>
    TxHashMap.modifyAt(
      handled,
      projection,
      (before) => Option.some([...Option.getOrElse(before, () => []), ...events])
    ),
  read: (projection) => Effect.map(TxHashMap.get(handled, projection), Option.getOrElse((): Array<string> => []))
})
