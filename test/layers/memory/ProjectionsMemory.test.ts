import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as ParkedOperationsSuite from "../../suites/ParkedOperationsSuite.ts"
import * as ProjectionsSuite from "../../suites/ProjectionsSuite.ts"
import { virtualTime } from "../../suites/Suite.ts"

ProjectionsSuite.suite("memory", MemoryStores.layer, { time: virtualTime })
ParkedOperationsSuite.suite("memory", MemoryStores.layer, { time: virtualTime })
