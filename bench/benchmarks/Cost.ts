/** What workers cost the database while they are idle and under load: their sessions and their statements. */
import { Console, Effect } from "effect"
import { SqlClient } from "effect/sql"
import * as Fs from "node:fs"
import * as Benchmark from "../Benchmark.ts"
import * as Hosts from "../hosts/Hosts.ts"
import { now } from "../hosts/Messages.ts"
import { atMost, shown } from "../Measure.ts"

/** The sessions of a process, by the end of their `application_name`; `pool` is the pool of the application. */
const kinds = ["pool", "reader", "coordination", "listener", "presence"] as const

type Counts = Record<(typeof kinds)[number], number>

const applications = kinds.map((kind) => kind === "pool" ? "bench pool" : `pupsourcing-orchestrator ${kind}`)

const countKinds = (names: ReadonlyArray<string>): Counts => {
  const counts: Counts = { pool: 0, reader: 0, coordination: 0, listener: 0, presence: 0 }
  for (const name of names) {
    const kind = kinds[applications.indexOf(name)]
    if (kind !== undefined) counts[kind]++
  }
  return counts
}

const total = (counts: Counts): number => kinds.reduce((sum, kind) => sum + counts[kind], 0)

interface Fleet {
  readonly processes: number
  readonly replicaSets: number
  readonly projections: number
}

/** How long statements are counted: two heartbeat intervals. */
const seconds = 10

/** Each process runs one worker of each replica set. Returns after all have their assignment and the sessions of the start have ended. */
const start = Effect.fnUntraced(function*(name: string, { processes, projections, replicaSets }: Fleet) {
  const { url } = yield* Benchmark.Target
  yield* Console.error(`  ${processes} processes, ${replicaSets} replica sets, ${projections} projections: ${name} …`)
  const hosts = Hosts.make(url)
  const running = yield* Effect.forEach(numbered("process", processes), () => hosts.spawn(), { concurrency: 2 })
  const since = now()
  for (const replicaSet of numbered(`${name}_set`, replicaSets)) {
    const workers = running.map(({ number }) => `${replicaSet}_worker_${number}`)
    for (const [index, host] of running.entries()) {
      Hosts.startWorker(host, {
        worker: workers[index]!,
        replicaSet,
        projections: numbered(`${replicaSet}_projection`, projections)
      })
    }
    yield* Hosts.reached(hosts, since, workers)
  }
  yield* Effect.sleep("4 seconds")
  return hosts
})

const numbered = (name: string, count: number) => Array.from({ length: count }, (_, index) => `${name}_${index}`)

/** The open sessions of this database, by kind. */
const sessions = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const rows = yield* sql<{ readonly name: string }>`
    SELECT application_name AS name FROM pg_stat_activity WHERE datname = current_database()`
  return countKinds(rows.map(({ name }) => name))
})

/** Makes the server log the statements of the sessions of this database that are opened from now on. The setting ends with the database. */
const logStatements = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ readonly database: string }>`SELECT current_database()::text AS database`
  yield* sql`ALTER DATABASE ${sql(row!.database)} SET log_statement = 'all'`
})

/** Counts the statements that the server logs while `self` runs, by the session that sent them. */
const statementsDuring = Effect.fnUntraced(function*<A, E, R>(log: string, self: Effect.Effect<A, E, R>) {
  const from = Fs.statSync(log).size
  yield* self
  const text = Fs.readFileSync(log).subarray(from).toString("utf8")
  return countKinds(Array.from(text.matchAll(statement), ([, application]) => application!))
})

/** A statement in the log: `log_line_prefix` of the server ends with the session's name. */
const statement = /^[^\n]*?,\d+,([^:\n]*):LOG: {2}(?:statement|execute [^:]*):/gm

const idle = Effect.fnUntraced(function*(log: string, fleet: Fleet) {
  yield* start(`idle_${Object.values(fleet).join("_")}`, fleet)
  const statements = yield* statementsDuring(log, Effect.sleep(`${seconds} seconds`))
  return { fleet, statements, sessions: yield* sessions }
}, Effect.scoped)

const load = Effect.fnUntraced(
  function*(log: string, { fleet, rate }: { readonly fleet: Fleet; readonly rate: number }) {
    const hosts = yield* start(`load_${rate}_${Object.values(fleet).join("_")}`, fleet)
    const writers = yield* hosts.spawn({ applicationName: "bench writers" })
    const since = now()
    const statements = yield* statementsDuring(
      log,
      Effect.andThen(writers.append({ rate, seconds, writers: 4, aggregates: 1000 }), Effect.sleep("1 second"))
    )
    const handled = hosts.entries.reduce((sum, { at, events = 0 }) => sum + (at > since ? events : 0), 0)
    return { fleet, rate, handled, statements, sessions: yield* sessions }
  },
  Effect.scoped
)

type Idle = Effect.Success<ReturnType<typeof idle>>
type Load = Effect.Success<ReturnType<typeof load>>

const fleets = [[1, 1, 1], [1, 1, 8], [1, 4, 1], [2, 1, 1], [4, 1, 1], [2, 4, 1]] as const
const loads = [[1, 1, 10], [1, 1, 100], [1, 4, 100], [2, 1, 100]] as const

const measure = Effect.gen(function*() {
  const { embedded } = yield* Benchmark.Target
  if (embedded === undefined) {
    return yield* Effect.die(
      new Error("Statements are counted in the log of the server. Run this benchmark without DATABASE_URL.")
    )
  }
  yield* logStatements
  const idles = yield* Effect.forEach(
    fleets,
    ([processes, replicaSets, projections]) => idle(embedded.log, { processes, replicaSets, projections })
  )
  const underLoad = yield* Effect.forEach(
    loads,
    ([processes, projections, rate]) => load(embedded.log, { fleet: { processes, replicaSets: 1, projections }, rate })
  )
  return evaluate(idles, underLoad)
})

const perSecond = (count: number) => count / seconds

const evaluate = (idles: ReadonlyArray<Idle>, loads: ReadonlyArray<Load>): Benchmark.Result => {
  const own = ({ sessions }: Idle) => total(sessions) - sessions.pool
  const perProcess = ({ fleet, statements }: Idle) => perSecond(total(statements)) / fleet.processes
  const single = idles.filter(({ fleet }) => fleet.replicaSets === 1)
  const most = Math.max(...idles.map((of) => own(of) / of.fleet.processes))
  return {
    text:
      `Workers at default settings whose handlers do nothing, in processes that run one worker of each replica set. Statements are counted ` +
      `in the log of the server for ${seconds} s, by the session that sent them. The library's own sessions are open all the time; those of ` +
      "the application's pool are counted separately.",
    measures: [
      atMost("sessions of a worker besides the pool, at most", most, "sessions", 4),
      atMost("statements of an idle worker, alone", perProcess(single[0]!), "statements/s", 1),
      atMost("statements of an idle worker, one of 4", perProcess(single.at(-1)!), "statements/s", 1),
      shown(
        "statements for each event, 1 worker, 100 appends/s",
        total(loads[1]!.statements) / loads[1]!.handled,
        "statements"
      )
    ],
    tables: [
      {
        title: "Idle",
        text: "Statements per second, by session.",
        header: ["processes", "replica sets", "projections each", "own sessions", ...kinds, "all", "all per process"],
        rows: idles.map((of) => [
          ...Object.values(of.fleet),
          own(of),
          ...kinds.map((kind) => perSecond(of.statements[kind]).toFixed(1)),
          perSecond(total(of.statements)).toFixed(1),
          perProcess(of).toFixed(1)
        ])
      },
      {
        title: "Under load",
        text:
          `Single appends at a fixed rate for ${seconds} s. Statements per second, by session. The appends are not counted; their notifications ` +
          "are in the column `listener`. The last column divides all statements by the handled events. An event counts once for each projection.",
        header: [
          "processes",
          "projections",
          "appends/s",
          "handled",
          "pool sessions",
          ...kinds,
          "statements per event"
        ],
        rows: loads.map(({ fleet, handled, rate, sessions, statements }) => [
          fleet.processes,
          fleet.projections,
          rate,
          handled,
          sessions.pool,
          ...kinds.map((kind) => perSecond(statements[kind]).toFixed(1)),
          (total(statements) / handled).toFixed(2)
        ])
      }
    ]
  }
}

export const cost = Benchmark.make({
  name: "cost",
  title: "Cost of workers",
  summary: "The sessions of workers, and the statements that they send while they are idle and under load.",
  run: measure
})
