import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as TypedEventsSuite from "../../suites/TypedEventsSuite.ts"

TypedEventsSuite.suite("memory", MemoryStores.layer)
