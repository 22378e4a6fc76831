import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as CoordinationStoreSuite from "../../suites/CoordinationStoreSuite.ts"
import * as SelectionSuite from "../../suites/SelectionSuite.ts"
import { virtualTime } from "../../suites/Suite.ts"

CoordinationStoreSuite.suite("memory", MemoryStores.layer, { time: virtualTime })

SelectionSuite.suite("memory", MemoryStores.layer, { time: virtualTime })
