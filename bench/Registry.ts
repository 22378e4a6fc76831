/** Every benchmark, in the order in which they run. */
import type { Benchmark } from "./Benchmark.ts"
import { catchUp } from "./benchmarks/CatchUp.ts"
import { chaos } from "./benchmarks/Chaos.ts"
import { coordination } from "./benchmarks/Coordination.ts"
import { cost } from "./benchmarks/Cost.ts"
import { costs } from "./benchmarks/Costs.ts"
import { deploy } from "./benchmarks/Deploy.ts"
import { guard } from "./benchmarks/Guard.ts"
import { handOver } from "./benchmarks/HandOver.ts"
import { idle } from "./benchmarks/Idle.ts"
import { keys } from "./benchmarks/Keys.ts"
import { latency } from "./benchmarks/Latency.ts"
import { manyProjections } from "./benchmarks/ManyProjections.ts"
import { memory } from "./benchmarks/Memory.ts"
import { projections } from "./benchmarks/Projections.ts"
import { rareType } from "./benchmarks/RareType.ts"
import { sharedReads } from "./benchmarks/SharedReads.ts"
import { start } from "./benchmarks/Start.ts"
import { takeover } from "./benchmarks/Takeover.ts"
import { upsert } from "./benchmarks/Upsert.ts"
import { upsertBatch } from "./benchmarks/UpsertBatch.ts"
import { waiting } from "./benchmarks/Waiting.ts"
import { wal } from "./benchmarks/Wal.ts"

export const benchmarks: ReadonlyArray<Benchmark> = [
  catchUp,
  upsert,
  upsertBatch,
  projections,
  waiting,
  sharedReads,
  latency,
  handOver,
  takeover,
  start,
  cost,
  costs,
  deploy,
  idle,
  coordination,
  memory,
  chaos,
  keys,
  rareType,
  manyProjections,
  wal,
  guard
]
