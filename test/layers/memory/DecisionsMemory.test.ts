import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as DecisionsSuite from "../../suites/DecisionsSuite.ts"
import { virtualTime } from "../../suites/Suite.ts"

DecisionsSuite.suite("memory", MemoryStores.layer, { time: virtualTime })
