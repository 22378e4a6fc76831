/** Processes for scenarios on PostgreSQL. Each has its own stores, from which a mechanism may have been removed. */
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
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import { patient } from "../suites/Suite.ts"
import * as Seam from "../support/Seam.ts"

/** Describes what is removed. */
export interface Mutation {
  /** Returns the statement without the mechanism; unchanged if it plays no part there. */
  readonly rewrite?: (text: string) => string
  /** Returns the sessions without the mechanism. */
  readonly database?: (real: Database["Service"]) => Database["Service"]
  /** Names a mechanism without a statement; the scenario leaves it out itself. */
  readonly without?: "activeKeys" | "order"
  /** Counts the rewritten statements: a mutation that rewrites none proves nothing. */
  readonly met: { count: number }
}

export const none: Mutation = { met: { count: 0 } }

export interface Reach {
  /** Intercepts statements on their way to the server. */
  readonly around?: Seam.Hooks["around"]
  /** The URL to connect through. */
  readonly url?: string
}

/** Opens the stores of one process; effects that run in it also use its client. */
export const enter = Effect.fnUntraced(function*(mutation: Mutation, reach: Reach = {}) {
  const url = reach.url ?? (yield* PostgresTest.TestDatabase).url
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

/** Rules under which a worker is dead as soon as it is silent. */
export const impatient = { ...patient, heartbeatIntervalMillis: 0, staleWorkerTimeoutMillis: 1 }

/** A worker's handling of one event: inserts a line for it, in the transaction that moves the row from 0 to 1. */
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

/** Signals that something has happened, and lets other fibers wait for it. */
export const signal = Effect.map(Deferred.make<void>(), (deferred) => ({
  send: Effect.asVoid(Deferred.succeed(deferred, undefined)),
  wait: Deferred.await(deferred)
}))
