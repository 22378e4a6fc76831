/** The library: one worker in this process, with default settings. */
import { PgClient } from "@effect/sql-pg"
import { Config, Deferred, Effect, Exit, Layer, ManagedRuntime, References, Scope, Stream } from "effect"
import { SqlClient } from "effect/sql"
import * as DiagnosticsChannel from "node:diagnostics_channel"
import type { Socket } from "node:net"
import { Orchestrator, type PartitionKey, PostgresStores, Projection } from "pupsourcing-orchestrator"
import { serve } from "../serve.ts"

/** What the projections do with an event. */
type Handler =
  | "nothing"
  | "upsert"
  | "upsertBatch"
  | { readonly waitMillis: number }
  /** Parks the events of the aggregates whose ids begin with this text. */
  | { readonly parks: string }

interface Options {
  readonly replicaSet: string
  readonly handler: Handler
  readonly projections?: number
  readonly batchSize?: number
  /** The types of the events that the projections select; absent for all. */
  readonly eventTypes?: ReadonlyArray<string>
  /** Default: the aggregate id. */
  readonly partitionBy?: PartitionKey.PartitionKey
}

type Selection = Pick<Options, "eventTypes" | "partitionBy">

/** One upsert for each event. */
const upsert = (name: string, selection: Selection) =>
  Projection.make(name, {
    ...selection,
    handle: Effect.fnUntraced(function*({ aggregateId }) {
      const sql = yield* SqlClient.SqlClient
      yield* sql`
        INSERT INTO counts VALUES (${name}, ${aggregateId}, 1)
        ON CONFLICT (run, id) DO UPDATE SET events = counts.events + 1`
    })
  })

/** One upsert for all events of a batch. */
const upsertBatch = (name: string, selection: Selection) =>
  Projection.make(name, {
    ...selection,
    handleBatch: Effect.fnUntraced(function*(batch) {
      const sql = yield* SqlClient.SqlClient
      const ids = batch.map(({ aggregateId }) => aggregateId)
      yield* sql`
        INSERT INTO counts
        SELECT ${name}::text, id, count(*) FROM unnest(${ids}::text[]) AS id GROUP BY id ORDER BY id
        ON CONFLICT (run, id) DO UPDATE SET events = counts.events + excluded.events`
    })
  })

const parking = (name: string, prefix: string, selection: Selection) =>
  Projection.make(name, {
    ...selection,
    onFailure: "park",
    handle: ({ aggregateId }) => aggregateId.startsWith(prefix) ? Effect.fail("parked") : Effect.void
  })

const projection = (
  name: string,
  { eventTypes, handler, partitionBy }: Selection & Pick<Options, "handler">
): Projection.Projection<unknown, SqlClient.SqlClient> => {
  const selection = {
    ...(eventTypes === undefined ? {} : { eventTypes }),
    ...(partitionBy === undefined ? {} : { partitionBy })
  }
  if (handler === "nothing") return Projection.make(name, { ...selection, handle: () => Effect.void })
  if (handler === "upsert") return upsert(name, selection)
  if (handler === "upsertBatch") return upsertBatch(name, selection)
  return "parks" in handler
    ? parking(name, handler.parks, selection)
    : Projection.make(name, { ...selection, handle: () => Effect.sleep(handler.waitMillis) })
}

/** The projections of a replica set: one has its name, several are numbered. */
const make = ({ batchSize, projections = 1, replicaSet, ...options }: Options) =>
  Orchestrator.make({
    replicaSet,
    batchSize,
    projections: projections === 1
      ? [projection(replicaSet, options)]
      : Array.from({ length: projections }, (_, index) => projection(`${replicaSet}_${index}`, options))
  })

/** Handles all events, and returns the number of transactions that this took. */
const catchUp = (options: Options) =>
  Effect.scoped(Effect.gen(function*() {
    const worker = yield* make(options)
    let batches = 0
    yield* worker.activity.pipe(
      Stream.runForEach((activity) =>
        Effect.sync(() => {
          if (activity._tag === "BatchCommitted") batches++
        })
      ),
      Effect.forkScoped({ startImmediately: true })
    )
    yield* worker.catchUp
    return batches
  })).pipe(Effect.provideService(References.MinimumLogLevel, logLevel(options)))

/** A worker logs each event that it parks as an error, which is what this handler is for. */
const logLevel = ({ handler }: Options) => typeof handler === "object" && "parks" in handler ? "Fatal" : "Warn"

/** The worker that runs until `stop`, and how many events it has committed. */
let running: { readonly scope: Scope.Closeable; events: number } | undefined

/** Starts the worker, and returns once it works on its part as one of `workers`. */
const start = Effect.fnUntraced(function*({ workers, ...options }: Options & { readonly workers: number }) {
  const scope = yield* Scope.make()
  const state = { scope, events: 0 }
  running = state
  const assigned = yield* Deferred.make<void, unknown>()
  yield* Effect.gen(function*() {
    const worker = yield* make(options)
    yield* worker.activity.pipe(
      Stream.runForEach((activity) => {
        if (activity._tag === "BatchCommitted") state.events += activity.events
        return activity._tag === "AssignmentReached" && activity.generation.members.length === workers
          ? Deferred.succeed(assigned, undefined)
          : Effect.void
      }),
      Effect.forkScoped({ startImmediately: true })
    )
    yield* worker.run.pipe(Effect.onError((cause) => Deferred.failCause(assigned, cause)), Effect.forkScoped)
  }).pipe(Scope.provide(scope))
  yield* Deferred.await(assigned)
})

const stop = Effect.suspend(() => running === undefined ? Effect.void : Scope.close(running.scope, Exit.void))

const sockets: Array<Socket> = []
DiagnosticsChannel.subscribe("net.client.socket", (message) => {
  sockets.push((message as { readonly socket: Socket }).socket)
})

/** What the process has done since it started. `Fleet.Progress` */
const progress = () => {
  const { system, user } = process.cpuUsage()
  return {
    events: running?.events ?? 0,
    cpuSeconds: (user + system) / 1e6,
    bytesReceived: sockets.reduce((sum, { bytesRead }) => sum + bytesRead, 0)
  }
}

const runtime = ManagedRuntime.make(Layer.mergeAll(
  PostgresStores.layer.pipe(Layer.provideMerge(
    PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL"), applicationName: Config.succeed("bench worker") })
  )),
  Layer.succeed(References.MinimumLogLevel, "Warn")
))

serve({
  catchUp: (options: Options) => runtime.runPromise(catchUp(options)),
  start: (options: Options & { readonly workers: number }) => runtime.runPromise(start(options)),
  progress: () => Promise.resolve(progress()),
  stop: () => runtime.runPromise(stop)
})
