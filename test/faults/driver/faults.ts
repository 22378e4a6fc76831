/**
 * All faults.
 */
import type { Fault } from "./Fault.ts"
import { signals } from "./faults/Signals.ts"

export const faults: ReadonlyArray<Fault> = [...signals]
