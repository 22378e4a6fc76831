/**
 * The pauses of ranges while a worker joins or leaves: 8 workers in 8 processes under 100 appends per second, then 64 workers in the
 * same processes under 20.
 *
 * A pause begins when the runner of a range has ended (`RangeStopped`) and ends when the runner of its next owner starts
 * (`RangeClaimed`), both by the machine's monotonic clock in the worker that reports them. A range that is divided among several owners
 * counts once for each. The pauses of hashes that stay with their worker are measured in the same way: it had to end the runner, because
 * the borders of its range changed.
 */
import { Console, Effect } from "effect"
import * as Benchmark from "../Benchmark.ts"
import * as Database from "../hosts/Database.ts"
import * as Fleet from "../hosts/Fleet.ts"
import * as Hosts from "../hosts/Hosts.ts"
import { type Appended, type Entry, now } from "../hosts/Messages.ts"
import * as Timeline from "../hosts/Timeline.ts"
import { atMost, percentile, shown } from "../Measure.ts"

const set = "hand-over"
const processes = 8

interface Phase {
  readonly workers: number
  readonly joins: ReadonlyArray<number>
  readonly leaves: ReadonlyArray<number>
  readonly entries: ReadonlyArray<Entry>
  readonly gaps: ReadonlyArray<Timeline.Gap>
  readonly appended: Appended
}

const phase = Effect.fnUntraced(function*(
  fleet: Fleet.Fleet,
  writers: Hosts.Host,
  workers: number,
  rounds: number,
  rate: number
) {
  yield* Console.error(`  ${workers} workers …`)
  const since = now()
  const load = { rate, writers: 2, aggregates: 2000 }
  const { appended, value } = yield* Hosts.underLoad(writers, load, Fleet.joinAndLeave(fleet, workers, rounds))
  // The last events are handled.
  yield* Effect.sleep("500 millis")
  const entries = [...fleet.hosts.entries]
  const phase: Phase = { workers, ...value, entries, gaps: Timeline.gaps(entries, set, since), appended }
  return phase
})

const measure = Effect.gen(function*() {
  const { url } = yield* Benchmark.Target
  const hosts = Hosts.make(url)
  const writers = yield* hosts.spawn()
  const fleet = yield* Fleet.start(hosts, set, processes)
  yield* Fleet.growTo(fleet, 8)
  const eight = yield* phase(fleet, writers, 8, 20, 100)
  yield* Fleet.growTo(fleet, 64)
  const many = yield* phase(fleet, writers, 64, 5, 20)
  return { eight, many }
})

const moved = ({ gaps }: Phase) => gaps.filter(({ after, before }) => after !== before).map(({ pause }) => pause)
const stayed = ({ gaps }: Phase) => gaps.filter(({ after, before }) => after === before).map(({ pause }) => pause)

const largest = (values: ReadonlyArray<number>): number => Math.max(0, ...values)

const result = Effect.gen(function*() {
  const { eight, many } = yield* measure
  const hashes = yield* Database.hashes
  const delays = ({ appended, entries }: Phase) =>
    Timeline.delays(appended.due, appended, hashes, entries, set).map(({ millis }) => millis)
  const row = (name: string, of: (phase: Phase) => ReadonlyArray<number>) =>
    [eight, many].map((phase) => {
      const values = of(phase)
      const parts = [0.5, 0.99].map((part) => percentile(values, part).toFixed(1))
      return [name, phase.workers, values.length, ...parts, largest(values).toFixed(1)]
    })
  return {
    text:
      `Workers of one projection in ${processes} processes; one of them leaves and joins again, ${eight.joins.length} times ` +
      `among 8 workers under 100 appends per second, and ${many.joins.length} times among 64 under 20.`,
    measures: [
      atMost("pause of a range that moves, 8 workers, p50", percentile(moved(eight), 0.5), "ms", 20),
      atMost("pause of a range that moves, 8 workers, p99", percentile(moved(eight), 0.99), "ms", 60),
      atMost("pause of hashes that stay with their worker, 8 workers, longest", largest(stayed(eight)), "ms", 0),
      atMost("pause of a range that moves, 64 workers, p99", percentile(moved(many), 0.99), "ms", 150),
      shown("delay of an event during the hand-overs, 8 workers, p99", percentile(delays(eight), 0.99), "ms")
    ],
    tables: [{
      title: "Distribution",
      text:
        "Milliseconds. A join lasts from the command to start the worker, a leave from the command to stop it, until every worker " +
        "works on all of its new assignment. A delay lasts from when an append was due to the commit of the read model.",
      header: ["", "workers", "samples", "p50", "p99", "max"],
      rows: [
        ...row("pause of a range that moves", moved),
        ...row("pause of hashes that stay", stayed),
        ...row("join", ({ joins }) => joins),
        ...row("leave", ({ leaves }) => leaves),
        ...row("delay of an event", delays)
      ]
    }]
  }
})

export const handOver = Benchmark.make({
  name: "hand-over",
  title: "Hand-over",
  summary: "How long ranges pause when a worker joins or leaves, with 8 and with 64 workers.",
  run: result
})
