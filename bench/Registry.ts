/** Every benchmark, in the order in which they run. */
import type { Benchmark } from "./Benchmark.ts"
import { catchUp } from "./benchmarks/CatchUp.ts"
import { handOver } from "./benchmarks/HandOver.ts"
import { latency } from "./benchmarks/Latency.ts"
import { takeover } from "./benchmarks/Takeover.ts"
import { upsert } from "./benchmarks/Upsert.ts"
import { upsertBatch } from "./benchmarks/UpsertBatch.ts"

export const benchmarks: ReadonlyArray<Benchmark> = [
  catchUp,
  upsert,
  upsertBatch,
  handOver,
  latency,
  takeover
]
