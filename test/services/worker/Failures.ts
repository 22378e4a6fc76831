/** Handlers, failing stores and repeated steps for the tests of a runner. */
import { assert } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as TxRef from "effect/TxRef"
import type { StoreError } from "../../../src/schema/Errors.ts"
import type { Event } from "../../../src/schema/Event.ts"
import { type CheckpointStore, type Fenced, TransientFailure } from "../../../src/services/CheckpointStore.ts"
import * as Projection from "../../../src/services/Projection.ts"
import { event, pass, type runner } from "../World.ts"

/** Records the ids that it has handled, in the transaction. */
export const recording = (
  handled: TxRef.TxRef<ReadonlyArray<string>>,
  before: (event: Event) => Effect.Effect<unknown, unknown> = () => Effect.void
) =>
  Projection.make("users", {
    handle: (event) => Effect.andThen(before(event), record(handled, event))
  })

/** Records that an event is handled. */
export const record = (handled: TxRef.TxRef<ReadonlyArray<string>>, { aggregateId }: Event) =>
  TxRef.update(handled, (ids) => [...ids, aggregateId])

/** Holds a handler at `wait` until the test opens the gate. */
export const gate = Effect.gen(function*() {
  const reached = yield* Deferred.make<void>()
  const opened = yield* Deferred.make<void>()
  return {
    wait: Effect.andThen(Deferred.succeed(reached, undefined), Deferred.await(opened)),
    /** Returns once a handler waits. */
    reached: Deferred.await(reached),
    open: Deferred.succeed(opened, undefined)
  }
})

export const ids = (count: number) => Array.from({ length: count }, (_, index) => `user-${index + 1}`)

export class NoSuchCountry extends Error {
  override readonly name = "NoSuchCountry"
}

export const conflict = new TransientFailure({ kind: "conflict", cause: new Error("deadlock detected") })
export const connectionLost = new TransientFailure({ kind: "connection", cause: new Error("connection reset") })

/** A commit that rolls back and fails on every attempt for which `failure` returns an error. */
export const failingCommits = (
  failure: (attempt: number) => TransientFailure | StoreError | Fenced | undefined
) => {
  const attempts: Array<number> = []
  return {
    attempts,
    checkpoints: (real: CheckpointStore): Partial<CheckpointStore> => ({
      commit: (held, options, work) =>
        Effect.flatMap(Clock.currentTimeMillis, (now) => {
          attempts.push(now)
          const error = failure(attempts.length)
          // As with a real failure, the handler runs and is rolled back.
          return error === undefined
            ? real.commit(held, options, work)
            : real.commit(held, options, Effect.andThen(work, Effect.fail(error))).pipe(
              Effect.catchTag("HandlerFailure", () => Effect.fail(error))
            )
        })
    })
  }
}

/** Fails a batch that takes longer than the transaction's idle timeout of 15 s. */
export const lostByTime =
  (failure: () => TransientFailure | Fenced = () => connectionLost) =>
  (real: CheckpointStore): Partial<CheckpointStore> => ({
    commit: (held, options, work) =>
      Effect.gen(function*() {
        const before = yield* Clock.monotonicTimeNanos
        const late = Effect.flatMap(Clock.monotonicTimeNanos, (now) =>
          now - before > 15_000_000_000n ? Effect.fail(connectionLost) : Effect.void)
        return yield* real.commit(
          held,
          options,
          Effect.tap(work, () =>
            late)
        )
      }).pipe(Effect.catchTag("HandlerFailure", () => Effect.fail(failure())))
  })

/** Runs a worker that handles the event "a" and halts at the next one, "b", and returns the halt. */
export const haltAtSecond = Effect.fnUntraced(function*(
  worker: Effect.Success<ReturnType<typeof runner>>,
  handled: TxRef.TxRef<ReadonlyArray<string>>
) {
  yield* worker.events.append([event("a")])
  yield* worker.events.append([event("b")])
  const fiber = yield* Effect.forkChild(worker.run)
  yield* pass(200)
  assert.deepStrictEqual(yield* TxRef.get(handled), ["a"])
  const { halt, position } = yield* worker.row
  assert.deepStrictEqual([position, halt?.position], [1n, 2n])
  assert.strictEqual(yield* worker.drain(fiber), "drained")
  return halt!
})
