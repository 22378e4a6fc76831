/**
 * What coordination costs as a replica set grows: 25, 50, 100 and 200 workers of one projection, in 8 processes.
 *
 * The workers of one process share its stores, so this shows the growth with the number of workers, not of processes.
 */
import { Cause, Console, Effect, Exit } from "effect"
import { SqlClient } from "effect/sql"
import * as Benchmark from "../Benchmark.ts"
import * as Database from "../hosts/Database.ts"
import * as Delays from "../hosts/Delays.ts"
import * as Fleet from "../hosts/Fleet.ts"
import * as Hosts from "../hosts/Hosts.ts"
import { now } from "../hosts/Messages.ts"
import { atLeast, median, percentile, round, shown } from "../Measure.ts"

const set = "coordination"
const processes = 8
const sizes = [25, 50, 100, 200]
const seconds = 10
const load = { rate: 20, writers: 2, aggregates: 2000, seconds }
const rounds = 3

/** Open sessions at the server. */
const sessions = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ readonly pools: number; readonly own: number }>`
    SELECT count(*) FILTER (WHERE application_name = 'bench pool')::int4 AS pools,
      count(*) FILTER (WHERE application_name LIKE 'pupsourcing-orchestrator %')::int4 AS own
    FROM pg_stat_activity WHERE datname = current_database()`
  return row!
})

/** The statements of all sessions while `self` runs, in total and per second. */
const statementsDuring = Effect.fnUntraced(function*<A, E, R>(self: Effect.Effect<A, E, R>) {
  const before = yield* Database.statements
  const since = now()
  const value = yield* self
  const statements = (yield* Database.statements) - before - 1
  return { value, statements, perSecond: statements / (now() - since) * 1000 }
})

/** Grows the fleet to this size, and measures it. */
const measureSize = Effect.fnUntraced(function*(fleet: Fleet.Fleet, writers: Hosts.Host, workers: number) {
  yield* Console.error(`  ${workers} workers …`)
  const since = now()
  yield* Fleet.growTo(fleet, workers)
  const grown = now() - since
  // The sessions of the start end, and presence is established.
  yield* Effect.sleep("5 seconds")
  const idle = yield* statementsDuring(Effect.sleep(`${seconds} seconds`))
  const loaded = yield* statementsDuring(writers.append(load))
  const delays = yield* Delays.all(fleet.hosts, loaded.value, set)
  const changes = yield* statementsDuring(Fleet.joinAndLeave(fleet, workers, rounds))
  return {
    workers,
    grown,
    idle: idle.perSecond,
    loaded: loaded.perSecond,
    delay: percentile(delays.map(({ millis }) => millis), 0.99),
    join: median(changes.value.joins),
    leave: median(changes.value.leaves),
    statements: changes.statements / (2 * rounds),
    sessions: yield* sessions
  }
})

type Measured = Effect.Success<ReturnType<typeof measureSize>>

/** Measures each size, up to the first one that does not work. */
const measure = Effect.gen(function*() {
  const { url } = yield* Benchmark.Target
  yield* Database.countStatements
  const hosts = Hosts.make(url)
  const writers = yield* hosts.spawn({ applicationName: "bench writers" })
  const fleet = yield* Fleet.start(hosts, set, processes)
  const measured: Array<Measured> = []
  for (const workers of sizes) {
    const exit = yield* Effect.exit(measureSize(fleet, writers, workers))
    if (Exit.isFailure(exit)) return { measured, broken: { workers, cause: Cause.squash(exit.cause) } }
    measured.push(exit.value)
  }
  return { measured, broken: undefined }
})

const evaluate = ({ broken, measured }: Effect.Success<typeof measure>): Benchmark.Result => {
  const last = measured.at(-1)
  return {
    text:
      `Workers of one projection in ${processes} processes, at default settings. Statements are counted for ${seconds} s without load, and ` +
      `while ${load.rate} events per second are appended, appends included. Then one worker leaves and joins again, ${rounds} times; the ` +
      "median is the time until every worker has reached its assignment." +
      (broken === undefined ? "" : ` It failed with ${broken.workers} workers: ${broken.cause}`),
    measures: [
      atLeast("workers of one replica set", last?.workers ?? 0, "workers", sizes.at(-1)!),
      ...last === undefined ? [] : [
        shown(`statements without load, ${last.workers} workers`, last.idle, "statements/s"),
        shown(`join, ${last.workers} workers`, last.join, "ms"),
        shown(`leave, ${last.workers} workers`, last.leave, "ms"),
        shown(`sessions, ${last.workers} workers`, last.sessions.own + last.sessions.pools, "sessions")
      ]
    ],
    tables: [{
      title: "Growth",
      text:
        "Times in milliseconds. The third column is the time in which the fleet grew from the previous size. The delay lasts from when an " +
        "append was due to the commit that handles the event.",
      header: [
        "workers",
        "statements/s",
        "for each worker",
        "grown in",
        "statements/s under load",
        "delay, p99",
        "join",
        "leave",
        "statements for one of them",
        "sessions of the library",
        "sessions of the pools"
      ],
      rows: measured.map(({ delay, grown, idle, join, leave, loaded, sessions, statements, workers }) => [
        workers,
        round(idle),
        round(idle / workers),
        Math.round(grown),
        round(loaded),
        Math.round(delay),
        Math.round(join),
        Math.round(leave),
        Math.round(statements),
        sessions.own,
        sessions.pools
      ])
    }],
    plot: {
      kind: "lines",
      title: "Join and leave of a worker as the replica set grows",
      unit: "ms",
      axis: "workers",
      labels: measured.map(({ workers }) => String(workers)),
      series: [
        { name: "join", values: measured.map(({ join }) => join) },
        { name: "leave", values: measured.map(({ leave }) => leave) }
      ]
    }
  }
}

export const coordination = Benchmark.make({
  name: "coordination",
  title: "Coordination of many workers",
  summary:
    "How statements, sessions and the time of a join and a leave grow from 25 to 200 workers of one replica set.",
  isLong: true,
  run: Effect.map(measure, evaluate)
})
