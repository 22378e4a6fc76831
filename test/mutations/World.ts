/** Processes for scenarios on PostgreSQL. Each has its own stores, from which a mechanism may have been removed. */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as SqlClient from "effect/sql/SqlClient"
import type * as Session from "../../src/layers/postgres/connection/Session.ts"
import { Database } from "../../src/layers/postgres/Database.ts"
import * as PostgresStores from "../../src/layers/postgres/PostgresStores.ts"
import type { Held } from "../../src/schema/Checkpoint.ts"
import { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import { patient } from "../suites/Suite.ts"
import * as Clauses from "../support/Clauses.ts"
import * as Seam from "../support/Seam.ts"

/** What is removed. */
export interface Mutation {
  readonly swaps?: ReadonlyArray<Clauses.Swap>
  /** Changes the states that a session begins with. */
  readonly session?: { readonly name: string; readonly state: (make: () => object) => () => object; isMet: boolean }
  /** The scenario releases ranges while their batches run. */
  readonly withoutActiveKeys?: boolean
  /** The scenario reads events before it waits for the proof that they are settled. */
  readonly readsBeforeProof?: boolean
}

export const none: Mutation = {}

/** Whether a part of the mutation changed nothing: its clause or its session did not occur. */
export const isUnmet = ({ session, swaps = [] }: Mutation): boolean =>
  session?.isMet === false || swaps.some(({ isMet }) => !isMet)

export interface Reach {
  /** Intercepts statements on their way to the server. */
  readonly around?: Seam.Hooks["around"]
  /** The URL to connect through. */
  readonly url?: string
}

const withSession = (real: Database["Service"], { session }: Mutation): Database["Service"] => ({
  ...real,
  openSession: <S>(options: Session.Options<S>) => {
    if (session?.name !== options.name) return real.openSession(options)
    const state = session.state(options.state as () => object)
    return real.openSession({
      ...options,
      state: () => {
        session.isMet = true
        return state() as S
      }
    })
  }
})

/** Opens the stores of one process; effects that run in it also use its client. */
export const enter = Effect.fnUntraced(function*(mutation: Mutation, reach: Reach = {}) {
  const url = reach.url ?? (yield* PostgresTest.TestDatabase).url
  const hooks: Seam.Hooks = {
    around: reach.around,
    rewrite: ({ text }) => Clauses.rewrite(mutation.swaps ?? [], text)
  }
  const database = Layer.effect(Database)(Effect.map(Database, (real) => withSession(real, mutation))).pipe(
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
