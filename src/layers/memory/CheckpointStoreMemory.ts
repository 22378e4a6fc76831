/**
 * The checkpoint store in memory. A batch's transaction is `Effect.tx`: state that a handler keeps in `TxRef`,
 * `TxHashMap` and similar types commits and rolls back together with the progress. State that it keeps elsewhere (a
 * `Ref`, a variable) is outside the transaction.
 *
 * These transactions are optimistic: nothing is locked, and a batch runs again if another transaction changed something
 * that it read before it could commit. A handler may therefore run more than once for one commit. Every run checks the
 * fence first, so the handler does not run again for a range that the worker has lost.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as TxRef from "effect/TxRef"
import { haltError, type Held, isHeldAs, key as keyOfRow } from "../../schema/Checkpoint.ts"
import { textProblem } from "../../schema/Text.ts"
import * as Abandonable from "../../services/Abandonable.ts"
import {
  type BatchOptions,
  CheckpointStore,
  EpochEnded,
  Fenced,
  HandlerFailure
} from "../../services/CheckpointStore.ts"
import type { ServerEpoch } from "../../services/EventStore.ts"
import { committedRows, type Handle, hash, type MemoryWorld } from "./MemoryWorld.ts"

/** The checkpoint store for the process of `handle`. */
export const make = (handle: Handle): CheckpointStore => {
  const { reach, world } = handle
  return CheckpointStore.of({
    commit: (held, options, work) => reach(Effect.tx(commit(handle, held, options, work))),
    advance: (held, { epoch, from, to }) =>
      reach(Effect.tx(Effect.andThen(checkEpoch(world, epoch), advance(world, held, from, to)))),
    classifyHandler: (cause) => new HandlerFailure({ cause }),
    halt: (held, options) => reach(Effect.tx(halt(world, held, options))),
    rows: (projection) => reach(Effect.sync(() => committedRows(world, projection))),
    // Memory can store any text; texts that no database can store are refused for parity.
    unstorable: (texts) => reach(Effect.sync(() => texts.filter((text) => textProblem(text) !== undefined))),
    // There is no client: the transaction belongs to Effect, and every handler runs in it.
    checkClient: () => Effect.void
  })
}

/**
 * `idleTimeout` does not apply, because there is no idle session to terminate, and neither does `isolation`: these
 * transactions are always serializable.
 */
const commit = <E, R>(
  { reach, world }: Handle,
  held: Held,
  { epoch, from }: BatchOptions,
  work: Effect.Effect<bigint, E, R>
) =>
  checkEpoch(world, epoch).pipe(
    Effect.andThen(rowOf(world, held, from)),
    Effect.andThen(runHandler(work)),
    // A process that is cut off in the middle of a batch must not commit it.
    Effect.flatMap((to) => reach(advance(world, held, from, to)))
  )

const advance = Effect.fnUntraced(function*(world: MemoryWorld, held: Held, from: bigint, to: bigint) {
  const { ref, row } = yield* rowOf(world, held, from)
  yield* TxRef.set(ref, { ...row, position: to, halt: undefined, changedAt: yield* world.now })
})

const halt = Effect.fnUntraced(function*(
  world: MemoryWorld,
  held: Held,
  { at, epoch, error, eventId, key, position }: Parameters<CheckpointStore["halt"]>[1]
) {
  yield* checkEpoch(world, epoch)
  const { ref, row } = yield* rowOf(world, held, at)
  const now = yield* world.now
  const { halt: before } = row
  const isSkipped = before?.eventId === eventId && before.position === position && before.request === "skip"
  yield* TxRef.set(ref, {
    ...row,
    changedAt: now,
    halt: {
      since: new Date(now),
      error: haltError(error),
      position,
      eventId,
      hash: key === undefined ? held.range.start : hash(key),
      incarnation: held.fence.incarnation,
      ...(isSkipped ? { request: "skip" } : {})
    }
  })
})

const checkEpoch = (world: MemoryWorld, epoch: ServerEpoch | undefined) =>
  epoch === undefined || epoch === world.epoch ? Effect.void : Effect.fail(new EpochEnded())

/** Returns the row if it still has the range and the fence of `held`, and the position. */
const rowOf = Effect.fnUntraced(function*(world: MemoryWorld, held: Held, position: bigint) {
  const ref = world.rows.get(keyOfRow(held))
  const row = ref === undefined ? undefined : yield* TxRef.get(ref)
  if (ref === undefined || row === undefined || !isHeldAs(row, held) || row.position !== position) {
    return yield* new Fenced({ projection: held.projection })
  }
  return { ref, row }
})

/**
 * Runs the handler in a fiber of its own, whose children end with it: a value that is not an Effect ends a fiber without
 * running its finalizers. Interrupting the caller ends the handler and rolls back the transaction.
 */
const runHandler = <A, E, R>(work: Effect.Effect<A, E, R>): Effect.Effect<A, HandlerFailure, R> =>
  Effect.catchCause(
    Abandonable.run(work, { grace: Duration.infinity }),
    (cause) => Effect.fail(new HandlerFailure({ cause }))
  )
