/**
 * The chaos scenarios of [hardbyte/postgresql-job-queue-benchmarking](https://github.com/hardbyte/postgresql-job-queue-benchmarking), adapted
 * to projections. All durations are a third of the original's, where each phase lasts a minute.
 */
import { PgClient } from "@effect/sql-pg"
import { Effect, Layer, Schedule } from "effect"
import { SqlClient } from "effect/sql"
import * as EmbeddedPostgres from "../../src/testing/EmbeddedPostgres.ts"
import * as Benchmark from "../Benchmark.ts"
import type * as Hosts from "./Hosts.ts"
import * as Members from "./Members.ts"
import { now } from "./Messages.ts"

/** The replica set, and its projection. */
export const set = "chaos"

const worker = { replicaSet: set, handler: "upsert" } as const

/** With 300 idle connections, the server has none left. */
export const maxConnections = 320

/** Of its own, because it is restarted. */
export const server: EmbeddedPostgres.Options = {
  name: "bench-chaos",
  settings: { max_connections: String(maxConnections) }
}

export interface Fleet {
  readonly hosts: Hosts.Hosts
  members: ReadonlyArray<Members.Member>
  /** The number of workers that were started so far. */
  started: number
}

const seconds = (seconds: number) => Effect.sleep(`${seconds} seconds`)

/** Starts the first workers, and returns when they have reached their assignment. */
export const start = Effect.fnUntraced(function*(hosts: Hosts.Hosts, workers: number) {
  const members = yield* Members.startAll(hosts, workers, worker)
  const fleet: Fleet = { hosts, members, started: workers }
  return fleet
})

const startWorker = Effect.fnUntraced(function*(fleet: Fleet) {
  const member = yield* Members.start(fleet.hosts, { ...worker, worker: `w${fleet.started++}` })
  fleet.members = [...fleet.members, member]
})

/** SIGKILL to the process of the worker that was started first. Returns when it was sent. */
const killWorker = Effect.fnUntraced(function*(fleet: Fleet) {
  const [victim, ...survivors] = fleet.members
  fleet.members = survivors
  return yield* victim!.host.kill
})

/** What a scenario has done to the fleet. */
export interface Injected {
  readonly what: string
  /** When the last disturbance ended. */
  readonly endedAt: number
}

export interface Scenario {
  readonly name: string
  /** About how long `inject` takes. */
  readonly seconds: number
  readonly inject: (fleet: Fleet) => Effect.Effect<Injected, unknown, Effect.Services<Benchmark.Benchmark["run"]>>
}

/** A process is killed, and replaced 20 seconds later. */
const crashRecovery: Scenario = {
  name: "chaos_crash_recovery",
  seconds: 40,
  inject: Effect.fnUntraced(function*(fleet) {
    const endedAt = yield* killWorker(fleet)
    yield* seconds(20)
    yield* startWorker(fleet)
    yield* seconds(20)
    return { what: "1 process killed", endedAt }
  })
}

/** The server is down for 10 seconds. */
const postgresRestart: Scenario = {
  name: "chaos_postgres_restart",
  seconds: 20,
  inject: Effect.fnUntraced(function*() {
    yield* EmbeddedPostgres.stop(server)
    yield* seconds(10)
    yield* EmbeddedPostgres.ensure(server)
    const endedAt = now()
    yield* seconds(10)
    return { what: "the server is down for 10 s", endedAt }
  })
}

/** Every 8 seconds, a process is killed, and replaced a second later. */
const repeatedKills: Scenario = {
  name: "chaos_repeated_kills",
  seconds: 45,
  inject: Effect.fnUntraced(function*(fleet) {
    const kills = 5
    let endedAt = now()
    for (let kill = 0; kill < kills; kill++) {
      yield* seconds(7)
      endedAt = yield* killWorker(fleet)
      yield* seconds(1)
      yield* startWorker(fleet)
    }
    return { what: `${kills} processes killed`, endedAt }
  })
}

/** Twice a second, every session of the database that is executing a statement or in a transaction is terminated. */
const backendKill: Scenario = {
  name: "chaos_pg_backend_kill",
  seconds: 20,
  inject: Effect.fnUntraced(function*() {
    const sql = yield* SqlClient.SqlClient
    let killed = 0
    yield* sql<{ readonly count: number }>`
      SELECT count(pg_terminate_backend(pid))::int4 AS count FROM pg_stat_activity
      WHERE datname = current_database() AND pid <> pg_backend_pid() AND state IN ('active', 'idle in transaction')`
      .pipe(
        Effect.tap(([row]) => Effect.sync(() => killed += row!.count)),
        Effect.repeat({ schedule: Schedule.spaced("500 millis"), times: 39 })
      )
    return { what: `${killed} sessions terminated`, endedAt: now() }
  })
}

/** 300 idle connections are held, or as many of them as the server admits. */
const poolExhaustion: Scenario = {
  name: "chaos_pool_exhaustion",
  seconds: 20,
  inject: Effect.fnUntraced(function*() {
    const { url } = yield* Benchmark.Target
    const opened = yield* Effect.gen(function*() {
      const { reserve } = yield* SqlClient.SqlClient
      let opened = 0
      while (opened < 300 && (yield* Effect.option(reserve))._tag === "Some") opened++
      yield* seconds(20)
      return opened
    }).pipe(
      Effect.scoped,
      Effect.provide(Layer.fresh(PgClient.layer({ url, applicationName: "bench idle", maxConnections: 300 })))
    )
    return { what: `${opened} connections held`, endedAt: now() }
  })
}

export const scenarios: ReadonlyArray<Scenario> = [
  crashRecovery,
  postgresRestart,
  repeatedKills,
  backendKill,
  poolExhaustion
]
