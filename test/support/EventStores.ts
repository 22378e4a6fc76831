/** The event store on PostgreSQL with the services that it depends on, each on its own database. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as SqlClient from "effect/sql/SqlClient"
import * as Listener from "../../src/layers/postgres/connection/Listener.ts"
import type { Database } from "../../src/layers/postgres/Database.ts"
import * as DatabaseLive from "../../src/layers/postgres/DatabaseLive.ts"
import * as EventStorePostgres from "../../src/layers/postgres/events/EventStorePostgres.ts"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import type { NewEvent } from "../../src/schema/Event.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as Tests from "./Tests.ts"

/** An event of the stream `test`, `Test`, `aggregateId`. */
export const event = (aggregateId: string, rest: Partial<NewEvent> = {}): NewEvent => ({
  boundedContext: "test",
  aggregateType: "Test",
  aggregateId,
  eventType: "Happened",
  payload: {},
  ...rest
})

/** How the stores differ from the default ones. */
export interface Options extends DatabaseLive.Options, PostgresTest.Options {
  /** Changes the tables after the migrations and before the stores open them. */
  readonly alter?: ((sql: SqlClient.SqlClient) => Effect.Effect<unknown, unknown>) | undefined
}

export type Provided =
  | PostgresTest.TestDatabase
  | PgClient.PgClient
  | SqlClient.SqlClient
  | Database
  | Listener.Listener
  | EventStore

const altered = (options: Options) =>
  Layer.effectDiscard(Effect.andThen(
    Migrations.upWith(options),
    Effect.flatMap(SqlClient.SqlClient, (sql) => options.alter?.(sql) ?? Effect.void)
  ))

/** A migrated database. */
export const database = (options: Options = {}) =>
  altered(options).pipe(Layer.provideMerge(PostgresTest.layerWith(options)))

type Client = PostgresTest.TestDatabase | PgClient.PgClient | SqlClient.SqlClient

/** A test in real time on such a database. */
export const test = Tests.live(
  database() as Layer.Layer<Client>,
  Effect.all({ sql: PgClient.PgClient, url: Tests.url })
)

/** The stores over the provided client, as another process would open them. */
export const stores = (options: DatabaseLive.Options = {}) =>
  Layer.fresh(
    Layer.effect(EventStore)(EventStorePostgres.make).pipe(
      Layer.provideMerge(Layer.effect(Listener.Listener)(Listener.make)),
      Layer.provideMerge(DatabaseLive.layerWith(options))
    )
  )

/** A store on its own database. */
export const layerWith = (options: Options = {}): Layer.Layer<Provided, unknown> =>
  stores(options).pipe(Layer.provideMerge(database(options)))

/** A test in real time with a store on its own database; the options are those of {@link layerWith}. */
export const storeTestOn = (serverUrl: Effect.Effect<string | undefined>) =>
  Tests.register(
    Effect.all({ sql: PgClient.PgClient, store: EventStore, url: Tests.url }),
    (name, steps: Effect.Effect<void, unknown, Provided | Scope.Scope>, options: Options = {}) =>
      it.live(name, () =>
        Effect.flatMap(serverUrl, (serverUrl) =>
          Effect.provide(
            Tests.withChildren(Effect.scoped(steps)),
            layerWith({ ...options, serverUrl }) as Layer.Layer<Provided>
          )))
  )

/** The same on the run's own server. */
export const storeTest = storeTestOn(Effect.undefined)
