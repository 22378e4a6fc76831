/** Appends with `onDuplicate: "return"` whose repetition only the database's constraints reveal. */
import { assert } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { Appended } from "../../../../src/schema/Event.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import * as EventStores from "../../../support/EventStores.ts"
import * as PlainWriters from "../../../support/PlainWriters.ts"

const { event, storeTest: test } = EventStores

const identified = (aggregateId: string) => event(aggregateId, { eventId: globalThis.crypto.randomUUID() })

/** Waits until a statement waits for the end of another transaction. */
const someStatementWaits = Effect.fnUntraced(function*(writer: PlainWriters.PlainWriter) {
  const waiting = writer.sql<{ readonly pid: number }>`
    SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`
  yield* TimeLimits.waitUntil("a statement waits for a lock", waiting, (rows) => rows.length > 0)
})

for (const transaction of ["the append's own transaction", "the caller's transaction, which continues"]) {
  test(
    `an append returns the original that was committed while it waited, in ${transaction}`,
    function*({ sql, store, url }) {
      const other = yield* PlainWriters.make(url)
      const events = [identified("a"), identified("a")]
      const append = store.append(events, { onDuplicate: "return" })
      const repeat = transaction.startsWith("the append") ? append : sql.withTransaction(
        Effect.tap(append, () => store.append([event("b")]))
      )
      // The first append is committed only after the second one has taken its snapshot.
      const commit = yield* Deferred.make<void>()
      const appended = yield* Deferred.make<Appended>()
      yield* Effect.forkScoped(sql.withTransaction(Effect.gen(function*() {
        yield* Deferred.succeed(appended, yield* append)
        yield* Deferred.await(commit)
      })))
      const original = yield* Deferred.await(appended)
      const repeating = yield* Effect.forkScoped(repeat)
      yield* someStatementWaits(other)
      yield* Deferred.succeed(commit, undefined)
      assert.deepStrictEqual(yield* Fiber.join(repeating), original)
      const streams = yield* Effect.forEach(["a", "b"], (aggregateId) => store.readStream(event(aggregateId)))
      assert.deepStrictEqual(
        streams.map(({ length }) => length),
        transaction.startsWith("the append") ? [2, 0] : [2, 1]
      )
    }
  )
}
