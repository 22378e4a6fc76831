/** The names of rows in traces and violations. */
import type { Checkpoint } from "../../src/schema/Checkpoint.ts"
import * as HashRange from "../../src/schema/HashRange.ts"

const short = (range: HashRange.HashRange): string =>
  HashRange.isWhole(range)
    ? "[whole]"
    : `[${(range.start / HashRange.hashSpace).toFixed(4)},${(range.end / HashRange.hashSpace).toFixed(4)})`

export const nameOf = (row: Pick<Checkpoint, "projection" | "range">): string => `${row.projection}${short(row.range)}`
