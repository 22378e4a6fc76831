/**
 * The memory of a worker while it catches up with small, large and very large events: one worker in a new process for each size, at default
 * settings, with a handler that does nothing.
 *
 * The peak is the maximum of the process's resident memory since its start, as the operating system records it. It is read when the worker
 * has nothing to do, when half of the events are handled, and when all are.
 */
import { Console, Effect } from "effect"
import { SqlClient } from "effect/sql"
import * as Benchmark from "../Benchmark.ts"
import * as Database from "../hosts/Database.ts"
import * as Hosts from "../hosts/Hosts.ts"
import { now } from "../hosts/Messages.ts"
import { atMost } from "../Measure.ts"

const backlogs = [
  { events: 2_000_000, bytes: 100, name: "2 million events of 100 B" },
  { events: 20_000, bytes: 100_000, name: "20,000 events of 100 kB" },
  { events: 200, bytes: 10_000_000, name: "200 events of 10 MB" }
]

/** How long the worker runs before its memory counts as that of an idle one. */
const settling = "3 seconds"

/** Deletes all events. The positions continue, because no projection may be ahead of them. */
const clear = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`TRUNCATE events, aggregate_heads`)

const lastPosition = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ readonly position: number }>`SELECT max(global_position)::float8 AS position FROM events`
  return row!.position
})

/** Starts a worker in a new process. */
const start = Effect.fnUntraced(function*(replicaSet: string) {
  const { url } = yield* Benchmark.Target
  const hosts = Hosts.make(url)
  const host = yield* hosts.spawn()
  const since = now()
  Hosts.startWorker(host, { worker: "w0", replicaSet })
  yield* Hosts.reached(hosts, since, ["w0"])
  const handled = (position: number) =>
    hosts.waitUntil(
      `position ${position} is handled`,
      () => hosts.entries.find((entry) => entry.tag === "BatchCommitted" && entry.position! >= position)
    )
  return { host, since, handled }
})

/** The peak of a process whose worker has nothing to do. */
const idlePeak = Effect.gen(function*() {
  const { host } = yield* start("idle")
  yield* Effect.sleep(settling)
  return (yield* host.usage).peakRss
}).pipe(Effect.scoped)

const measureOne = Effect.fnUntraced(function*({ bytes, events, name }: typeof backlogs[number]) {
  yield* Console.error(`  ${name} …`)
  yield* clear
  yield* Database.append({ bytes, events })
  const last = yield* lastPosition
  const { handled, host, since } = yield* start(`size_${bytes}`)
  yield* handled(last - events / 2)
  const half = (yield* host.usage).peakRss
  const { at } = yield* handled(last)
  const peak = (yield* host.usage).peakRss
  return { name, half, peak, seconds: (at - since) / 1000, bytes: events * bytes }
}, Effect.scoped)

type Measured = Effect.Success<ReturnType<typeof measureOne>>

const measure = Effect.gen(function*() {
  const idle = yield* idlePeak
  return evaluate(idle, yield* Effect.forEach(backlogs, measureOne))
})

const mebibytes = (bytes: number) => bytes / 2 ** 20

const evaluate = (idle: number, measured: ReadonlyArray<Measured>): Benchmark.Result => ({
  text:
    "One worker at default settings in a new process for each row, with a handler that does nothing. The memory of an idle worker is the " +
    "peak of another new process whose worker has had nothing to do. Payloads are compressible, so the table is small; the worker receives " +
    "them in full length.",
  measures: measured.flatMap(({ half, name, peak }) => [
    atMost(`peak above idle, ${name}`, mebibytes(peak - idle), "MiB", 256),
    // The peak never falls: it is that of the first half, unless that of the second one is higher.
    atMost(`peak of the whole run relative to its first half, ${name}`, peak / half, "ratio", 1.1)
  ]),
  tables: [{
    title: "Resident memory",
    text: "In MiB.",
    header: ["", "idle", "peak of the first half", "peak of the whole run", "payload", "seconds"],
    rows: measured.map(({ bytes, half, name, peak, seconds }) => [
      name,
      ...[idle, half, peak, bytes].map((value) => Math.round(mebibytes(value))),
      seconds.toFixed(1)
    ])
  }]
})

export const memory = Benchmark.make({
  name: "memory",
  title: "Memory",
  summary: "The peak of a worker's memory while it catches up with small, large and very large events.",
  isLong: true,
  run: measure
})
