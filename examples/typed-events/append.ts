/**
 * Appends the events of two accounts: one as an earlier version of the program stored them, and one with the event set,
 * which encodes the payloads and refuses those that do not match their schemas.
 */
import { Clock, Console, Effect, Layer } from "effect"
import { EventSet, EventStore, PostgresStores, Program } from "pupsourcing-orchestrator"
import * as Database from "../support/Database.ts"
import { AccountEvents } from "./events.ts"

const appendOld = Effect.fnUntraced(function*(aggregateId: string) {
  const store = yield* EventStore.EventStore
  const account = { boundedContext: "bank", aggregateType: "Account", aggregateId }
  yield* store.append([
    { ...account, eventType: "AccountCreated", payload: { owner: "Ada" } },
    { ...account, eventType: "StatementPrinted", payload: { pages: 1 } }
  ])
})

const append = Effect.gen(function*() {
  const now = yield* Clock.currentTimeMillis
  const [old, young] = [`account-${now}-1`, `account-${now}-2`]
  yield* appendOld(old)
  yield* EventSet.append(AccountEvents, [{ eventType: "Deposited", aggregateId: old, payload: { cents: 500 } }])
  yield* EventSet.append(AccountEvents, [
    { eventType: "AccountOpened", aggregateId: young, payload: { owner: "Grace", currency: "CHF" } },
    { eventType: "Deposited", aggregateId: young, payload: { cents: 1000 } },
    { eventType: "Withdrawn", aggregateId: young, payload: { cents: 250 } }
  ], { expectedVersion: "none" })
  const refused = yield* Effect.flip(
    EventSet.append(AccountEvents, [{ eventType: "Deposited", aggregateId: young, payload: { cents: 0.5 } }])
  )
  yield* Console.log(`Appended the events of ${old} and ${young}. Refused: ${refused.message}`)
})

const Live = PostgresStores.layer.pipe(
  Layer.provide(PostgresStores.layerMigrations),
  Layer.provide(Database.layer)
)

Program.runMain(append.pipe(Effect.provide(Live)))
