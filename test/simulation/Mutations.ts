/**
 * Stores with one mechanism removed. They show that the checkers can detect its absence: each of them has to make the
 * simulation fail.
 */
import * as Effect from "effect/Effect"
import * as TxRef from "effect/TxRef"
import type { Handle } from "../../src/layers/memory/MemoryWorld.ts"
import type { Checkpoint, Held } from "../../src/schema/Checkpoint.ts"
import { key } from "../../src/schema/Checkpoint.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import { written } from "../../src/schema/Plan.ts"
import type { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import { Fenced, HandlerFailure, TransientFailure } from "../../src/services/CheckpointStore.ts"
import type { CoordinationStore } from "../../src/services/CoordinationStore.ts"
import type { Membership } from "../../src/services/Membership.ts"
import type { Chance } from "./Chance.ts"
import type { EventLog } from "./EventLog.ts"
import type { FaultName } from "./Scenario.ts"

export interface Mutation {
  readonly checkpoints: (real: CheckpointStore, handle: Handle, chance: Chance) => CheckpointStore
  readonly decisions: (
    real: CoordinationStore,
    handle: Handle,
    chance: Chance
  ) => CoordinationStore
  readonly membership: (real: Membership) => Membership
  /** The position up to which readers read; the settled position if absent. */
  readonly readable: (log: EventLog) => (() => number) | undefined
  /** The kinds of faults that reveal the absence, if other faults rarely do. */
  readonly faults?: ReadonlyArray<FaultName>
}

/** Nothing is removed. */
export const none: Mutation = {
  checkpoints: (real) => real,
  decisions: (real) => real,
  membership: (real) => real,
  readable: () => undefined
}

/** The memory layer's commit with another fence check: `intact` decides. */
const fencedBy = (intact: (row: Checkpoint, held: Held, position: bigint) => boolean): Mutation => ({
  ...none,
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
const deciding = (
  change: (request: Parameters<CoordinationStore["apply"]>[0]) => typeof request
): Mutation => ({
  ...none,
  decisions: (real) => ({
    preview: (request) => real.preview(change(request)),
    apply: (request) => real.apply(change(request))
  })
})

/** Removes both mechanisms. */
const both = (one: Mutation, other: Mutation): Mutation => ({
  checkpoints: (real, handle, chance) => other.checkpoints(one.checkpoints(real, handle, chance), handle, chance),
  decisions: (real, handle, chance) => other.decisions(one.decisions(real, handle, chance), handle, chance),
  membership: (real) => other.membership(one.membership(real)),
  readable: (log) => other.readable(log) ?? one.readable(log)
})

const undrained = deciding((request) => ({ ...request, activeKeys: new Set<string>() }))

const unknownIsFailed: Mutation = {
  ...none,
  checkpoints: (real, _handle, chance) => ({
    ...real,
    commit: (held, options, work) =>
      Effect.andThen(
        real.commit(held, options, work),
        Effect.suspend(() =>
          chance.bool(0.02)
            ? Effect.fail(new TransientFailure({ kind: "connection", cause: new Error("simulated loss") }))
            : Effect.void
        )
      )
  })
}

export const mutations: Readonly<Record<string, Mutation>> = {
  "fence not checked": fencedBy((row, held, position) => sameRange(row, held) && row.position === position),
  "neither fence nor position checked": fencedBy(sameRange),
  "incarnation ignored": {
    ...fencedBy((row, held, position) =>
      sameRange(row, held) && row.position === position && row.fence?.workerId === held.fence.workerId
    ),
    // A frozen worker has to resume at the position from which its successor with the same id continues.
    faults: ["take over"]
  },
  "drain skipped: rows of open ranges are released": undrained,
  "drain skipped, range end not checked": both(
    undrained,
    fencedBy((row, held, position) => row.position === position && row.fence?.incarnation === held.fence.incarnation)
  ),
  "missed heartbeats evict no worker": deciding((request) => ({
    ...request,
    rules: { ...request.rules, staleWorkerTimeoutMillis: 1e12 }
  })),
  "neither missing presence nor missed heartbeats evict a worker": deciding((request) => ({
    ...request,
    rules: { ...request.rules, staleWorkerTimeoutMillis: 1e12, presenceGraceMillis: 1e12 }
  })),
  "age of the observing session ignored": deciding((request) => ({
    ...request,
    rules: { ...request.rules, heartbeatIntervalMillis: 0 }
  })),
  "read beyond the settled position": { ...none, readable: (log) => () => log.head },
  "unknown commit treated as failed": unknownIsFailed,
  "unknown commit treated as failed, position not checked": both(
    fencedBy((row, held) => sameRange(row, held) && sameFence(row, held)),
    unknownIsFailed
  ),
  "handler outside of the transaction": {
    ...none,
    checkpoints: (real) => ({
      ...real,
      commit: (held, options, work) =>
        Effect.flatMap(
          Effect.catchCause(Effect.tx(work), (cause) => Effect.fail(new HandlerFailure({ cause }))),
          (to) => real.commit(held, options, Effect.succeed(to))
        )
    })
  },
  "a decision in several transactions": {
    ...none,
    decisions: (real, { world }, chance) => ({
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
