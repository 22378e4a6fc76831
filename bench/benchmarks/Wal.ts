/** What a worker costs the server's disk: WAL and dead row versions for each event, and whether autovacuum keeps up with them. */
import { Console, Effect, Schedule } from "effect"
import { SqlClient } from "effect/sql"
import * as Benchmark from "../Benchmark.ts"
import * as Database from "../hosts/Database.ts"
import * as Hosts from "../hosts/Hosts.ts"
import { now } from "../hosts/Messages.ts"
import { atMost, round, shown } from "../Measure.ts"

/** With a worker; appends alone are measured for a third of it. */
const seconds = 1800
const load = { rate: 200, writers: 4, aggregates: 1000 }
const interval = 5
const set = "wal"

/** The statistics of one table. */
interface TableStatistics {
  readonly table: string
  /** Dead row versions that were neither pruned nor vacuumed, as the server estimates them. */
  readonly dead: number
  /** Row versions that have died since the creation of the table. */
  readonly died: number
  readonly vacuums: number
  readonly bytes: number
}

interface Observation {
  /** Bytes of WAL that the server has written. */
  readonly wal: number
  readonly tables: ReadonlyArray<TableStatistics>
}

const observe = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [position] = yield* sql<{ readonly bytes: number }>`
    SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8 AS bytes`
  const tables = yield* sql<TableStatistics>`
    SELECT relname::text AS table, n_dead_tup::float8 AS dead, (n_tup_upd + n_tup_del)::float8 AS died,
      autovacuum_count::float8 AS vacuums, pg_total_relation_size(relid)::float8 AS bytes
    FROM pg_stat_user_tables ORDER BY relname`
  const observation: Observation = { wal: position!.bytes, tables }
  return observation
})

interface Phase {
  readonly events: number
  readonly observations: ReadonlyArray<Observation>
}

/** Observes the server while events are appended. */
const measurePhase = Effect.fnUntraced(function*(name: string, writers: Hosts.Host, seconds: number) {
  yield* Console.error(`  ${name}, ${seconds} s …`)
  const { appended, value: observations } = yield* Hosts.underLoad(
    writers,
    load,
    Effect.forEach(
      Array.from({ length: Math.ceil(seconds / interval) + 1 }),
      (_, index) => Effect.delay(observe, index === 0 ? 0 : `${interval} seconds`)
    )
  )
  const phase: Phase = { events: appended.positions.length, observations }
  return phase
})

/** Appends alone, then with a worker that starts at the first event of its phase. */
const measure = Effect.gen(function*() {
  const { url } = yield* Benchmark.Target
  yield* Database.createReadModel
  const hosts = Hosts.make(url)
  const writers = yield* hosts.spawn()
  const alone = yield* measurePhase("appends alone", writers, seconds / 3)
  const host = yield* hosts.spawn()
  const since = now()
  Hosts.startWorker(host, { worker: "w0", replicaSet: set, handler: "upsert", startFrom: "now" })
  yield* Hosts.reached(hosts, since, ["w0"])
  const worker = yield* measurePhase("with a worker", writers, seconds)
  yield* awaitHandled(worker.events)
  return { alone, worker }
})

const awaitHandled = Effect.fnUntraced(function*(events: number) {
  const sql = yield* SqlClient.SqlClient
  const handled = yield* Effect.repeat(
    sql<{ readonly sum: number }>`SELECT coalesce(sum(events), 0)::float8 AS sum FROM read_model`,
    { until: ([row]) => row!.sum === events, schedule: Schedule.spaced("100 millis"), times: 100 }
  )
  if (handled[0]!.sum !== events) {
    return yield* Effect.die(new Error(`The worker handled ${handled[0]!.sum} of ${events} events`))
  }
})

/** The growth of a value during the phase, for each event. */
const perEvent = ({ events, observations }: Phase, of: (observation: Observation) => number): number =>
  (of(observations.at(-1)!) - of(observations[0]!)) / events

const died = ({ tables }: Observation): number => tables.reduce((sum, { died }) => sum + died, 0)

/** Autovacuum leaves fewer dead row versions alone: `autovacuum_vacuum_threshold`. */
const vacuumThreshold = 50

/** The statistics of one table in the course of a phase. */
const summaryOf = ({ observations, ...phase }: Phase, table: string) => {
  const of = (observation: Observation) => observation.tables.find((other) => other.table === table)!
  const third = Math.floor(observations.length / 3)
  const meanDead = (part: ReadonlyArray<Observation>) => part.reduce((sum, one) => sum + of(one).dead, 0) / part.length
  const [first, last] = [meanDead(observations.slice(0, third)), meanDead(observations.slice(-third))]
  return {
    table,
    died: perEvent({ observations, ...phase }, (observation) => of(observation).died),
    first,
    last,
    growth: Math.max(last, vacuumThreshold) / Math.max(first, vacuumThreshold),
    vacuums: of(observations.at(-1)!).vacuums - of(observations[0]!).vacuums,
    bytes: of(observations.at(-1)!).bytes
  }
}

const evaluate = ({ alone, worker }: Effect.Success<typeof measure>): Benchmark.Result => {
  const tables = worker.observations[0]!.tables
    .map(({ table }) => summaryOf(worker, table))
    .filter(({ died }) => died > 0)
  const wal = [alone, worker].map((phase) => perEvent(phase, ({ wal }) => wal)) as [number, number]
  const dead = [alone, worker].map((phase) => perEvent(phase, died)) as [number, number]
  return {
    text:
      `${load.rate} appends per second by ${load.writers} writers to ${load.aggregates} aggregates, for ${
        seconds / 3
      } s alone ` +
      `(${alone.events} events), then for ${seconds} s (${worker.events} events) with one worker, whose handler writes one upsert for each ` +
      "event. WAL is that of the whole server, with the images of pages after checkpoints and the work of autovacuum, whose settings are " +
      `PostgreSQL's defaults. The number of dead row versions was read every ${interval} s; fewer than ${vacuumThreshold}, which autovacuum ` +
      `leaves alone, count as ${vacuumThreshold}.`,
    measures: [
      shown("WAL for each event, appends alone", wal[0], "bytes"),
      shown("WAL for each event, with a worker", wal[1], "bytes"),
      shown("dead row versions for each event, appends alone", dead[0], "rows"),
      shown("dead row versions for each event, with a worker", dead[1], "rows"),
      atMost(
        "dead row versions in the last third relative to the first, highest of all tables",
        Math.max(...tables.map(({ growth }) => growth)),
        "ratio",
        1.5
      )
    ],
    tables: [{
      title: "Tables with dead row versions",
      text: "With a worker. The number of dead rows is the mean of a third of the time.",
      header: ["table", "died for each event", "dead, first third", "dead, last third", "autovacuums", "KB at the end"],
      rows: tables.map(({ bytes, died, first, last, table, vacuums }) => [
        table,
        round(died),
        Math.round(first),
        Math.round(last),
        vacuums,
        Math.round(bytes / 1024)
      ])
    }]
  }
}

export const wal = Benchmark.make({
  name: "wal",
  title: "WAL and dead rows",
  summary: "WAL bytes and dead row versions for each event over 30 minutes, and whether autovacuum keeps up with them.",
  isLong: true,
  run: Effect.map(measure, evaluate)
})
