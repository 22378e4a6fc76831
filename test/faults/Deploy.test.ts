/**
 * Rolling deploys: workers are replaced one after the other under load by a version that carries other projections and
 * has other settings. Each replacement makes at most two generations, so no hash changes hands more than twice.
 *
 * @module-tag long
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect, type Scope } from "effect"
import * as TimeLimits from "../support/TimeLimits.ts"
import * as Harness from "./Harness.ts"
import * as Moves from "./Moves.ts"

/** Not all carry all, and the next version brings a projection whose progress begins while it is rolled out. */
const oldVersion = (pod: number): Harness.WorkerOptions => ({
  projections: ["shared_totals", ...(pod % 2 === 0 ? ["per_aggregate"] : ["per_aggregate/odd"])],
  settings: {
    heartbeatInterval: TimeLimits.scaledMillis(250),
    staleWorkerTimeout: TimeLimits.scaledMillis(2_000),
    batchSize: 100
  }
})
const newVersion = (pod: number): Harness.WorkerOptions => ({
  projections: ["shared_totals/new", "per_aggregate/odd", "per_aggregate", ...(pod < 2 ? ["shared_totals"] : [])],
  settings: {
    heartbeatInterval: TimeLimits.scaledMillis(400),
    staleWorkerTimeout: TimeLimits.scaledMillis(3_000),
    batchSize: 7,
    pollInterval: 200,
    drainTimeout: 1_000
  }
})
const projections = ["per_aggregate", "per_aggregate/odd", "shared_totals", "shared_totals/new"]

/** Each range of each projection has an owner, who lives. */
const allOwned = (ids: ReadonlyArray<string>) => (state: Harness.State) =>
  Harness.sharedBy(ids)(state) &&
  projections.every((projection) => state.checkpoints.some((row) => row.projection === projection)) &&
  state.checkpoints.every(({ workerId }) => workerId !== null && ids.includes(workerId))

interface Pod {
  readonly id: string
  readonly worker: Harness.Worker
}

const start = Effect.fnUntraced(function*(name: string, id: string, version: Harness.WorkerOptions) {
  const harness = yield* Harness.Harness
  return { id, worker: yield* harness.start(name, { ...version, workerId: id }) }
})

const stop = ({ worker }: Pod) =>
  Effect.map(worker.stop, (exit) => assert.deepStrictEqual(exit, { code: 0, signal: null }))

/** As a `StatefulSet` does it: the old one ends, the new one has its id. */
const stopFirst = Effect.fnUntraced(function*(old: Pod, pod: number) {
  yield* stop(old)
  return yield* start(`${old.id} of the new version`, old.id, newVersion(pod))
})

/** As a `Deployment` with `maxSurge` does it: the new one is ready before the old one ends. */
const startFirst = Effect.fnUntraced(function*(old: Pod, pod: number, ids: ReadonlyArray<string>) {
  const harness = yield* Harness.Harness
  const next = yield* start(`new-${pod}`, `new-${pod}`, newVersion(pod))
  yield* harness.waitUntil(`${next.id} has joined`, Harness.sharedBy([...ids, next.id]))
  yield* stop(old)
  return next
})

const deploy = Effect.fnUntraced(function*(
  count: number,
  replace: (
    old: Pod,
    pod: number,
    ids: ReadonlyArray<string>
  ) => Effect.Effect<Pod, unknown, Harness.Harness | Scope.Scope>
) {
  const harness = yield* Harness.Harness
  const pods = Array.from({ length: count }, (_, pod) => pod)
  const running = yield* Effect.forEach(pods, (pod) => start(`pod-${pod}`, `pod-${pod}`, oldVersion(pod)), {
    concurrency: "unbounded"
  })
  const ids = () => running.map(({ id }) => id)
  const stopLoad = yield* harness.load({ perSecond: 100 })
  yield* harness.waitUntil("the old version shares the work", Harness.sharedBy(ids()))
  for (const pod of pods) {
    yield* Moves.record
    const next = yield* replace(running[pod]!, pod, ids())
    running[pod] = next
    yield* harness.waitUntil(`${next.id} is of the new version`, Harness.sharedBy(ids()))
    assert.deepStrictEqual(Moves.above(2, yield* Moves.holdings), [])
  }
  yield* harness.waitUntil("every range has an owner", allOwned(ids()))
  yield* stopLoad
  const end = yield* harness.quiesce(projections)
  assert.deepStrictEqual(end.refusals, [])
  assert.isTrue(allOwned(ids())(end))
})

describe("deploy", { concurrent: false }, () => {
  it.live(
    "six workers are replaced by others under their ids",
    () => deploy(6, stopFirst).pipe(Effect.scoped, Effect.provide(Harness.layer))
  )

  it.live(
    "three workers are replaced by others that start before they stop",
    () => deploy(3, startFirst).pipe(Effect.scoped, Effect.provide(Harness.layer))
  )
})
