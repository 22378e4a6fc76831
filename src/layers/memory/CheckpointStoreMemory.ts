/**
 * The checkpoint store in memory. A batch's transaction is `Effect.tx`: state that a handler keeps in `TxRef`,
 * `TxHashMap` and similar types commits and rolls back together with the progress. State that it keeps elsewhere (a
 * `Ref`, a variable) is outside the transaction.
 *
 * These transactions are optimistic: nothing is locked, and a batch runs again if another transaction changed something
 * that it read before it could commit. A handler may therefore run more than once for one commit. Every run checks the
 * fence first, so the handler does not run again for a range that the worker has lost.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as TxRef from "effect/TxRef"
import { haltError, type Held, isHeldAs, key } from "../../schema/Checkpoint.ts"
import { textProblem } from "../../schema/Text.ts"
import * as Abandonable from "../../services/Abandonable.ts"
import { CheckpointStore, Fenced, HandlerFailure, TransientFailure } from "../../services/CheckpointStore.ts"
import type { ServerEpoch } from "../../services/EventStore.ts"
import type { Handle } from "./MemoryWorld.ts"
import { committedRows, hash } from "./MemoryWorld.ts"

/**
 * The checkpoint store for the process of `handle`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (handle: Handle): CheckpointStore["Service"] => {
  const { reach, world } = handle

  /** Returns the row if it is still held under the fence of `held` at `position`; otherwise fails with `Fenced`. */
  const fenced = Effect.fnUntraced(function*(held: Held, position: bigint) {
    const ref = world.rows.get(key(held))
    const row = ref === undefined ? undefined : yield* TxRef.get(ref)
    if (ref === undefined || row === undefined || !isHeldAs(row, held) || row.position !== position) {
      return yield* new Fenced({ projection: held.projection })
    }
    return { ref, row }
  })

  const refuseOver = (epoch: ServerEpoch | undefined) =>
    epoch === undefined || epoch === world.epoch
      ? Effect.void
      : Effect.fail(
        new TransientFailure({ kind: "connection", cause: new Error("It was read in another epoch of this world") })
      )

  const advance = Effect.fnUntraced(function*(held: Held, from: bigint, to: bigint) {
    const { ref, row } = yield* fenced(held, from)
    yield* TxRef.set(ref, { ...row, position: to, halt: undefined })
  })

  // The handler runs in a fiber of its own, whose children end with it, because a value that is not an Effect ends a
  // fiber without running its finalizers. Interrupting the caller ends the handler and rolls back the transaction.
  const asHandler = <A, E, R>(work: Effect.Effect<A, E, R>): Effect.Effect<A, HandlerFailure, R> =>
    Effect.catchCause(
      Abandonable.run(work, { grace: Duration.infinity }),
      (cause) => Effect.fail(new HandlerFailure({ cause }))
    )

  return CheckpointStore.of({
    commit: (held, options, work) =>
      reach(
        // `idleTimeout` does not apply here: there is no idle session to terminate.
        Effect.tx(
          refuseOver(options.epoch).pipe(
            Effect.andThen(fenced(held, options.from)),
            Effect.andThen(asHandler(work)),
            // Calls `reach` again: a process that is cut off in the middle of a batch must not commit it.
            Effect.flatMap((to) => reach(advance(held, options.from, to)))
          )
        )
      ),
    advance: (held, options) =>
      reach(Effect.tx(Effect.andThen(refuseOver(options.epoch), advance(held, options.from, options.to)))),
    halt: (held, halt) =>
      reach(Effect.tx(Effect.gen(function*() {
        yield* refuseOver(halt.epoch)
        const { ref, row } = yield* fenced(held, halt.at)
        yield* TxRef.set(ref, {
          ...row,
          halt: {
            since: new Date(yield* world.now),
            error: haltError(halt.error),
            position: halt.position,
            eventId: halt.eventId,
            hash: halt.aggregateId === undefined ? held.range.start : hash(halt.aggregateId),
            incarnation: held.fence.incarnation
          }
        })
      }))),
    rows: (projection) => reach(Effect.sync(() => committedRows(world, projection))),
    // Memory can store any text; texts that no database can store are refused for parity.
    unstorable: (texts) => reach(Effect.sync(() => texts.filter((text) => textProblem(text) !== undefined))),
    // There is no client: the transaction belongs to Effect, and every handler runs in it.
    checkClient: () => Effect.void
  })
}
