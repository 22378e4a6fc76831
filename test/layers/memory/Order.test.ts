import * as Effect from "effect/Effect"
import * as TxRef from "effect/TxRef"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as OrderSuite from "../../suites/OrderSuite.ts"

const number = TxRef.makeUnsafe(0)

OrderSuite.suite("memory", MemoryStores.layer, {
  shared: { read: Effect.suspend(() => TxRef.get(number)), write: (value) => TxRef.set(number, value) }
})
