import * as Effect from "effect/Effect"
import * as TxRef from "effect/TxRef"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as PartitionOrderSuite from "../../suites/PartitionOrderSuite.ts"

type Lines = ReadonlyArray<PartitionOrderSuite.Line>

/** One cell for each key, so that only the handlers of one key share a cell. */
const model = Effect.sync((): PartitionOrderSuite.Model<never> => {
  const cells = new Map<string, TxRef.TxRef<Lines>>()
  return {
    write: (_, line) => {
      const cell = cells.get(line.key) ?? TxRef.makeUnsafe<Lines>([])
      cells.set(line.key, cell)
      return TxRef.update(cell, (lines) => [...lines, line])
    },
    lines: () => Effect.sync(() => [...cells.values()].flatMap(({ value }) => value))
  }
})

PartitionOrderSuite.suite("memory", MemoryStores.layer, model)
