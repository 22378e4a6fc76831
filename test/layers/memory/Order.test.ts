import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as OrderSuite from "../../suites/OrderSuite.ts"

OrderSuite.suite("memory", MemoryStores.layer)
