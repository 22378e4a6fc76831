/** A measured value beside its target. */
export interface Measure {
  readonly name: string
  readonly value: number
  readonly unit: string
  /** `"≤ 4"`, `"≥ 0.9"`, or `"–"` for a value that is only shown. */
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

/** A value without a target, such as an absolute number, which depends on the machine. */
export const shown = (name: string, value: number, unit: string): Measure => ({
  name,
  value: round(value),
  unit,
  target: "–",
  ok: true
})

/** To three significant digits. */
export const round = (value: number): number => Number(value.toPrecision(3))

/** The value below which the given part of the values lies. */
export const percentile = (values: ReadonlyArray<number>, part: number): number => {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))] ?? Number.NaN
}

export const median = (values: ReadonlyArray<number>): number => percentile(values, 0.5)

/** The median of the ratios of each round: what slows a whole round down does not change its ratio. */
export const medianRatio = (values: ReadonlyArray<number>, others: ReadonlyArray<number>): number =>
  median(values.map((value, round) => value / others[round]!))
