/**
 * A process of a benchmark: runs any number of workers over one set of stores, or appends events, as the benchmark commands
 * over the channel of `child_process.fork`. It ends with SIGTERM, or with the benchmark.
 */
import { PgClient } from "@effect/sql-pg"
import { Cause, Config, Effect, Fiber, FiberMap, Layer, Queue, References, Schedule, Stream } from "effect"
import { SqlClient } from "effect/sql"
import * as Fs from "node:fs"
import { type Activity, EventStore, Orchestrator, PostgresStores, Program, Projection } from "pupsourcing-orchestrator"
import type { Append, Appended, Command, Entry, Handler, Report, StartWorker } from "./Messages.ts"
import { now } from "./Messages.ts"

const report = (report: Report): void => {
  process.send?.(report)
}

/** The activities that a benchmark may need, in a form that can be sent. */
const toEntry = (worker: string, activity: Activity.Activity): Omit<Entry, "host"> | undefined => {
  const entry = { tag: activity._tag, worker, at: now() }
  switch (activity._tag) {
    case "WorkerRegistered":
    case "WorkerEvicted":
    case "Missed":
      return entry
    case "AssignmentReached":
      return { ...entry, members: activity.generation.members.length, partition: activity.partition }
    case "RangeClaimed":
    case "RangeStopped":
    case "CaughtUp":
      return {
        ...entry,
        projection: activity.projection,
        range: activity.range,
        position: Number(activity.position)
      }
    case "BatchCommitted":
      return {
        ...entry,
        projection: activity.projection,
        range: activity.range,
        position: Number(activity.position),
        events: activity.events
      }
    default:
      return undefined
  }
}

type Start = Pick<StartWorker, "startFrom">

/** One upsert for each event, into the row of its aggregate. */
const upsert = (name: string, start: Start) =>
  Projection.make(name, {
    ...start,
    handle: Effect.fnUntraced(function*({ aggregateId, globalPosition }) {
      const sql = yield* SqlClient.SqlClient
      yield* sql`
        INSERT INTO read_model VALUES (${name}, ${aggregateId}, 1, ${globalPosition})
        ON CONFLICT (projection, id) DO UPDATE SET events = read_model.events + 1, position = excluded.position`
    })
  })

const makers: Record<Handler, (name: string, start: Start) => Projection.Projection<unknown, SqlClient.SqlClient>> = {
  nothing: (name, start) => Projection.make(name, { ...start, handle: () => Effect.void }),
  upsert
}

const runWorker = Effect.fnUntraced(function*({ handler, projections, replicaSet, startFrom, worker }: StartWorker) {
  const orchestrator = yield* Orchestrator.make({
    replicaSet,
    workerId: worker,
    projections: projections.map((name) => makers[handler](name, { startFrom }))
  })
  const reporting = yield* orchestrator.activity.pipe(
    Stream.takeUntil(({ _tag }) => _tag === "WorkerStopped"),
    Stream.runForEach((activity) =>
      Effect.sync(() => {
        const entry = toEntry(worker, activity)
        if (entry !== undefined) report({ kind: "activity", entry })
      })
    ),
    Effect.forkScoped
  )
  // Its last commits are reported, too. The limit is for a worker whose last entries were dropped.
  return yield* orchestrator.run.pipe(
    Effect.ensuring(Effect.ignore(Effect.timeout(Fiber.await(reporting), "1 second")))
  )
}, Effect.scoped)

/** Appends one event. The id makes a retry harmless, also after an answer that was lost. */
const appendOne = Effect.fnUntraced(function*(aggregate: number) {
  const store = yield* EventStore.EventStore
  const event = {
    eventId: globalThis.crypto.randomUUID(),
    boundedContext: "bench",
    aggregateType: "Thing",
    aggregateId: `thing-${aggregate}`,
    eventType: "Happened",
    payload: { aggregate }
  }
  const { positions } = yield* store.append([event], { onDuplicate: "return" }).pipe(
    Effect.retry({ schedule: Schedule.spaced("20 millis"), while: ({ _tag }) => _tag === "StoreError" })
  )
  return Number(positions[0])
})

/** Every writer has its own schedule, and sends its next event when the previous one is answered and its time has come. */
const append = Effect.fnUntraced(function*({ aggregates, rate, seconds, writers }: Append) {
  const began = now() + 20
  const total = Math.round(rate * seconds)
  const times = () => Array.from({ length: total }, () => 0)
  const appended = { due: times(), sent: times(), answered: times(), positions: times() } satisfies Appended
  yield* Effect.forEach(
    Array.from({ length: writers }, (_, writer) => writer),
    Effect.fnUntraced(function*(writer) {
      for (let index = writer; index < total; index += writers) {
        const due = began + index / rate * 1000
        yield* Effect.sleep(Math.max(0, due - now()))
        appended.due[index] = due
        appended.sent[index] = now()
        appended.positions[index] = yield* appendOne(index % aggregates)
        appended.answered[index] = now()
      }
    }),
    { concurrency: "unbounded", discard: true }
  )
  return appended
})

/** On Linux, `resourceUsage().maxRSS` includes the memory of the parent process at the time of the fork. */
const peakRss = (): number => {
  const kilobytes = Fs.existsSync("/proc/self/status")
    ? Number(/^VmHWM:\s+(\d+) kB$/m.exec(Fs.readFileSync("/proc/self/status", "utf8"))?.[1])
    : process.resourceUsage().maxRSS
  return kilobytes * 1024
}

const usage = (): Report => {
  const { system, user } = process.cpuUsage()
  return {
    kind: "usage",
    usage: {
      at: now(),
      cpu: (system + user) / 1000,
      rss: process.memoryUsage.rss(),
      peakRss: peakRss()
    }
  }
}

const program = Effect.gen(function*() {
  const fibers = yield* FiberMap.make<string>()
  const commands = yield* Queue.unbounded<Command>()
  process.on("message", (command) => Queue.offerUnsafe(commands, command as Command))
  const reporting = <A, E, R>(self: Effect.Effect<A, E, R>) =>
    Effect.catchCause(self, (cause) =>
      Effect.sync(() => {
        if (!Cause.hasInterruptsOnly(cause)) report({ kind: "failed", problem: Cause.pretty(cause) })
      }))

  report({ kind: "ready", at: now() })
  return yield* Effect.forever(Effect.flatMap(Queue.take(commands), (command) => {
    switch (command.do) {
      case "start":
        return FiberMap.run(fibers, command.worker, reporting(runWorker(command)))
      case "stop":
        return FiberMap.remove(fibers, command.worker).pipe(
          Effect.andThen(Effect.sync(() => report({ kind: "stopped", worker: command.worker }))),
          Effect.forkChild
        )
      case "append":
        return append(command).pipe(
          Effect.map((appended) => report({ kind: "appended", appended })),
          reporting,
          Effect.forkChild
        )
      case "usage":
        return Effect.sync(() => report(usage()))
    }
  }))
})

// The end of the benchmark, however it ends.
process.on("disconnect", () => process.exit())
// The open channel would keep a process alive whose workers have left.
process.once("SIGTERM", () => process.channel?.unref())

Program.runMain(program.pipe(
  Effect.scoped,
  Effect.provide(PostgresStores.layer.pipe(
    Layer.provideMerge(PgClient.layerConfig({
      url: Config.Redacted("DATABASE_URL"),
      applicationName: Config.String("BENCH_APPLICATION"),
      maxConnections: Config.Int("BENCH_CONNECTIONS").pipe(Config.withDefault(10))
    }))
  )),
  Effect.provideService(References.MinimumLogLevel, "Error")
))
