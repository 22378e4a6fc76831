/** Every benchmark, in the order in which they run. */
import type { Benchmark } from "./Benchmark.ts"
import { catchUp } from "./benchmarks/CatchUp.ts"
import { upsert } from "./benchmarks/Upsert.ts"
import { upsertBatch } from "./benchmarks/UpsertBatch.ts"

export const benchmarks: ReadonlyArray<Benchmark> = [catchUp, upsert, upsertBatch]
