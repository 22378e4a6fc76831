/** The stores of checkpoints, membership and coordination on their own database, with access to the layers below them. */
import type * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import type * as SqlClient from "effect/sql/SqlClient"
import * as Listener from "../../src/layers/postgres/connection/Listener.ts"
import * as CoordinationSession from "../../src/layers/postgres/coordination/CoordinationSession.ts"
import * as CoordinationStorePostgres from "../../src/layers/postgres/coordination/CoordinationStorePostgres.ts"
import * as MembershipPostgres from "../../src/layers/postgres/coordination/MembershipPostgres.ts"
import * as Presence from "../../src/layers/postgres/coordination/Presence.ts"
import { Database } from "../../src/layers/postgres/Database.ts"
import * as DatabaseLive from "../../src/layers/postgres/DatabaseLive.ts"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as CheckpointStorePostgres from "../../src/layers/postgres/progress/CheckpointStorePostgres.ts"
import * as ParkedEventsPostgres from "../../src/layers/postgres/progress/ParkedEventsPostgres.ts"
import type { Held } from "../../src/schema/Checkpoint.ts"
import type { Generation } from "../../src/schema/Generation.ts"
import type { Plan, Request } from "../../src/schema/Plan.ts"
import { display, type Registration } from "../../src/schema/Worker.ts"
import { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import { CoordinationStore } from "../../src/services/CoordinationStore.ts"
import { Membership } from "../../src/services/Membership.ts"
import { ParkedEvents } from "../../src/services/ParkedEvents.ts"
import type { Stores } from "../../src/services/Stores.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as Members from "../suites/Members.ts"

export type Services = CoordinationSession.CoordinationSession | Database | Stores

/** The stores of checkpoints, coordination and membership, with the session that the last two share. */
export const layer: Layer.Layer<Exclude<Services, Database>, never, Database | Listener.Listener> = Layer.mergeAll(
  Layer.effect(CheckpointStore)(CheckpointStorePostgres.make),
  Layer.effect(CoordinationStore)(CoordinationStorePostgres.make),
  Layer.effect(Membership)(MembershipPostgres.make),
  Layer.effect(ParkedEvents)(ParkedEventsPostgres.make)
).pipe(
  Layer.provideMerge(Layer.effect(CoordinationSession.CoordinationSession)(CoordinationSession.make)),
  Layer.provide(Layer.effect(Presence.Presence)(Presence.make))
)

const storesOf = (
  options: DatabaseLive.Options,
  database: Layer.Layer<Database, unknown, PgClient.PgClient> = Layer.effect(Database)(DatabaseLive.make(options))
): Layer.Layer<Services, unknown, PgClient.PgClient> =>
  layer.pipe(
    Layer.provide(Layer.effect(Listener.Listener)(Listener.make)),
    Layer.provideMerge(database)
  )

/** The stores of one process over the provided client, whose database is migrated first; always new ones. */
export const over = (
  options: DatabaseLive.Options = {}
): Layer.Layer<Services, unknown, PgClient.PgClient> =>
  Layer.fresh(storesOf(options).pipe(Layer.provide(Migrations.layer)))

/** A migrated database and one process' stores on it. */
export const layerWith = (
  options: DatabaseLive.Options = {}
): Layer.Layer<Services | PgClient.PgClient | SqlClient.SqlClient | PostgresTest.TestDatabase, unknown> =>
  storesOf(options).pipe(Layer.provideMerge(Migrations.layer), Layer.provideMerge(PostgresTest.layer))

/** Registers a worker under rules that evict no worker. */
export const join = (replicaSet: string, workerId: string, projections: ReadonlyArray<string>) =>
  Effect.map(Members.join(replicaSet, workerId, projections), ({ registration }) => registration)

/** A heartbeat, which displays that the worker runs the generation if there is one. */
export const heartbeat = (worker: Registration, generation?: Generation) =>
  Membership.use((membership) => membership.heartbeat(worker, generation && display(worker, "running", generation)))

/** A worker that carries every projection, unfiltered and from the beginning. */
const memberOf = (registration: Registration): Members.Member => ({
  registration,
  projections: registration.projections.map((name) => Members.carried(name))
})

export const preview = (registration: Registration) => Members.preview(memberOf(registration))

export const decide = (registration: Registration, rest?: Partial<Request>, previewed?: Plan) =>
  Members.decide(memberOf(registration), rest, previewed)

/** The one row of a projection with one worker. */
export const held = Effect.fnUntraced(function*(name: string) {
  const decision = yield* decide(yield* join(`replica-set-${name}`, "worker", [name]))
  const row: Held | undefined = decision.ownedRows[0]
  if (row === undefined) return yield* Effect.die(new Error("the worker holds nothing"))
  return row
})

/** The stores as another process would open them on the same database, and a way to end that process. */
export const another = Effect.fnUntraced(function*(
  options: DatabaseLive.Options = {},
  database?: Layer.Layer<Database, unknown, PgClient.PgClient>
) {
  const outer = yield* Effect.scope
  const scope = yield* Scope.fork(outer)
  const context = yield* Layer.buildWithScope(Layer.fresh(storesOf(options, database)), scope)
  return {
    provide: <A, E, R>(self: Effect.Effect<A, E, R>) =>
      Effect.updateContext(
        self,
        (own: Context.Context<Exclude<R, Services>>) => Context.merge(own, context) as Context.Context<R>
      ),
    scope,
    close: Scope.close(scope, Exit.void)
  }
})
