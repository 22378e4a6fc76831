/**
 * The output of the demo: its steps, line by line, and below them a table that is redrawn in place. Without a terminal,
 * the table is one line per second.
 */
import { Clock, Effect } from "effect"

/** One worker of the table. */
export interface Row {
  readonly worker: string
  readonly state: string
  /** `0 of 3`; empty if the worker has none. */
  readonly partition: string
  readonly generation: string
  readonly position: number | undefined
  readonly lag: number | undefined
  readonly eventsPerSecond: number | undefined
}

export interface View {
  readonly appended: number
  readonly total: number
  /** Events handled, of both projections together. */
  readonly handled: number
  readonly rows: ReadonlyArray<Row>
}

export interface Screen {
  /** Prints a line above the table. */
  readonly print: (text: string) => Effect.Effect<void>
  readonly draw: (view: View) => Effect.Effect<void>
  /** Removes the table. */
  readonly clear: Effect.Effect<void>
}

export const count = (value: number): string => Math.round(value).toLocaleString("en-US")

const lineInterval = 1000

export const make = Effect.gen(function*() {
  const startedAt = yield* Clock.currentTimeMillis
  const terminal = process.stdout.isTTY
  let table: ReadonlyArray<string> = []
  let lineAt = startedAt

  const write = (text: string) => {
    process.stdout.write(text)
  }
  const erase = () => {
    if (table.length > 0) write(`\u001b[${table.length}A\u001b[J`)
    table = []
  }
  const show = (lines: ReadonlyArray<string>) => {
    // A line that wraps takes two rows, and `erase` moves up one row for each line.
    const width = process.stdout.columns || 80
    table = lines.map((line) => line.slice(0, width - 1))
    write(table.map((line) => `${line}\n`).join(""))
  }
  const seconds = Effect.map(
    Clock.currentTimeMillis,
    (now) => `${((now - startedAt) / 1000).toFixed(3).padStart(7)} s`
  )

  return {
    print: (text) =>
      Effect.map(seconds, (time) => {
        const below = table
        erase()
        write(`${time}  ${text.split("\n").join(`\n${" ".repeat(11)}`)}\n`)
        if (terminal) show(below)
      }),
    draw: (view) =>
      Effect.gen(function*() {
        if (terminal) {
          erase()
          show(lines(view))
          return
        }
        const now = yield* Clock.currentTimeMillis
        if (now - lineAt < lineInterval) return
        lineAt = now
        write(`${yield* seconds}  ${line(view)}\n`)
      }),
    clear: Effect.sync(erase)
  } satisfies Screen as Screen
})

const headings = ["worker", "state", "partition", "generation", "position", "lag", "events/s"]
const widths = [10, 22, 9, 10, 9, 8, 9]

const cells = (row: Row): ReadonlyArray<string> => [
  row.worker,
  row.state,
  row.partition,
  row.generation,
  ...[row.position, row.lag, row.eventsPerSecond].map((value) => value === undefined ? "" : count(value))
]

/** Words to the left, numbers to the right. */
const align = (cells: ReadonlyArray<string>): string =>
  ` ${cells.map((cell, i) => i < 2 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0)).join("  ")}`

const lines = (view: View): ReadonlyArray<string> => [
  "",
  ` appended ${count(view.appended)} of ${count(view.total)} events, handled ${count(view.handled)} of ${
    count(view.total * 2)
  } (by two projections)`,
  align(headings),
  ...view.rows.map((row) => align(cells(row)))
]

const line = (view: View): string =>
  [
    `appended ${count(view.appended)}, handled ${count(view.handled)} of ${count(view.total * 2)}`,
    ...view.rows.map((row) =>
      row.position === undefined
        ? `${row.worker}: ${row.state}`
        : `${row.worker}: partition ${row.partition}, generation ${row.generation}, position ${
          count(row.position)
        }, lag ${count(row.lag ?? 0)}, ${count(row.eventsPerSecond ?? 0)}/s`
    )
  ].join(" | ")
