/** Every benchmark, in the order in which they run. */
import type { Benchmark } from "./Benchmark.ts"
import { upsertBatch } from "./benchmarks/UpsertBatch.ts"

export const benchmarks: ReadonlyArray<Benchmark> = [upsertBatch]
