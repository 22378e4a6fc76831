/**
 * Processes for scenarios on PostgreSQL, each with stores of its own from which a mechanism may have been taken.
 */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as SqlClient from "effect/sql/SqlClient"
import { Database } from "../../src/layers/postgres/Database.ts"
import * as PostgresStores from "../../src/layers/postgres/PostgresStores.ts"
import type { Held } from "../../src/schema/Checkpoint.ts"
import { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import { patient } from "../suites/Suite.ts"
import * as Seam from "../support/Seam.ts"
import * as TestDatabase from "../support/TestDatabase.ts"

/** What is taken out. */
export interface Mutation {
  /** The statement without it; the same where it has no part. */
  readonly rewrite?: (text: string) => string
  /** The sessions without it. */
  readonly database?: (real: Database["Service"]) => Database["Service"]
  /** Of what has no statement: the scenario does without it itself. */
  readonly without?: "busy" | "order"
  /** Counts the statements that were rewritten: a mutation that meets none shows nothing. */
  readonly met: { count: number }
}

export const none: Mutation = { met: { count: 0 } }

export interface Reach {
  /** How statements get through. */
  readonly around?: Seam.Hooks["around"]
  /** By which URL. */
  readonly url?: string
}

/** Opens one process' stores; what is run in them sees its client too. */
export const enter = Effect.fnUntraced(function*(mutation: Mutation, reach: Reach = {}) {
  const url = reach.url ?? (yield* TestDatabase.TestDatabase).url
  const hooks: Seam.Hooks = {
    around: reach.around,
    rewrite: ({ text }) => {
      const rewritten = mutation.rewrite?.(text) ?? text
      if (rewritten !== text) mutation.met.count++
      return rewritten
    }
  }
  const database = Layer.effect(Database)(Effect.map(Database, mutation.database ?? ((real) => real))).pipe(
    Layer.provide(Seam.database(hooks))
  )
  const context = yield* Layer.build(Layer.fresh(
    PostgresStores.layerOver(database).pipe(
      Layer.provideMerge(Seam.client({ url: Redacted.make(url), maxConnections: 6 }, hooks))
    )
  ))
  return Effect.provide(context)
})

/** In these eyes whoever is silent at all is dead. */
export const impatient = { ...patient, heartbeatIntervalMillis: 0, staleWorkerTimeoutMillis: 1 }

/** A worker's handling of one event: a line for it, together with the row's step from 0 to 1. */
export const handle = Effect.fnUntraced(function*(
  held: Held,
  what: ReadonlyArray<string>,
  before: Effect.Effect<unknown, unknown> = Effect.void,
  idleTimeout: Duration.Duration = Duration.seconds(20)
) {
  const checkpoints = yield* CheckpointStore
  const sql = yield* SqlClient.SqlClient
  const work = before.pipe(
    Effect.andThen(Effect.forEach(what, (event) => sql`INSERT INTO effects VALUES (${event})`)),
    Effect.as(1n)
  )
  return yield* Effect.exit(checkpoints.commit(held, { from: 0n, idleTimeout }, work))
})

/** How often each event was handled. */
export const effects = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const rows = yield* sql<{ readonly event: string; readonly times: bigint }>`
    SELECT event, count(*) AS times FROM effects GROUP BY event`
  return new Map(rows.map(({ event, times }) => [event, Number(times)]))
})

/** Says that something has happened, and lets others wait for it. */
export const signal = Effect.map(Deferred.make<void>(), (deferred) => ({
  send: Effect.asVoid(Deferred.succeed(deferred, undefined)),
  wait: Deferred.await(deferred)
}))
