import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as ParkedEventsSuite from "../../suites/ParkedEventsSuite.ts"
import { virtualTime } from "../../suites/Suite.ts"

ParkedEventsSuite.suite("memory", MemoryStores.layer, { time: virtualTime })
