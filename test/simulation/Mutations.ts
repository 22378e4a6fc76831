/**
 * Stores with one mechanism removed. They show that the checkers can detect its absence: each of them has to make the
 * simulation fail.
 */
import * as Effect from "effect/Effect"
import * as TxRef from "effect/TxRef"
import { committedRows, type Handle } from "../../src/layers/memory/MemoryWorld.ts"
import type { Checkpoint, Held } from "../../src/schema/Checkpoint.ts"
import { isHeldAs, key } from "../../src/schema/Checkpoint.ts"
import { EventVersionTooNew } from "../../src/schema/Errors.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import type { PartitionKey } from "../../src/schema/PartitionKey.ts"
import { written } from "../../src/schema/Plan.ts"
import type { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import { Fenced, HandlerFailure, TransientFailure } from "../../src/services/CheckpointStore.ts"
import type { CoordinationStore } from "../../src/services/CoordinationStore.ts"
import type { Page } from "../../src/services/EventStore.ts"
import type { ParkedEvents } from "../../src/services/ParkedEvents.ts"
import * as Projection from "../../src/services/Projection.ts"
import type { Chance } from "./Chance.ts"
import type { EventLog } from "./EventLog.ts"
import type { FaultName } from "./Scenario.ts"

type Request = Parameters<CoordinationStore["apply"]>[0]

export interface Mutation {
  readonly parked?: (real: ParkedEvents, handle: Handle) => ParkedEvents
  readonly checkpoints?: (real: CheckpointStore, handle: Handle, chance: Chance) => CheckpointStore
  readonly coordination?: (real: CoordinationStore, handle: Handle, chance: Chance) => CoordinationStore
  readonly projection?: <R>(real: Projection.Projection<unknown, R>) => Projection.Projection<unknown, R>
  /** The position up to which readers read; the settled position if absent. */
  readonly readable?: (log: EventLog) => () => number
  /** The partition key by which readers read; that of their projection if absent. */
  readonly readBy?: PartitionKey
  /** Changes a page that was read. */
  readonly page?: (page: Page) => Page
  /** The kinds of faults that reveal the absence, if other faults rarely do. */
  readonly faults?: ReadonlyArray<FaultName>
}

/** Nothing is removed. */
export const none: Mutation = {}

type CheckpointMutation = Mutation & Required<Pick<Mutation, "checkpoints">>

/** Moves a row whose fence and position are intact. */
const advance = Effect.fnUntraced(function*(world: Handle["world"], held: Held, from: bigint, to: bigint) {
  const ref = world.rows.get(key(held))
  const row = ref === undefined ? undefined : yield* TxRef.get(ref)
  if (ref === undefined || row === undefined || !isHeldAs(row, held) || row.position !== from) {
    return yield* new Fenced({ projection: held.projection })
  }
  yield* TxRef.set(ref, { ...row, position: to, halt: undefined })
})

/** The memory layer's commit with another fence check: `intact` decides. */
const fencedBy = (intact: (row: Checkpoint, held: Held, position: bigint) => boolean): CheckpointMutation => ({
  checkpoints: (real, { reach, world }) => {
    const fenced = Effect.fnUntraced(function*(held: Held, position: bigint) {
      const ref = world.rows.get(key(held))
      const row = ref === undefined ? undefined : yield* TxRef.get(ref)
      if (ref === undefined || row === undefined || !intact(row, held, position)) {
        return yield* new Fenced({ projection: held.projection })
      }
      return { ref, row }
    })
    const advance = Effect.fnUntraced(function*(held: Held, from: bigint, to: bigint) {
      const { ref, row } = yield* fenced(held, from)
      yield* TxRef.set(ref, { ...row, position: to })
    })
    return {
      ...real,
      commit: (held, options, work) =>
        reach(Effect.tx(
          fenced(held, options.from).pipe(
            Effect.andThen(Effect.catchCause(work, (cause) => Effect.fail(new HandlerFailure({ cause })))),
            Effect.flatMap((to) => reach(advance(held, options.from, to)))
          )
        )),
      advance: (held, options) => reach(Effect.tx(advance(held, options.from, options.to)))
    }
  }
})

const sameRange = (row: Checkpoint, held: Held) => HashRange.equals(row.range, held.range)
const sameFence = (row: Checkpoint, held: Held) =>
  row.fence?.incarnation === held.fence.incarnation && row.fence.generationId === held.fence.generationId

/** Changes the request of each decision. */
const deciding = (change: (request: Request) => Request): Mutation => ({
  coordination: (real) => ({
    preview: (request) => real.preview(change(request)),
    apply: (request) => real.apply(change(request))
  })
})

/** Releases ranges while their runners work. */
const undrained = deciding((request) => ({ ...request, activeKeys: new Set<string>() }))

/** Treats a commit whose answer was lost as failed, over stores that `before` changes. */
const unknownIsFailed = (before?: CheckpointMutation): Mutation => ({
  checkpoints: (real, handle, chance) => {
    const store = before?.checkpoints(real, handle, chance) ?? real
    return {
      ...store,
      commit: (held, options, work) =>
        Effect.andThen(
          store.commit(held, options, work),
          Effect.suspend(() =>
            chance.bool(0.02)
              ? Effect.fail(new TransientFailure({ kind: "connection", cause: new Error("simulated loss") }))
              : Effect.void
          )
        )
    }
  }
})

/** Names the first event of a batch whose handler fails. */
const blamingTheFirst = <R>(real: Projection.Projection<unknown, R>): Projection.Projection<unknown, R> => {
  const { handler } = real
  return handler._tag === "One" ? real : {
    ...real,
    handler: {
      ...handler,
      handleBatch: (events) =>
        handler.handleBatch(events).pipe(Effect.catch((error) => Projection.failAt(events[0], error)))
    }
  }
}

/** Runs the handler a moment later, in a fiber that nothing waits for. */
const detached = <R>(real: Projection.Projection<unknown, R>): Projection.Projection<unknown, R> => {
  const { handler } = real
  const later = (self: Effect.Effect<unknown, unknown, R>) => Effect.forkDetach(Effect.andThen(Effect.sleep(1), self))
  return {
    ...real,
    handler: handler._tag === "One"
      ? { ...handler, handle: (event) => later(handler.handle(event)) }
      : { ...handler, handleBatch: (events) => later(handler.handleBatch(events)) }
  }
}

/** What is removed, by its name. */
export const mutations: Readonly<Record<string, Mutation>> = {
  "the fence": fencedBy((row, held, position) => sameRange(row, held) && row.position === position),
  "the fence and the position check": fencedBy(sameRange),
  "the incarnation in the fence": {
    ...fencedBy((row, held, position) =>
      sameRange(row, held) && row.position === position && row.fence?.workerId === held.fence.workerId
    ),
    // A frozen worker has to resume at the position from which its successor with the same id continues.
    faults: ["take over"]
  },
  "draining before a release": undrained,
  "draining before a release, and the range's end in the fence": {
    ...undrained,
    ...fencedBy((row, held, position) => row.position === position && row.fence?.incarnation === held.fence.incarnation)
  },
  "one owner for a globally ordered projection": deciding((request) => ({
    ...request,
    projections: request.projections.map((projection) => ({ ...projection, ordering: "aggregate" as const }))
  })),
  "eviction for missing heartbeats": deciding((request) => ({
    ...request,
    rules: { ...request.rules, staleWorkerTimeoutMillis: 1e12 }
  })),
  "eviction for missing heartbeats and for missing presence": deciding((request) => ({
    ...request,
    rules: { ...request.rules, staleWorkerTimeoutMillis: 1e12, presenceGraceMillis: 1e12 }
  })),
  "the minimum age of the observing session": deciding((request) => ({
    ...request,
    rules: { ...request.rules, heartbeatIntervalMillis: 0 }
  })),
  "the partition key of a read": { readBy: "aggregateId" },
  "the hashes by which ranges divide a page": {
    page: (page) => page.hashes === undefined ? page : { ...page, hashes: page.hashes.map(() => 0) }
  },
  "the settled position": { readable: (log) => () => log.head },
  "resolving an unknown commit outcome": unknownIsFailed(),
  "resolving an unknown commit outcome, and the position check": unknownIsFailed(
    fencedBy((row, held) => sameRange(row, held) && sameFence(row, held))
  ),
  "writing nothing after a halt": {
    checkpoints: (real) => ({
      ...real,
      halt: (held, halt) =>
        Effect.tap(
          real.halt(held, halt),
          // The events between do not match.
          real.advance(held, { from: halt.at, to: halt.position - 1n, epoch: halt.epoch })
        )
    })
  },
  "running the handler in the transaction": {
    checkpoints: (real) => ({
      ...real,
      commit: (held, options, work) =>
        Effect.flatMap(
          Effect.catchCause(Effect.tx(work), (cause) => Effect.fail(new HandlerFailure({ cause }))),
          (to) => real.commit(held, options, Effect.succeed(to))
        )
    })
  },
  // The first event of the batch is given up instead.
  "finding the event that fails in a batch": { projection: (real) => blamingTheFirst(real) },
  "rolling a batch back if its handler fails": {
    // The effects of the events before the one that fails are committed, with the progress after the last event.
    projection: (real) => {
      const { handler } = real
      return handler._tag === "One" ? real : {
        ...real,
        handler: { ...handler, handleBatch: (events) => Effect.ignore(handler.handleBatch(events)) }
      }
    }
  },
  "giving up a projection at an event of a newer version": {
    // It is a failure of the event instead.
    projection: (real) => {
      const { handler } = real
      return handler._tag === "Batch" ? real : {
        ...real,
        handler: {
          ...handler,
          handle: (event) =>
            Effect.mapError(
              handler.handle(event),
              (error) => error instanceof EventVersionTooNew ? error.message : error
            )
        }
      }
    }
  },
  "reading the parked keys when a range opens": {
    parked: (real) => ({ ...real, keys: () => Effect.succeed(new Map()) })
  },
  "detecting parked events when a range is claimed": {
    coordination: (real) => ({
      ...real,
      apply: (request) =>
        Effect.map(real.apply(request), (plan) => ({ ...plan, withoutParked: new Set(written(plan).map(key)) }))
    })
  },
  "parking the events that queue behind a parked one": {
    parked: (real) => ({
      ...real,
      park: (held, options) => options.failure === undefined ? Effect.succeed([]) : real.park(held, options)
    })
  },
  "the fence of a retry of a parked event": {
    // A batch that does not move its range is not fenced.
    faults: ["freeze in a retry"],
    checkpoints: (real, { reach, world }) => ({
      ...real,
      commit: (held, options, work) =>
        reach(Effect.tx(
          Effect.catchCause(work, (cause) => Effect.fail(new HandlerFailure({ cause }))).pipe(
            Effect.flatMap((to) => to === options.from ? Effect.void : reach(advance(world, held, options.from, to)))
          )
        ))
    })
  },
  "changing the set of parked keys only after the commit": {
    faults: ["lossy", "retry parked"],
    // The set is read without the events that a batch has tried to remove.
    parked: (real) => {
      const removed = new Set<string>()
      return {
        ...real,
        remove: (held, options) => {
          removed.add(`${held.projection}/${options.position}`)
          return real.remove(held, options)
        },
        keys: (held, epoch) =>
          Effect.gen(function*() {
            const keys = new Map(yield* real.keys(held, epoch))
            for (const { keyHash, position } of yield* Effect.orDie(real.list(held.projection))) {
              const count = keys.get(keyHash)
              if (count === undefined || !removed.has(`${held.projection}/${position}`)) continue
              if (count > 1) keys.set(keyHash, count - 1)
              else keys.delete(keyHash)
            }
            return keys
          })
      }
    }
  },
  "skipping only the event that fails": {
    // The first event of the batch is skipped instead.
    projection: (real) => real.onFailure === "skip" ? blamingTheFirst(real) : real
  },
  "comparing a request about a halt with the event of the halt": {
    faults: ["skip halted"],
    parked: (real, { world }) => ({
      ...real,
      requestOnHalt: (projection, { request }) => {
        const halted = committedRows(world, projection).find(({ halt }) => halt !== undefined)
        return halted === undefined
          ? Effect.succeed(false)
          : real.requestOnHalt(projection, { eventId: halted.halt!.eventId, request })
      }
    })
  },
  "verifying a request to skip in the transaction that skips": {
    faults: ["skip halted"],
    parked: (real) => ({ ...real, isSkipRequested: () => Effect.succeed(true) })
  },
  "writing progress only after a handler outside of the transaction": {
    projection: (real) => real.delivery === "exactly-once" ? real : detached(real)
  },
  "running a decision in one transaction": {
    coordination: (real, { world }, chance) => ({
      preview: real.preview,
      // Decides on outdated rows: puts the rows back as they were read a moment ago, as a writer does that computes
      // from memory.
      apply: (request) =>
        Effect.gen(function*() {
          const before = [...world.rows].map(([name, ref]) => [name, ref.value] as const)
          yield* Effect.sleep(chance.int(1, 20))
          const plan = yield* real.apply(request)
          if (written(plan).length > 0) {
            yield* Effect.tx(Effect.forEach(before, ([name, row]) => {
              const ref = world.rows.get(name)
              const touched = written(plan).some((row) => key(row) === name)
              return ref === undefined || row === undefined || touched ||
                  !request.projections.some((carried) => carried.name === row.projection)
                ? Effect.void
                : TxRef.set(ref, row)
            }, { discard: true }))
          }
          return plan
        })
    })
  }
}
