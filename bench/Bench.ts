/** What the benchmarks share that start a database server of their own. */
import { PgClient } from "@effect/sql-pg"
import { Effect, Layer, type Redacted, References, type Scope } from "effect"
import { Migrations, PostgresStores, Program } from "pupsourcing-orchestrator"
import * as EmbeddedPostgres from "../src/testing/EmbeddedPostgres.ts"
import * as Measurement from "../src/testing/Measurement.ts"

export const note = (text: string) => Effect.sync(() => console.log(text))

/** Starts a server, which is stopped with the scope. */
export const server = (name: string) =>
  Effect.acquireRelease(
    EmbeddedPostgres.ensure({ name }),
    // A server that cannot be stopped does not make the measurement wrong; the next run uses it again.
    () => Effect.ignore(EmbeddedPostgres.stop({ name }, "immediate"))
  )

/** A client, and the stores with migrated tables. */
export const stores = (url: Redacted.Redacted) =>
  PostgresStores.layer.pipe(
    Layer.provideMerge(Layer.effectDiscard(Migrations.up)),
    Layer.provideMerge(PgClient.layer({ url }))
  )

/** Prints the result. With `--record`, also writes it to docs/measurements. */
export const report = Effect.fnUntraced(function*(measurement: Parameters<typeof Measurement.record>[0]) {
  yield* note(`\n${measurement.result}`)
  if (process.argv.includes("--record")) yield* Measurement.record(measurement)
})

export const runMain = <E>(program: Effect.Effect<void, E, Scope.Scope>) =>
  Program.runMain(program.pipe(Effect.scoped, Effect.provideService(References.MinimumLogLevel, "Warn")))
