/**
 * All faults.
 */
import type { Fault } from "./Fault.ts"
import { limits } from "./faults/Limits.ts"
import { server } from "./faults/Server.ts"
import { signals } from "./faults/Signals.ts"
import { writers } from "./faults/Writers.ts"

export const faults: ReadonlyArray<Fault> = [...signals, ...server, ...limits, ...writers]
