import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as MembershipSuite from "../../suites/MembershipSuite.ts"
import { virtualTime } from "../../suites/Suite.ts"

MembershipSuite.suite("memory", MemoryStores.layer, { time: virtualTime })
