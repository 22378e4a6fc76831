/** The report at the end of a run. */
import * as Measurement from "../../../src/testing/Measurement.ts"

/**
 * What was measured for one kind of fault, in milliseconds; `alone` if no other fault was injected at the same time.
 */
export interface Measured {
  readonly kind: string
  readonly alone: boolean
  /** From its end until live workers held every range. */
  readonly taken: number
  /** From its end until all events appended until then were handled. */
  readonly recovered: number
  /** The longest wait of an event, from the start of its writer's transaction, including the fault's duration. */
  readonly wait: number
}

export interface Outcome {
  readonly seed: number
  readonly minutes: number
  readonly violations: ReadonlyArray<string>
  readonly measured: ReadonlyArray<Measured>
  /** Kinds that this machine cannot run, with the reasons. */
  readonly unavailable: Readonly<Record<string, string>>
  /** Kinds for which the run had no time. */
  readonly missed: ReadonlyArray<string>
  readonly workersStarted: number
  readonly generations: number
  readonly events: number
  readonly lost: number
  readonly doubled: number
  readonly reordered: number
  /** Events handled per second before the first fault, and from then on. */
  readonly before: number
  readonly under: number
}

interface Line {
  readonly kind: string
  readonly times: number
  readonly taken: ReadonlyArray<number>
  readonly recovered: ReadonlyArray<number>
  readonly wait: number
}

const lines = (measured: ReadonlyArray<Measured>): ReadonlyArray<Line> =>
  [...new Set(measured.map(({ kind }) => kind))].sort().map((kind) => {
    const all = measured.filter((one) => one.kind === kind)
    const alone = all.filter((one) => one.alone)
    return {
      kind,
      times: all.length,
      taken: alone.map(({ taken }) => taken),
      recovered: alone.map(({ recovered }) => recovered),
      wait: Math.max(...all.map(({ wait }) => wait))
    }
  })

export const median = (values: ReadonlyArray<number>): number | undefined =>
  [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)]

const ms = (value: number | undefined): string => value === undefined ? "" : Math.round(value).toLocaleString("en-US")

const worst = (values: ReadonlyArray<number>): number | undefined =>
  values.length === 0 ? undefined : Math.max(...values)

/** As Markdown. */
export const table = (outcome: Outcome): string => {
  const found = lines(outcome.measured)
  const longest = Math.max(0, ...outcome.measured.map(({ wait }) => wait))
  return [
    Measurement.table(
      [
        "fault",
        "times",
        "all ranges held, p50 ms",
        "worst",
        "all events handled, p50 ms",
        "worst",
        "longest wait of an event, ms"
      ],
      found.map(({ kind, recovered, taken, times, wait }) => [
        kind,
        times,
        ms(median(taken)),
        ms(worst(taken)),
        ms(median(recovered)),
        ms(worst(recovered)),
        ms(wait)
      ])
    ),
    "",
    `- seed ${outcome.seed}, ${outcome.minutes} minutes: ${outcome.measured.length} faults of ${found.length} kinds, ` +
    `${outcome.workersStarted} worker processes, ${outcome.generations} generations, ${
      outcome.events.toLocaleString("en-US")
    } events`,
    `- ${outcome.lost} lost, ${outcome.doubled} duplicated, ${outcome.reordered} reordered; longest pause ${
      ms(longest)
    } ms; ` +
    `${Math.round(outcome.under)} events a second under faults, ${Math.round(outcome.before)} before (${
      Math.round(100 * outcome.under / outcome.before)
    } %)`,
    ...Object.entries(outcome.unavailable).map(([kind, why]) => `- not possible on this machine: ${kind}: ${why}`),
    ...(outcome.missed.length > 0 ? [`- no time for: ${outcome.missed.join(", ")}`] : []),
    ...(outcome.violations.length > 0 ? [`- VIOLATIONS\n  - ${outcome.violations.join("\n  - ")}`] : [])
  ].join("\n")
}
