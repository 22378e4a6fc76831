import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as BatchHandlersSuite from "../../suites/BatchHandlersSuite.ts"

BatchHandlersSuite.suite("memory", MemoryStores.layer)
