/** What workers cost the database: their sessions, and their statements while they are idle and under load. */
import { PgClient } from "@effect/sql-pg"
import { Console, Effect, Layer, Redacted, Schema, Stream } from "effect"
import { SqlClient } from "effect/sql"
import * as Fs from "node:fs"
import { EventStore, Migrations, Orchestrator, PostgresStores, Projection } from "pupsourcing-orchestrator"
import * as Benchmark from "../Benchmark.ts"
import { withDatabase } from "../Server.ts"

/** The sessions of a process, by the end of their `application_name`; `pool` is the pool of the application. */
const kinds = ["pool", "reader", "coordination", "listener", "presence"] as const

type Counts = Record<(typeof kinds)[number], number>

const countKinds = (names: ReadonlyArray<string>): Counts => {
  const counts: Counts = { pool: 0, reader: 0, coordination: 0, listener: 0, presence: 0 }
  for (const name of names) {
    const kind = kinds.find((kind) => name === `cost ${kind}` || name === `pupsourcing-orchestrator ${kind}`)
    if (kind !== undefined) counts[kind]++
  }
  return counts
}

const total = (counts: Counts): number => kinds.reduce((sum, kind) => sum + counts[kind], 0)

interface Target {
  readonly url: Redacted.Redacted
  /** The log of the server. */
  readonly log: string
}

const client = (url: Redacted.Redacted, applicationName: string) => PgClient.layer({ url, applicationName })

/** The session names of the statements that the server logs while `self` runs. */
const statementsDuring = <A, E, R>(target: Target, self: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const from = Fs.statSync(target.log).size
    const value = yield* self
    const text = Fs.readFileSync(target.log).subarray(from).toString("utf8")
    const names = Array.from(text.matchAll(/^([^|\n]*)\|LOG: {2}(?:statement|execute [^:]*):/gm), (match) => match[1]!)
    return { value, counts: countKinds(names) }
  })

interface Fleet {
  readonly processes: number
  readonly replicaSets: number
  readonly projections: number
  readonly handle: () => Effect.Effect<void>
}

/** The workers of one process, with stores and a pool of their own. Returns after they have reached their assignment. */
const startProcess = Effect.fnUntraced(function*(target: Target, fleet: Fleet, committed: (events: number) => void) {
  const context = yield* Layer.build(
    Layer.fresh(PostgresStores.layer).pipe(Layer.provideMerge(client(target.url, "cost pool")))
  )
  for (let set = 0; set < fleet.replicaSets; set++) {
    const projections = Array.from(
      { length: fleet.projections },
      (_, index) => Projection.make(`projection_${set}_${index}`, { handle: fleet.handle })
    )
    const orchestrator = yield* Effect.provide(Orchestrator.make({ replicaSet: `set_${set}`, projections }), context)
    yield* orchestrator.activity.pipe(
      Stream.runForEach((activity) =>
        Effect.sync(() => {
          if (activity._tag === "BatchCommitted") committed(activity.events)
        })
      ),
      Effect.forkScoped
    )
    yield* Effect.forkScoped(orchestrator.run)
  }
})

/** Runs `self` beside a fleet, in a database of its own. */
const withFleet = <A, E, R>(
  server: Target,
  fleet: Fleet,
  self: (target: Target, committed: () => number) => Effect.Effect<A, E, R>
) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const name = `cost_${process.pid}_${++databases}`
    yield* sql`CREATE DATABASE ${sql(name)}`
    const target = { url: Redacted.make(withDatabase(Redacted.value(server.url), name)), log: server.log }
    yield* Effect.provide(Migrations.up, client(target.url, "cost setup"))
    let events = 0
    return yield* Effect.gen(function*() {
      for (let started = 0; started < fleet.processes; started++) {
        yield* startProcess(target, fleet, (count) => {
          events += count
        })
      }
      yield* Effect.sleep("4 seconds")
      return yield* self(target, () => events)
      // The server is stopped at the end anyway.
    }).pipe(Effect.scoped, Effect.ensuring(Effect.ignore(sql`DROP DATABASE ${sql(name)} WITH (FORCE)`)))
  })

let databases = 0

/** The sessions that are open in the database of a target, by kind. */
const sessionsOf = Effect.fnUntraced(function*(target: Target) {
  const sql = yield* SqlClient.SqlClient
  const rows = yield* sql<{ readonly application_name: string }>`
    SELECT application_name FROM pg_stat_activity
    WHERE datname = ${new URL(Redacted.value(target.url)).pathname.slice(1)}`
  return countKinds(rows.map((row) => row.application_name))
})

const nothing = () => Effect.void

const idle = (server: Target, fleet: Omit<Fleet, "handle">) =>
  withFleet(server, { ...fleet, handle: nothing }, (target) =>
    Effect.gen(function*() {
      const seconds = 10
      const { counts } = yield* statementsDuring(target, Effect.sleep(`${seconds} seconds`))
      const open = yield* sessionsOf(target)
      const perSecond = (kind: keyof Counts) => (counts[kind] / seconds).toFixed(1)
      return [
        fleet.processes,
        fleet.replicaSets,
        fleet.projections,
        total(open) - open.pool,
        ...kinds.map(perSecond),
        (total(counts) / seconds).toFixed(1),
        (total(counts) / seconds / fleet.processes).toFixed(1)
      ]
    }))

const appended = (id: number) => ({
  boundedContext: "cost",
  aggregateType: "Thing",
  aggregateId: `thing-${id % 1000}`,
  eventType: "Happened",
  payload: {}
})

/**
 * Single appends at a fixed rate, by a client of its own. Its appends are not counted; its notifications are, as the
 * statements of its listening session.
 */
const load = (server: Target, fleet: Omit<Fleet, "handle">, rate: number) =>
  withFleet(server, { ...fleet, handle: nothing }, (target, committed) =>
    Effect.gen(function*() {
      const store = yield* EventStore.EventStore
      const seconds = 10
      const appends = Effect.forEach(
        Array.from({ length: rate * seconds }, (_, index) => index),
        (index) => Effect.andThen(Effect.sleep(1000 / rate * index), store.append([appended(index)])),
        { concurrency: "unbounded", discard: true }
      )
      const before = committed()
      const { counts } = yield* statementsDuring(target, Effect.andThen(appends, Effect.sleep("1 second")))
      const handled = committed() - before
      return [
        fleet.processes,
        fleet.projections,
        rate,
        handled,
        (yield* sessionsOf(target)).pool,
        ...kinds.map((kind) => (counts[kind] / seconds).toFixed(1)),
        (total(counts) / handled).toFixed(2)
      ]
    }).pipe(Effect.provide(
      Layer.fresh(PostgresStores.layer).pipe(Layer.provideMerge(client(target.url, "cost appender")))
    )))

/** The benchmark reads the log of the server. */
class LogOutOfReach extends Schema.TaggedError<LogOutOfReach>()("LogOutOfReach", {}) {
  override get message(): string {
    return "Statements are counted in the server's log, which is out of reach with DATABASE_URL. Unset it to measure the embedded server."
  }
}

/** Makes the server log every statement with the name of its session, until the scope closes. */
const logStatements = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* Effect.acquireRelease(
    Effect.gen(function*() {
      yield* sql`ALTER SYSTEM SET log_statement = 'all'`
      yield* sql`ALTER SYSTEM SET log_line_prefix = '%a|'`
      yield* sql`SELECT pg_reload_conf()`
    }),
    () =>
      Effect.gen(function*() {
        yield* sql`ALTER SYSTEM RESET log_statement`
        yield* sql`ALTER SYSTEM RESET log_line_prefix`
        yield* sql`SELECT pg_reload_conf()`
      }).pipe(Effect.orDie)
  )
  yield* Effect.sleep("1 second")
})

const measure = Effect.gen(function*() {
  const { embedded, url } = yield* Benchmark.Target
  if (embedded === undefined) return yield* new LogOutOfReach()
  const server: Target = { url, log: embedded.log }
  yield* logStatements
  yield* Console.error("  idle workers …")
  const idleRows = yield* Effect.forEach(
    [[1, 1, 1], [1, 1, 8], [1, 4, 1], [2, 1, 1], [4, 1, 1], [2, 4, 1]] as const,
    ([processes, replicaSets, projections]) => idle(server, { processes, replicaSets, projections })
  )
  yield* Console.error("  workers under load …")
  const loadRows = yield* Effect.forEach(
    [[1, 1, 10], [1, 1, 100], [1, 4, 100], [2, 1, 100]] as const,
    ([processes, projections, rate]) => load(server, { processes, replicaSets: 1, projections }, rate)
  )
  return evaluate(idleRows, loadRows)
})

type Rows = Benchmark.Table["rows"]

const evaluate = (idleRows: Rows, loadRows: Rows): Benchmark.Result => ({
  text:
    "Workers with pools of their own in one process, as if each were a process. Statements are counted in the server's log, by the " +
    "`application_name` of their session.",
  measures: [],
  tables: [
    {
      title: "Idle",
      text:
        "Statements per second, by session. The library's own sessions are open all the time; those of the pool are counted separately.",
      header: ["processes", "replica sets", "projections each", "own sessions", ...kinds, "all", "all per process"],
      rows: idleRows
    },
    {
      title: "Under load",
      text:
        "Single appends at a fixed rate for 10 s. Statements per second, by session. The appends are not counted; their notifications " +
        "are in the column `listener`. The last column divides all statements by the handled events (an event counts once per projection).",
      header: [
        "processes",
        "projections",
        "appends/s",
        "handled",
        "pool sessions",
        ...kinds,
        "statements per event"
      ],
      rows: loadRows
    }
  ]
})

export const cost = Benchmark.make({
  name: "cost",
  title: "Sessions and statements of workers",
  summary: "The sessions and statements of workers, idle and under load.",
  run: Effect.gen(function*() {
    const { url } = yield* Benchmark.Target
    return yield* Effect.provide(measure, client(url, "cost setup"))
  })
})
