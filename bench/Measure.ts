import * as Measurement from "../src/testing/Measurement.ts"

/** A measured value beside its target. */
export interface Measure {
  readonly name: string
  readonly value: number
  readonly unit: string
  readonly target: string
  readonly ok: boolean
}

/** The value must be at most the target. */
export const atMost = (name: string, value: number, unit: string, target: number): Measure => ({
  name,
  value: round(value),
  unit,
  target: `≤ ${target}`,
  ok: value <= target
})

/** The value must be at least the target. */
export const atLeast = (name: string, value: number, unit: string, target: number): Measure => ({
  name,
  value: round(value),
  unit,
  target: `≥ ${target}`,
  ok: value >= target
})

const round = (value: number): number => Number(value.toPrecision(3))

/** The value below which the given part of the values lies. */
export const percentile = (values: ReadonlyArray<number>, part: number): number => {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))] ?? Number.NaN
}

export const median = (values: ReadonlyArray<number>): number => percentile(values, 0.5)

export const print = (measures: ReadonlyArray<Measure>): string =>
  Measurement.table(
    ["measure", "value", "unit", "target", ""],
    measures.map(({ name, ok, target, unit, value }) => [name, value, unit, target, ok ? "ok" : "MISSED"])
  )
