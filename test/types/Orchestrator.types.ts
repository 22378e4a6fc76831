/**
 * Code that must or must not compile: checked by `tsc`, never run. A line marked with `@ts-expect-error` that compiles
 * is an error.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import {
  type Errors,
  type Event,
  EventStore,
  MemoryStores,
  Orchestrator,
  PostgresStores,
  Projection,
  type Projections,
  type Settings,
  type Stores
} from "pupsourcing-orchestrator"

type Equals<A, B> = (<T>() => T extends A ? 1 : 2) extends (<T>() => T extends B ? 1 : 2) ? true : false
const holds = <_ extends true>(): void => {}

class Rates extends Context.Service<Rates, { readonly of: (country: string) => number }>()("test/Rates") {}
class Mailer extends Context.Service<Mailer, { readonly send: Effect.Effect<void> }>()("test/Mailer") {}
class NoRate extends Data.TaggedError("NoRate")<{}> {}

const plain = Projection.make("plain", { handle: () => Effect.void })
const writes = Projection.make("writes", {
  handle: Effect.fnUntraced(function*(event) {
    const sql = yield* SqlClient.SqlClient
    yield* sql`INSERT INTO t (id) VALUES (${event.aggregateId})`
  })
})
const rated = Projection.make("rated", {
  handle: Effect.fnUntraced(function*() {
    const rates = yield* Rates
    if (rates.of("CH") === 0) return yield* new NoRate()
    yield* Effect.acquireRelease(Effect.void, () => Effect.void)
  })
})
const mails = Projection.make("mails", { handle: () => Effect.flatMap(Mailer, ({ send }) => send) })

// A projection has the error and service types of its handler; each batch provides the Scope.
holds<Equals<Projection.Error<typeof plain>, never>>()
holds<Equals<Projection.Services<typeof plain>, never>>()
holds<Equals<Projection.Error<typeof writes>, SqlError.SqlError>>()
holds<Equals<Projection.Services<typeof writes>, SqlClient.SqlClient>>()
holds<Equals<Projection.Error<typeof rated>, NoRate>>()
holds<Equals<Projection.Services<typeof rated>, Rates>>()

// So does one with a handler of batches. `failAt` fails with the error itself; a batch is never empty.
const batched = Projection.make("batched", {
  handleBatch: Effect.fnUntraced(function*(events) {
    const rates = yield* Rates
    holds<Equals<(typeof events)[0], Event.Event>>()
    if (rates.of("CH") === 0) return yield* Projection.failAt(events[0], new NoRate())
    yield* Effect.acquireRelease(Effect.void, () => Effect.void)
  })
})
holds<Equals<typeof batched, Projection.Projection<NoRate, Rates | Scope.Scope>>>()
holds<Equals<Projection.Services<typeof batched>, Rates>>()

// For a tuple of projections, the layer requires the services of each, and does not fail with their errors.
const many = Orchestrator.layer({ replicaSet: "main", projections: [plain, writes, rated, mails] })
holds<
  Equals<
    typeof many,
    Layer.Layer<
      Orchestrator.Orchestrator,
      Orchestrator.SetupError,
      EventStore.EventStore | Projections.Projections | Stores.Stores | SqlClient.SqlClient | Rates | Mailer
    >
  >
>()
holds<
  Equals<Orchestrator.SetupError, Errors.DuplicateProjection | Errors.ForeignSqlClient | Errors.InvalidSettings>
>()
const made = Orchestrator.make({ replicaSet: "main", projections: [rated, mails] })
holds<
  Equals<Effect.Services<typeof made>, EventStore.EventStore | Projections.Projections | Stores.Stores | Rates | Mailer>
>()
holds<Equals<Effect.Error<typeof made>, Orchestrator.SetupError>>()

// The error type of run.
holds<
  Equals<
    Effect.Error<typeof Orchestrator.run>,
    | Errors.AlreadyRunning
    | Errors.CheckpointAheadOfEvents
    | Errors.CoordinationTimeout
    | Errors.EventVersionTooNew
    | Errors.FilterChanged
    | Errors.InvalidSettings
    | Errors.OrderingChanged
    | Errors.PartitionKeyChanged
    | Errors.ProjectionHalted
    | Errors.ProjectionInOtherReplicaSet
    | Errors.StoreError
    | Errors.WorkerIdInUse
    | Errors.WorkerReplaced
  >
>()
holds<Equals<Effect.Success<typeof Orchestrator.run>, never>>()

// A StoreError is caught by its reason, or as a whole.
const page = Effect.flatMap(EventStore.EventStore, (store) => store.read({ after: 0n }))
const unlessUnavailable = Effect.catchReason(page, "StoreError", "DatabaseUnavailable", ({ condition }) => {
  holds<Equals<typeof condition, Errors.DatabaseUnavailable["condition"]>>()
  return Effect.succeed(undefined)
})
holds<Equals<Effect.Error<typeof unlessUnavailable>, Effect.Error<typeof page>>>()
const caught = Effect.catchTag(page, "StoreError", ({ isRetryable }) => Effect.succeed(isRetryable))
holds<Equals<Effect.Error<typeof caught>, Errors.CheckpointAheadOfEvents | Errors.EventError>>()
const unwrapped = Effect.unwrapReason(page, "StoreError")
holds<
  Equals<
    Effect.Error<typeof unwrapped>,
    Errors.CheckpointAheadOfEvents | Errors.EventError | Errors.StoreErrorReason
  >
>()
// @ts-expect-error TablesMissing is an error of its own, not a reason of StoreError
Effect.catchReason(page, "StoreError", "TablesMissing", () => Effect.void)
holds<Equals<Effect.Services<typeof Orchestrator.run>, Orchestrator.Orchestrator>>()
holds<Equals<Effect.Success<typeof Orchestrator.catchUp>, void>>()

// All services are provided.
const inMemory = Orchestrator.layer({ replicaSet: "main", projections: [rated] }).pipe(
  Layer.provide(MemoryStores.layer),
  Layer.provide(Layer.succeed(Rates, { of: () => 1 }))
)
export const runs = () => Effect.runFork(Effect.provide(Orchestrator.run, inMemory))

// A handler's service is missing.
const withoutRates = Orchestrator.layer({ replicaSet: "main", projections: [plain, rated] }).pipe(
  Layer.provide(MemoryStores.layer)
)
// @ts-expect-error Rates is missing
export const needsRates = () => Effect.runFork(Effect.provide(Orchestrator.run, withoutRates))

// The handlers' SqlClient is missing.
const withoutClient = Orchestrator.layer({ replicaSet: "main", projections: [writes] }).pipe(
  Layer.provide(MemoryStores.layer)
)
// @ts-expect-error SqlClient is missing
export const needsClient = () => Effect.runFork(Effect.provide(Orchestrator.run, withoutClient))

// The stores' PgClient is missing; then the stores themselves.
const withoutPgClient = Orchestrator.layer({ replicaSet: "main", projections: [plain] }).pipe(
  Layer.provide(PostgresStores.layer)
)
// @ts-expect-error PgClient is missing
export const needsPgClient = () => Effect.runFork(Effect.provide(Orchestrator.run, withoutPgClient))
const withoutStores = Orchestrator.layer({ replicaSet: "main", projections: [plain] })
// @ts-expect-error the stores are missing
export const needsStores = () => Effect.runFork(Effect.provide(Orchestrator.run, withoutStores))

// One PgClient serves stores and handlers.
const onPostgres = Orchestrator.layer({ replicaSet: "main", projections: [writes] }).pipe(
  Layer.provide(PostgresStores.layer),
  Layer.provideMerge(PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL") }))
)
export const runsOnPostgres = () => Effect.runFork(Effect.provide(Orchestrator.run, onPostgres))

// Any setting may be a Config.
const configured = Orchestrator.layerConfig({
  replicaSet: Config.String("REPLICA_SET"),
  heartbeatInterval: Config.Duration("HEARTBEAT"),
  staleWorkerTimeout: "30 seconds",
  coordinationTimeout: Config.succeed<Duration.Input>("1 minute"),
  batchSize: Config.Int("BATCH_SIZE"),
  batchBytes: 1024,
  pollInterval: Config.Duration("POLL"),
  registrationWindow: Config.Duration("WINDOW"),
  drainTimeout: Config.Duration("DRAIN"),
  workerId: Config.String("POD_NAME"),
  projections: [rated]
})
holds<
  Equals<
    typeof configured,
    Layer.Layer<
      Orchestrator.Orchestrator,
      Orchestrator.SetupError | Config.ConfigError,
      EventStore.EventStore | Projections.Projections | Stores.Stores | Rates
    >
  >
>()
holds<Equals<typeof Settings.config, Config.Config<Settings.Input>>>()

// All settings come from the environment.
const fromEnv = Orchestrator.layerFromEnv({ projections: [rated] })
holds<Equals<typeof fromEnv, typeof configured>>()

// Invalid and missing settings.
// @ts-expect-error the setting has another type
Orchestrator.layerConfig({ replicaSet: "main", batchSize: Config.String("BATCH_SIZE"), projections: [plain] })
// @ts-expect-error the replica set is required
Orchestrator.layer({ projections: [plain] })
// @ts-expect-error the projections are required
Orchestrator.layer({ replicaSet: "main" })
// @ts-expect-error there is no such setting
Orchestrator.layer({ replicaSet: "main", projections: [plain], heartBeatInterval: "1 second" })
// @ts-expect-error the handler is required
Projection.make("none", { aggregateTypes: ["User"] })
// @ts-expect-error both handlers
Projection.make("both", { handle: () => Effect.void, handleBatch: () => Effect.void })
// @ts-expect-error an event of a batch is not a batch
Projection.make("event", { handleBatch: (events) => Effect.log(events.aggregateId) })
// @ts-expect-error the result is not an Effect
Projection.make("result", { handleBatch: (events) => events.map(() => Effect.void) })
// @ts-expect-error a window without batches
Projection.make("window", { handle: () => Effect.void, batchWindow: { time: "1 second" } })
// @ts-expect-error a window without a time
Projection.make("window", { handleBatch: () => Effect.void, batchWindow: { events: 10 } })
// @ts-expect-error no such start
Projection.make("start", { startFrom: "yesterday", handle: () => Effect.void })
