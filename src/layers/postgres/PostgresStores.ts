/**
 * The stores on PostgreSQL.
 *
 * @since 0.1.0
 */
import { PgClient } from "@effect/sql-pg/PgClient"
import type * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { StoresError } from "../../schema/Errors.ts"
import { CheckpointStore } from "../../services/CheckpointStore.ts"
import * as ConfigOr from "../../services/ConfigOr.ts"
import { CoordinationStore } from "../../services/CoordinationStore.ts"
import { EventStore } from "../../services/EventStore.ts"
import { layerPer } from "../../services/LayerPer.ts"
import { Membership } from "../../services/Membership.ts"
import { ParkedEvents } from "../../services/ParkedEvents.ts"
import { Projections } from "../../services/Projections.ts"
import * as Settings from "../../services/Settings.ts"
import type { Stores } from "../../services/Stores.ts"
import * as Listener from "./connection/Listener.ts"
import * as CoordinationSession from "./coordination/CoordinationSession.ts"
import * as CoordinationStorePostgres from "./coordination/CoordinationStorePostgres.ts"
import * as MembershipPostgres from "./coordination/MembershipPostgres.ts"
import * as Presence from "./coordination/Presence.ts"
import { Database } from "./Database.ts"
import * as DatabaseLive from "./DatabaseLive.ts"
import * as EventStorePostgres from "./events/EventStorePostgres.ts"
import * as Migrations from "./Migrations.ts"
import * as CheckpointStorePostgres from "./progress/CheckpointStorePostgres.ts"
import * as ParkedEventsPostgres from "./progress/ParkedEventsPostgres.ts"
import * as ProjectionsPostgres from "./status/ProjectionsPostgres.ts"

/**
 * The names of the tables and their schema, where the library's own sessions connect, and whether LISTEN and presence
 * are used. Without LISTEN, changes are found within `pollInterval`; without presence, a death is detected after
 * `staleWorkerTimeout`.
 *
 * @category options
 * @since 0.1.0
 */
export type { Options } from "./Database.ts"

/**
 * The stores over a database that the given layer opens.
 *
 * @internal
 */
export const layerOver = <E, R>(
  database: Layer.Layer<Database, E, R>
): Layer.Layer<EventStore | Projections | Stores, E, R> =>
  // New layers on each call: constants would be shared with the stores of another database.
  Layer.mergeAll(
    Layer.effect(CheckpointStore)(CheckpointStorePostgres.make),
    Layer.effect(EventStore)(EventStorePostgres.make),
    Layer.effect(ParkedEvents)(ParkedEventsPostgres.make),
    Layer.effect(Projections)(ProjectionsPostgres.make),
    Layer.mergeAll(
      Layer.effect(CoordinationStore)(CoordinationStorePostgres.make),
      Layer.effect(Membership)(MembershipPostgres.make)
    ).pipe(
      Layer.provide(Layer.effect(CoordinationSession.CoordinationSession)(CoordinationSession.make)),
      Layer.provide(Layer.effect(Presence.Presence)(Presence.make))
    )
  ).pipe(
    Layer.provide(Layer.effect(Listener.Listener)(Listener.make)),
    Layer.provide(database)
  )

/**
 * The stores with custom names or options. Bind the result to a constant, because each call returns a new layer, which
 * opens its own sessions. See `layer` for the memoization.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = (
  options: DatabaseLive.Options
): Layer.Layer<EventStore | Projections | Stores, StoresError, PgClient> =>
  layerPer(PgClient, () => layerOver(DatabaseLive.layerWith(options)))

/**
 * Like `layerWith`, with any option given as a `Config`: `layerConfig({ directUrl: Config.Redacted("DIRECT_URL") })`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = (
  options: { readonly [K in keyof DatabaseLive.Options]: ConfigOr.ConfigOr<DatabaseLive.Options[K]> }
): Layer.Layer<EventStore | Projections | Stores, StoresError | Config.ConfigError, PgClient> => {
  const config = ConfigOr.all<DatabaseLive.Options>(options)
  return layerPer(PgClient, () => layerOver(Layer.effect(Database)(Effect.flatMap(config, DatabaseLive.make))))
}

/**
 * The stores on the tables with the default names. Requires a `PgClient`, through which handlers write as well, and
 * opens a few sessions of its own beside that client's pool: reading, coordination, and listening with presence.
 *
 * **Details**
 *
 * The layer is memoized per client: if a layer graph, or nested `Effect.provide`s, use the same client, they share one
 * set of stores; stores over another client are always built separately.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<EventStore | Projections | Stores, StoresError, PgClient> = layerWith({})

/**
 * `layer`, with `directUrl` from the environment: `ORCHESTRATOR_DIRECT_URL`, if it is set.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerFromEnv: Layer.Layer<EventStore | Projections | Stores, StoresError | Config.ConfigError, PgClient> =
  layerConfig({
    directUrl: Settings.directUrl
  })

/**
 * Applies the migrations while the layer is built. Provide it to `layerWith` with the same names, in a program that
 * migrates its own database. Bind the result to a constant, because each call returns a new layer.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerMigrationsWith = (
  options: Migrations.Options
): Layer.Layer<never, Migrations.MigrationError, PgClient> => Migrations.layerWith(options)

/**
 * `layerMigrationsWith` for the default names. Provide it to `layer`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerMigrations: Layer.Layer<never, Migrations.MigrationError, PgClient> = Migrations.layer
