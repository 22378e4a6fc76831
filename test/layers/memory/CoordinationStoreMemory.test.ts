import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as CoordinationStoreSuite from "../../suites/CoordinationStoreSuite.ts"
import { virtualTime } from "../../suites/Suite.ts"

CoordinationStoreSuite.suite("memory", MemoryStores.layer, { time: virtualTime })
