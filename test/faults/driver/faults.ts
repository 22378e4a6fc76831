/**
 * All faults.
 */
import type { Fault } from "./Fault.ts"
import { clock } from "./faults/Clock.ts"
import { deploy } from "./faults/Deploy.ts"
import { handlers } from "./faults/Handlers.ts"
import { limits } from "./faults/Limits.ts"
import { network } from "./faults/Network.ts"
import { pooler } from "./faults/Pooler.ts"
import { server } from "./faults/Server.ts"
import { signals } from "./faults/Signals.ts"
import { writers } from "./faults/Writers.ts"

export const faults: ReadonlyArray<Fault> = [
  ...signals,
  ...server,
  ...limits,
  ...network,
  ...clock,
  ...writers,
  ...deploy,
  ...handlers,
  ...pooler
]
