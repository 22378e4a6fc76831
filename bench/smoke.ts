/**
 * `npm run bench:smoke`: the library's measures on this machine, in a minute or so. Ratios are taken inside one run; the
 * server has its default durability. `-- --json` prints an array of `{ name, value, unit, target, ok }`; `-- --record`
 * writes the table to docs/measurements.
 */
import { PgClient } from "@effect/sql-pg"
import { Deferred, Duration, Effect, Fiber, Layer, Redacted, References, Stream } from "effect"
import { SqlClient } from "effect/sql"
import { spawn } from "node:child_process"
import { cpus } from "node:os"
import { fileURLToPath } from "node:url"
import {
  type Activity,
  EventStore,
  HashRange,
  Migrations,
  Orchestrator,
  PostgresStores,
  Program,
  Projection
} from "pupsourcing-orchestrator"
import * as ExampleDatabase from "../src/testing/ExampleDatabase.ts"
import * as Measurement from "../src/testing/Measurement.ts"
import { atLeast, atMost, type Measure, median, percentile } from "./Measure.ts"
import { markdown } from "./Report.ts"

const json = process.argv.includes("--json")
const note = (text: string) => Effect.sync(() => json ? console.error(text) : console.log(text))

/** A client of the benchmark's own database. */
const client = (url: Redacted.Redacted) => PgClient.layer({ url, applicationName: "bench" })

/** Events that a catch-up has before it. */
const backlog = 500_000

/** Fills the events table the way 1,000 aggregates would, in one statement. */
const fill = Effect.fnUntraced(function*(count: number) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`
    INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type,
      event_version, payload)
    SELECT 'bench', 'Thing', 'thing-' || i % 1000, i / 1000 + 1, gen_random_uuid(), 'Happened', 1,
      convert_to(rpad('{"i":' || i || ',"pad":"', 58, 'x') || '"}', 'UTF8')
    FROM generate_series(0, ${count - 1}) AS i`
  yield* sql`VACUUM ANALYZE events`
})

const now = Effect.sync(() => performance.timeOrigin + performance.now())

/** The same driver in a bare loop: nothing but the reads of the same columns, at the batch size that suits it best. */
const floor = Effect.fnUntraced(function*(count: number) {
  const sql = yield* SqlClient.SqlClient
  const sizes = [100, 1000, 5000]
  const rates: Array<number> = []
  for (const size of sizes) {
    const startedAt = yield* now
    let after = 0n
    while (true) {
      const rows = yield* sql<{ readonly global_position: bigint }>`
        SELECT global_position, bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type,
          event_version, payload, trace_id, correlation_id, causation_id, metadata, created_at
        FROM events WHERE global_position > ${after} ORDER BY global_position LIMIT ${size}`
      const last = rows[rows.length - 1]
      if (last === undefined) break
      after = last.global_position
    }
    rates.push(count / (((yield* now) - startedAt) / 1000))
  }
  return Math.max(...rates)
})

const nothing = (name: string) => Projection.make(name, { handle: () => Effect.void })

/** Stores of their own for each worker of this process, as if it were a process. */
const stores = (url: Redacted.Redacted) => Layer.fresh(PostgresStores.layer).pipe(Layer.provideMerge(client(url)))

const quiet = Effect.provideService(References.MinimumLogLevel, "Warn")

const catchUp = Effect.fnUntraced(
  function*(_url: Redacted.Redacted, name: string, count: number, batchSize?: number) {
    const startedAt = yield* now
    const orchestrator = yield* Orchestrator.make({ replicaSet: name, projections: [nothing(name)], batchSize })
    yield* orchestrator.catchUp
    return count / (((yield* now) - startedAt) / 1000)
  },
  (self, url) => Effect.provide(self, stores(url)),
  quiet
)

/** One worker in this process, on a client and sessions of its own, as a process would have them. */
const worker = Effect.fnUntraced(
  function*(url: Redacted.Redacted, replicaSet: string, seen: (activity: Activity.Activity, at: number) => void) {
    const ready = yield* Deferred.make<void>()
    const fiber = yield* Effect.gen(function*() {
      const orchestrator = yield* Orchestrator.make({ replicaSet, projections: [nothing(replicaSet)] })
      yield* orchestrator.activity.pipe(
        Stream.runForEach((activity) =>
          Effect.flatMap(now, (at) => {
            seen(activity, at)
            return activity._tag === "AssignmentReached" ? Deferred.succeed(ready, undefined) : Effect.void
          })
        ),
        Effect.forkScoped
      )
      return yield* orchestrator.run
    }).pipe(Effect.scoped, Effect.provide(stores(url)), quiet, Effect.forkChild)
    yield* Effect.raceFirst(Deferred.await(ready), Fiber.join(fiber))
    return fiber
  }
)

/** Waits until every worker counted has reached its assignment of the newest generation; gives that moment. */
const reached = (
  log: ReadonlyArray<{ readonly worker: number; readonly activity: Activity.Activity; readonly at: number }>,
  since: number,
  workers: ReadonlyArray<number>
) =>
  Effect.gen(function*() {
    while (true) {
      const times = workers.map((worker) =>
        log.find((entry) =>
          entry.worker === worker && entry.at >= since && entry.activity._tag === "AssignmentReached" &&
          entry.activity.generation.members.length === workers.length
        )?.at
      )
      if (times.every((at) => at !== undefined)) return Math.max(...times as Array<number>)
      yield* Effect.sleep("2 millis")
    }
  }).pipe(Effect.timeout("10 seconds"))

/** Joins and leaves under load; and the longest pause of a range that stays. */
const handOver = Effect.fnUntraced(function*(url: Redacted.Redacted, rounds: number) {
  const set = "bench_handover"
  const log: Array<{ readonly worker: number; readonly activity: Activity.Activity; readonly at: number }> = []
  const see = (worker: number) => (activity: Activity.Activity, at: number) => {
    log.push({ worker, activity, at })
  }
  const joins: Array<number> = []
  const leaves: Array<number> = []
  const store = yield* EventStore.EventStore
  const load = yield* Effect.forever(
    Effect.andThen(
      Effect.suspend(() =>
        store.append([{
          boundedContext: "bench",
          aggregateType: "Load",
          aggregateId: `load-${Math.floor(performance.now()) % 500}`,
          eventType: "Happened",
          payload: {}
        }])
      ),
      Effect.sleep("5 millis")
    )
  ).pipe(Effect.forkChild)
  const first = yield* worker(url, set, see(0))
  const second = yield* worker(url, set, see(1))
  for (let round = 0; round < rounds; round++) {
    const id = round + 2
    const third = yield* worker(url, set, see(id))
    const registered = log.find((entry) => entry.worker === id && entry.activity._tag === "WorkerRegistered")!.at
    joins.push((yield* reached(log, registered, [0, 1, id])) - registered)
    const leaving = yield* now
    yield* Effect.forkChild(Fiber.interrupt(third))
    leaves.push((yield* reached(log, leaving, [0, 1])) - leaving)
    yield* Fiber.await(third)
  }
  // A range that stays is the same before and after: what lies between two of its batches is its pause.
  const pauses: Array<number> = []
  for (const worker of [0, 1]) {
    const batches = log.filter((entry) => entry.worker === worker && entry.activity._tag === "BatchCommitted")
    for (let index = 1; index < batches.length; index++) {
      const before = batches[index - 1]!
      const after = batches[index]!
      if (
        before.activity._tag === "BatchCommitted" && after.activity._tag === "BatchCommitted" &&
        HashRange.equals(before.activity.range, after.activity.range)
      ) pauses.push(after.at - before.at)
    }
  }
  yield* Fiber.interrupt(load)
  yield* Fiber.interrupt(first)
  yield* Fiber.interrupt(second)
  return { joins, leaves, pauses }
})

/** Append to committed in the read model, one at a time on an idle system. */
const latency = Effect.fnUntraced(function*(url: Redacted.Redacted, samples: number) {
  const set = "bench_latency"
  let committed: ((at: number) => void) | undefined
  const fiber = yield* worker(url, set, (activity, at) => {
    if (activity._tag === "BatchCommitted") committed?.(at)
  })
  const store = yield* EventStore.EventStore
  // What came before must be handled first.
  yield* Effect.sleep("1500 millis")
  const values: Array<number> = []
  for (let sample = 0; sample < samples; sample++) {
    const done = yield* Deferred.make<number>()
    committed = (at) => Deferred.doneUnsafe(done, Effect.succeed(at))
    const startedAt = yield* now
    yield* store.append([{
      boundedContext: "bench",
      aggregateType: "Latency",
      aggregateId: `latency-${sample}`,
      eventType: "Happened",
      payload: {}
    }])
    values.push((yield* Deferred.await(done)) - startedAt)
    yield* Effect.sleep("20 millis")
  }
  yield* Fiber.interrupt(fiber)
  return values
})

/** A real process, from its start to the first event handled; then killed, until this process works on everything. */
const processes = Effect.fnUntraced(function*(url: Redacted.Redacted, rounds: number) {
  const starts: Array<number> = []
  const takeovers: Array<number> = []
  const set = "bench_kill"
  const log: Array<{ readonly worker: number; readonly activity: Activity.Activity; readonly at: number }> = []
  const survivor = yield* worker(url, set, (activity, at) => log.push({ worker: 0, activity, at }))
  for (let round = 0; round < rounds; round++) {
    const spawnedAt = yield* now
    const told = new Map<string, number>()
    const child = spawn(process.execPath, [...process.execArgv, fileURLToPath(new URL("worker.ts", import.meta.url))], {
      env: { ...process.env, DATABASE_URL: Redacted.value(url), BENCH_REPLICA_SET: set },
      stdio: ["ignore", "pipe", "inherit"]
    })
    child.stdout.on("data", (chunk: Buffer) => {
      for (const line of chunk.toString().split("\n").filter((line) => line.startsWith("{"))) {
        const { at, what } = JSON.parse(line) as { what: string; at: number }
        if (!told.has(what)) told.set(what, at)
      }
    })
    const store = yield* EventStore.EventStore
    while (!told.has("BatchCommitted")) {
      yield* store.append(
        [{
          boundedContext: "bench",
          aggregateType: "Start",
          aggregateId: `start-${performance.now()}`,
          eventType: "Happened",
          payload: {}
        }]
      )
      yield* Effect.sleep("5 millis")
    }
    starts.push(told.get("BatchCommitted")! - spawnedAt)
    yield* Effect.sleep("200 millis")
    const killedAt = yield* now
    child.kill("SIGKILL")
    takeovers.push((yield* reached(log, killedAt, [0])) - killedAt)
  }
  yield* Fiber.interrupt(survivor)
  return { starts, takeovers }
})

const program = Effect.gen(function*() {
  const base = yield* ExampleDatabase.url
  const name = `bench_${process.pid}`
  yield* Effect.acquireUseRelease(
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      yield* sql`CREATE DATABASE ${sql(name)}`
    }).pipe(Effect.provide(client(base))),
    () =>
      Effect.gen(function*() {
        const given = new URL(Redacted.value(base))
        given.pathname = `/${name}`
        const url = Redacted.make(given.href)
        const measures: Array<Measure> = []

        yield* Effect.gen(function*() {
          const sql = yield* SqlClient.SqlClient
          const settings = yield* sql<{ readonly name: string; readonly setting: string }>`
            SELECT name, setting FROM pg_settings
            WHERE name IN ('server_version', 'fsync', 'synchronous_commit', 'full_page_writes', 'max_connections')
            ORDER BY name`
          yield* note(
            `${cpus().length} cores, Node ${process.versions.node}, ${
              settings.map(({ name, setting }) => `${name}=${setting}`).join(" ")
            }`
          )
          yield* Migrations.up
          yield* fill(backlog)

          yield* note(`Catching up with ${backlog} events of 60 bytes, beside the driver in a bare loop …`)
          const floors: Array<number> = []
          const rates: Array<number> = []
          const smallRates: Array<number> = []
          for (let round = 0; round < 3; round++) {
            floors.push(yield* floor(backlog))
            rates.push(yield* catchUp(url, `bench_catchup_${round}`, backlog))
            smallRates.push(yield* catchUp(url, `bench_small_batches_${round}`, backlog, 1000))
          }
          const ratios = rates.map((rate, round) => rate / floors[round]!)
          const batchRatios = rates.map((rate, round) => rate / smallRates[round]!)
          yield* note(
            `  ${Math.round(median(rates))} events/s, the bare loop ${Math.round(median(floors))} events/s`
          )
          measures.push(
            atLeast("catch-up, no-op handler, part of the bare driver's loop", median(ratios), "ratio", 0.25),
            atLeast("catch-up, batches of 5,000 events relative to 1,000", median(batchRatios), "ratio", 1)
          )
        }).pipe(Effect.provide(client(url)))

        yield* Effect.gen(function*() {
          yield* note("Appending to an idle system …")
          const values = yield* latency(url, 200)
          measures.push(atMost("append to committed in the read model, idle, p50", median(values), "ms", 10))
          yield* note(`  p50 ${median(values).toFixed(1)} ms, p99 ${percentile(values, 0.99).toFixed(1)} ms`)

          yield* note("Joining and leaving under load …")
          const { joins, leaves, pauses } = yield* handOver(url, 9)
          yield* note(
            `  join p50 ${median(joins).toFixed(0)} ms, max ${Math.max(...joins).toFixed(0)} ms; leave p50 ${
              median(leaves).toFixed(0)
            } ms, max ${Math.max(...leaves).toFixed(0)} ms`
          )
          measures.push(atMost("join until every range is worked on by its new owner, p50", median(joins), "ms", 150))
          measures.push(atMost("leave until every range is worked on by its new owner, p50", median(leaves), "ms", 150))
          measures.push(atMost("between two batches of a range that stays, p99", percentile(pauses, 0.99), "ms", 150))

          yield* note("Starting and killing worker processes …")
          const { starts, takeovers } = yield* processes(url, 5)
          measures.push(atMost("start of a worker process to its first handled event, p50", median(starts), "ms", 1000))
          measures.push(atMost("SIGKILL to takeover, p50", median(takeovers), "ms", 500))
        }).pipe(Effect.provide(stores(url)), Effect.scoped)

        const result = markdown({ text: "", measures })
        yield* Effect.sync(() => console.log(json ? JSON.stringify(measures, undefined, 2) : `\n${result}`))
        if (process.argv.includes("--record")) {
          yield* Measurement.record({
            page: "speed",
            title: "Speed",
            command: Measurement.commandOf("bench:smoke"),
            serverUrl: Redacted.value(base),
            result
          })
        }
        if (measures.some((measure) => !measure.ok)) process.exitCode = 1
      }),
    () =>
      // The measurements are valid even if the database remains.
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        yield* sql`DROP DATABASE ${sql(name)} WITH (FORCE)`
      }).pipe(Effect.provide(client(base)), Effect.timeout(Duration.seconds(10)), Effect.ignore)
  )
})

Program.runMain(program)
