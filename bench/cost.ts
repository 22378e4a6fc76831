/**
 * `npm run bench:cost`: what a worker costs the database: its sessions, its statements while it is idle and under load, and the events
 * per second of handlers that wait. Takes three minutes. Statements are counted in the log of a server of its own, by the
 * `application_name` of their session. `-- --record` writes the tables to docs/measurements.
 */
import { PgClient } from "@effect/sql-pg"
import { Effect, Layer, Redacted, Stream } from "effect"
import { SqlClient } from "effect/sql"
import * as Fs from "node:fs"
import { EventStore, Migrations, Orchestrator, PostgresStores, Projection } from "pupsourcing-orchestrator"
import * as Measurement from "../src/testing/Measurement.ts"
import * as Bench from "./Bench.ts"
import { median } from "./Measure.ts"

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
    const url = new URL(Redacted.value(server.url))
    url.pathname = `/${name}`
    const target = { url: Redacted.make(url.href), log: server.log }
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
      const seconds = 15
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

/** Events per second while there is a backlog, with a handler that waits. */
const waiting = (server: Target, processes: number, millis: number) =>
  withFleet(
    server,
    { processes, replicaSets: 1, projections: 1, handle: () => Effect.sleep(millis) },
    (target, committed) =>
      Effect.gen(function*() {
        const store = yield* EventStore.EventStore
        yield* Effect.forEach(
          Array.from({ length: 1000 }, (_, id) => id),
          (id) => store.append(Array.from({ length: 10 }, () => appended(id))),
          { concurrency: 8, discard: true }
        )
        yield* Effect.sleep("2 seconds")
        const rates: Array<number> = []
        for (let round = 0; round < 3; round++) {
          const before = committed()
          yield* Effect.sleep("2 seconds")
          rates.push((committed() - before) / 2)
        }
        return [processes, millis, Math.round(median(rates))]
      }).pipe(Effect.provide(
        Layer.fresh(PostgresStores.layer).pipe(Layer.provideMerge(client(target.url, "cost appender")))
      ))
  )

const program = Effect.gen(function*() {
  const running = yield* Bench.server("cost")
  const server: Target = { url: Redacted.make(running.url), log: running.log }
  const result = yield* Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    yield* sql`ALTER SYSTEM SET log_statement = 'all'`
    yield* sql`ALTER SYSTEM SET log_line_prefix = '%a|'`
    yield* sql`SELECT pg_reload_conf()`
    yield* Effect.sleep("1 second")

    yield* Bench.note("Idle workers …")
    const idleRows = yield* Effect.forEach(
      [[1, 1, 1], [1, 1, 8], [1, 4, 1], [2, 1, 1], [4, 1, 1], [2, 4, 1]] as const,
      ([processes, replicaSets, projections]) => idle(server, { processes, replicaSets, projections })
    )
    yield* Bench.note("Workers under load …")
    const loadRows = yield* Effect.forEach(
      [[1, 1, 10], [1, 1, 100], [1, 4, 100], [2, 1, 100]] as const,
      ([processes, projections, rate]) => load(server, { processes, replicaSets: 1, projections }, rate)
    )
    yield* Bench.note("Handlers that wait …")
    const waitingRows = yield* Effect.forEach([1, 2, 4, 8], (processes) => waiting(server, processes, 10))
    return { idleRows, loadRows, waitingRows }
  }).pipe(Effect.provide(client(server.url, "cost setup")))

  yield* Bench.report({
    page: "cost",
    title: "Cost",
    command: "npm run bench:cost -- --record",
    serverUrl: running.url,
    result: render(result)
  })
})

type Rows = ReadonlyArray<ReadonlyArray<string | number>>

const render = (tables: { readonly idleRows: Rows; readonly loadRows: Rows; readonly waitingRows: Rows }): string =>
  [
    "## Idle",
    "",
    "Statements per second, by session. The library's own sessions are open all the time; those of the pool are counted separately.",
    "",
    Measurement.table(
      ["processes", "replica sets", "projections each", "own sessions", ...kinds, "all", "all per process"],
      tables.idleRows
    ),
    "",
    "## Under load",
    "",
    "Single appends at a fixed rate for 10 s. Statements per second, by session. The appends are not counted; their notifications are in " +
    "the column `listener`. The last column divides all statements by the handled events (an event counts once per projection).",
    "",
    Measurement.table(
      ["processes", "projections", "appends/s", "handled", "pool sessions", ...kinds, "statements per event"],
      tables.loadRows
    ),
    "",
    "## Handlers that wait",
    "",
    "One projection whose handler waits, and a backlog of events of 1,000 aggregates. Median of three intervals of 2 s.",
    "",
    Measurement.table(["processes", "wait in ms", "events/s"], tables.waitingRows)
  ].join("\n")

Bench.runMain(program)
