import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as SqlClient from "effect/sql/SqlClient"
import * as TestClock from "effect/testing/TestClock"
import * as LockWait from "../../../../src/layers/postgres/connection/LockWait.ts"

/** A client whose statements are never answered. Complete for `LockWait`, which uses only these members. */
const silent = {
  transactionService: Context.Service<unknown>("test/LockWait/transaction"),
  unsafe: () => ({ unprepared: Effect.never })
} as unknown as SqlClient.SqlClient

it.effect("a start that waits for a lock for a minute fails", () =>
  Effect.gen(function*() {
    const bounded = LockWait.bounded({ sql: silent, table: "t", operation: "Opening the stores" })
    const waiting = yield* Effect.forkChild(Effect.flip(bounded(Effect.never)), { startImmediately: true })
    yield* TestClock.adjust("59 seconds")
    assert.isUndefined(waiting.pollUnsafe())
    yield* TestClock.adjust("1 second")
    // Polled, because a wait without a limit must fail this test instead of hanging.
    const exit = waiting.pollUnsafe()
    assert(exit !== undefined && Exit.isSuccess(exit), "the start still waits")
    assert.include(exit.value.reason.message, "waited too long for a lock")
  }))
