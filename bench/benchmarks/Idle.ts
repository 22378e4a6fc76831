/**
 * What a worker costs that has nothing to do: one worker in a process of its own, at default settings, with no event and with a million of
 * them behind it. It is observed for half a minute after it has handled all events and the sessions of its start have ended.
 */
import { Console, Effect } from "effect"
import { SqlClient } from "effect/sql"
import * as Benchmark from "../Benchmark.ts"
import * as Database from "../hosts/Database.ts"
import * as Hosts from "../hosts/Hosts.ts"
import { now } from "../hosts/Messages.ts"
import { atMost, type Measure } from "../Measure.ts"
import * as ServerCpu from "../ServerCpu.ts"

const seconds = 30
const lengths = [0, 1_000_000]
const settling = "5 seconds"

/** The sessions of the worker's process: those of the library are named after it, and the pool by `program.ts`. */
const sessions = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const rows = yield* sql<{ readonly pid: number; readonly isPool: boolean }>`
    SELECT pid, application_name = 'bench pool' AS "isPool" FROM pg_stat_activity
    WHERE datname = current_database() AND (application_name = 'bench pool' OR application_name LIKE 'pupsourcing-orchestrator %')`
  return { pids: rows.map(({ pid }) => pid), own: rows.filter(({ isPool }) => !isPool).length }
})

/** The transaction id that the server assigns next. Unlike `pg_current_xact_id`, this does not assign one. */
const nextTransactionId = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ readonly id: number }>`
    SELECT pg_snapshot_xmax(pg_current_snapshot())::text::float8 AS id`
  return row!.id
})

/** How many transaction ids ago the oldest snapshot of the other sessions was taken. It holds back vacuum. */
const snapshotAge = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ readonly age: number }>`
    SELECT coalesce(max(age(backend_xmin)), 0)::float8 AS age FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()`
  return row!.age
})

/** The size of a table after all of its rows were deleted and vacuumed. It is not empty if a session could still read the rows. */
const deletedBytes = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`CREATE TABLE deleted AS SELECT i FROM generate_series(1, 10000) AS i`
  yield* sql`DELETE FROM deleted`
  yield* sql`VACUUM deleted`
  const [row] = yield* sql<{ readonly bytes: number }>`SELECT pg_relation_size('deleted')::float8 AS bytes`
  yield* sql`DROP TABLE deleted`
  return row!.bytes
})

/** The counts so far. The statements are read last before an interval and first after it, so that only one of these reads counts. */
const before = Effect.fnUntraced(function*(host: Hosts.Host) {
  const { own, pids } = yield* sessions
  const { embedded } = yield* Benchmark.Target
  const backends = () => embedded === undefined ? Number.NaN : ServerCpu.ofProcesses(pids)
  const ids = yield* nextTransactionId
  const counts = { at: now(), cpu: (yield* host.usage).cpu / 1000, backendCpu: backends(), ids }
  return { own, backends, ...counts, statements: yield* Database.statements }
})

/** What autovacuum would otherwise do while the worker is observed, with transaction ids of its own. */
const vacuum = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`VACUUM ANALYZE`)

/** Starts the worker, waits until it has nothing to do, and observes it. */
const observe = Effect.fnUntraced(function*(length: number) {
  const { url } = yield* Benchmark.Target
  yield* Console.error(`  ${length} events …`)
  const hosts = Hosts.make(url)
  const host = yield* hosts.spawn()
  const since = now()
  Hosts.startWorker(host, { worker: "w0", replicaSet: `idle_${length}` })
  yield* Hosts.reached(hosts, since, ["w0"])
  yield* hosts.waitUntil(
    "the worker has handled all events",
    () => length === 0 ? true : hosts.entries.find(({ position = 0 }) => position >= length)
  )
  yield* vacuum
  yield* Effect.sleep(settling)

  const start = yield* before(host)
  const ages = yield* Effect.forEach(
    Array.from({ length: seconds }),
    () => Effect.andThen(Effect.sleep("1 second"), snapshotAge)
  )
  const statements = (yield* Database.statements) - start.statements - ages.length - 1
  const ids = (yield* nextTransactionId) - start.ids
  const cpu = (yield* host.usage).cpu / 1000 - start.cpu
  const backendCpu = start.backends() - start.backendCpu
  const took = (now() - start.at) / 1000
  return {
    length,
    statements: statements / took,
    ids: ids / took * 60,
    cpu: cpu / took * 100,
    backendCpu: backendCpu / took * 100,
    own: start.own,
    age: Math.max(...ages),
    deleted: yield* deletedBytes
  }
}, Effect.scoped)

type Observed = Effect.Success<ReturnType<typeof observe>>

const measure = Effect.gen(function*() {
  yield* Database.countStatements
  return yield* Effect.forEach(
    lengths,
    (length) => Effect.andThen(length === 0 ? Effect.void : Database.append({ events: length }), observe(length))
  )
})

const evaluate = (observed: ReadonlyArray<Observed>): Benchmark.Result => {
  const most = (of: (observed: Observed) => number) => Math.max(...observed.map(of))
  const cpu = most(({ backendCpu, cpu }) => cpu + backendCpu)
  const cpuMeasures: ReadonlyArray<Measure> = Number.isNaN(cpu)
    ? []
    : [atMost("CPU of the worker and its server processes", cpu, "% of a core", 0.5)]
  return {
    text:
      `One worker in a process of its own, at default settings, observed for ${seconds} s: before any event, and after ${
        lengths.at(-1)
      } ` +
      "handled events. The measures are the larger value of both. Transaction ids are those of the whole server.",
    measures: [
      atMost("statements", most(({ statements }) => statements), "statements/s", 1),
      atMost("transaction ids", most(({ ids }) => ids), "per minute", 0),
      ...cpuMeasures,
      atMost("connections besides the pool", most(({ own }) => own), "connections", 4),
      atMost("age of the oldest snapshot", most(({ age }) => age), "transaction ids", 0),
      atMost("deleted rows that VACUUM could not remove", most(({ deleted }) => deleted), "bytes", 0)
    ],
    tables: [{
      title: "By length of the stream",
      header: [
        "events",
        "statements/s",
        "transaction ids per minute",
        "CPU of the worker, %",
        "CPU of its server processes, %",
        "connections besides the pool",
        "age of the oldest snapshot"
      ],
      rows: observed.map(({ age, backendCpu, cpu, ids, length, own, statements }) => [
        length,
        statements.toFixed(2),
        ids.toFixed(1),
        cpu.toFixed(2),
        Number.isNaN(backendCpu) ? "unknown" : backendCpu.toFixed(2),
        own,
        age
      ])
    }]
  }
}

export const idle = Benchmark.make({
  name: "idle",
  title: "An idle worker",
  summary: "What a worker costs that has nothing to do, with no event and with a million of them behind it.",
  run: Effect.map(measure, evaluate)
})
