/** The service `Projections` in a command. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Database } from "../layers/postgres/Database.ts"
import * as DatabaseLive from "../layers/postgres/DatabaseLive.ts"
import * as ProjectionsPostgres from "../layers/postgres/status/ProjectionsPostgres.ts"
import { Projections } from "../services/Projections.ts"
import * as Settings from "../services/Settings.ts"
import { databaseUrl, withDatabase } from "./DatabaseUrl.ts"
import { nameFlags, toNames } from "./NameFlags.ts"

/** The flags that locate the tables. */
export const databaseFlags = { databaseUrl, ...nameFlags }

/** The values of these flags. */
export type DatabaseFlags = Parameters<typeof toNames>[0] & {
  readonly databaseUrl: Parameters<typeof withDatabase>[0]
}

/** Runs an effect with the projections of the database. With `acceptStandby`, the effect must only read. */
export const withProjections = <A, E, R>(
  { databaseUrl, ...names }: DatabaseFlags,
  self: Effect.Effect<A, E, Projections | R>,
  options?: { readonly acceptStandby: boolean }
) =>
  Effect.flatMap(Settings.directUrl, (directUrl) => {
    const database = Layer.effect(Database)(DatabaseLive.make({ ...toNames(names), directUrl, ...options }))
    const projections = Layer.effect(Projections)(ProjectionsPostgres.make).pipe(Layer.provide(database))
    return withDatabase(databaseUrl, Effect.provide(self, projections))
  })
