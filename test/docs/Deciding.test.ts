/**
 * The program of docs/deciding.md under concurrency, in memory and on PostgreSQL.
 */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as MemoryStores from "../../src/layers/memory/MemoryStores.ts"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as PostgresStores from "../../src/layers/postgres/PostgresStores.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as Tests from "../support/Tests.ts"
import * as Pages from "./Pages.ts"

interface Account {
  readonly deposit: (account: string, amount: number) => Effect.Effect<void, Error, EventStore>
  readonly withdraw: (account: string, amount: number) => Effect.Effect<void, { readonly _tag: string }, EventStore>
  readonly load: (account: string) => Effect.Effect<{ readonly balance: number }, Error, EventStore>
}

const stores: ReadonlyArray<readonly [string, Layer.Layer<EventStore, unknown>]> = [
  ["memory", MemoryStores.layer],
  [
    "postgres",
    PostgresStores.layer.pipe(Layer.provideMerge(Migrations.layer), Layer.provideMerge(PostgresTest.layer))
  ]
]

for (const [name, layer] of stores) {
  const test = Tests.live(layer, EventStore)

  test(`concurrent withdrawals never overdraw the account (${name})`, function*(store) {
    const account = yield* Pages.importBlock<Account>("deciding", "account")
    yield* account.deposit("ada", 100)
    const failures = yield* Effect.forEach(
      Array.from({ length: 16 }),
      () => Effect.flip(account.withdraw("ada", 10)).pipe(Effect.orElseSucceed(() => undefined)),
      { concurrency: 4 }
    )
    assert.deepStrictEqual(yield* Effect.map(account.load("ada"), ({ balance }) => balance), 0)
    const refused = failures.filter((failure) => failure !== undefined)
    assert.deepStrictEqual(refused.map(({ _tag }) => _tag), Array.from({ length: 6 }, () => "InsufficientFunds"))
    const events = yield* store.readStream({ boundedContext: "bank", aggregateType: "Account", aggregateId: "ada" })
    assert.strictEqual(events.length, 11)
  })

  test(`a withdrawal decides again after another one got ahead (${name})`, function*(store) {
    const account = yield* Pages.importBlock<Account>("deciding", "account")
    yield* account.deposit("ada", 15)
    let interfere = true
    const stream = { boundedContext: "bank", aggregateType: "Account", aggregateId: "ada" }
    // Between the first read and its append, another writer withdraws.
    const racing = EventStore.of({
      ...store,
      append: (events, options) =>
        Effect.andThen(
          Effect.suspend(() => {
            if (!interfere) return Effect.void
            interfere = false
            return store.append([{ ...stream, eventType: "Withdrawn", payload: { amount: 10 } }])
          }),
          store.append(events, options)
        )
    })
    const error = yield* Effect.flip(account.withdraw("ada", 10)).pipe(Effect.provideService(EventStore, racing))
    assert.deepInclude(error as object, { _tag: "InsufficientFunds", account: "ada", balance: 5 })
  })
}
