/**
 * Rolling deploys: workers are replaced one after the other under load by a version that carries other projections and
 * has other settings. Each replacement makes at most two generations, so no hash changes hands more than twice.
 *
 * @module-tag long
 */
import { assert, it } from "@effect/vitest"
import { Effect, type Scope } from "effect"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import type * as WorkerProcess from "../../src/testing/WorkerProcess.ts"
import * as Harness from "./Harness.ts"
import { test } from "./Live.ts"
import * as Moves from "./Moves.ts"

/**
 * Some workers carry only some of these projections. The next version adds one whose progress begins during the
 * rollout.
 */
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

/** Every range of every projection has a live owner. */
const allOwned = (ids: ReadonlyArray<string>) => (state: Harness.State) =>
  Harness.sharedBy(ids)(state) &&
  projections.every((projection) => state.checkpoints.some((row) => row.projection === projection)) &&
  state.checkpoints.every(({ workerId }) => workerId !== null && ids.includes(workerId))

interface Pod {
  readonly id: string
  readonly worker: WorkerProcess.WorkerProcess
}

const start = Effect.fnUntraced(function*(name: string, id: string, version: Harness.WorkerOptions) {
  const harness = yield* Harness.Harness
  return { id, worker: yield* harness.start(name, { ...version, workerId: id }) }
})

const stop = ({ worker }: Pod) =>
  Effect.map(worker.stop, (exit) => assert.deepStrictEqual(exit, { code: 0, signal: null }))

/** Like a `StatefulSet`: the old worker ends, then the new one starts with its id. */
const stopFirst = Effect.fnUntraced(function*(old: Pod, pod: number) {
  yield* stop(old)
  return yield* start(`${old.id} of the new version`, old.id, newVersion(pod))
})

/** Like a `Deployment` with `maxSurge`: the new worker is ready before the old one ends. */
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

const filtered = "per_aggregate"
const unchanged = "shared_totals"
/** Each version replaces the filter of the one before it; none has removed the option after its deploy. */
const narrow = { projection: filtered, eventTypes: ["Happened"], replaces: ["Other"] }
const widened = { projection: filtered, eventTypes: ["Happened", "HappenedToo"], replaces: ["Happened"] }

/**
 * The first pod of the new version changes a filter while the old pods are running; then the old pods are replaced one
 * by one.
 */
const changeFilter = Effect.gen(function*() {
  const harness = yield* Harness.Harness
  const version = (filter: typeof narrow): Harness.WorkerOptions => ({ projections: [filtered, unchanged], filter })
  const old = yield* Effect.forEach(["old-0", "old-1", "old-2"], (id) => start(id, id, version(narrow)), {
    concurrency: "unbounded"
  })
  const stopLoad = yield* harness.load({ perSecond: 100 })
  const oldIds = old.map(({ id }) => id)
  yield* harness.waitUntil("the old version shares the work", Harness.sharedBy(oldIds))
  const first = yield* start("new-0", "new-0", version(widened))
  const ownedBy = (projection: string, ids: ReadonlyArray<string>) => (state: Harness.State) =>
    Harness.sharedBy([...oldIds, "new-0"])(state) &&
    new Set(state.checkpoints.filter((row) => row.projection === projection).map(({ workerId }) => workerId)).size ===
      ids.length &&
    state.checkpoints.every((row) => row.projection !== projection || ids.includes(row.workerId ?? ""))
  yield* harness.waitUntil(
    "the new worker has all of the changed projection, and the old ones work on the other",
    (state) => ownedBy(filtered, ["new-0"])(state) && ownedBy(unchanged, [...oldIds, "new-0"])(state)
  )
  for (const { worker } of old) {
    const warnings = worker.output().split("\n").filter((line) => line.includes("has changed the filter"))
    assert.strictEqual(warnings.length, 1)
    assert.include(warnings[0], `continues with its other projections: ${unchanged}.`)
  }
  // A pod of the old version that restarts meanwhile is refused, and its error states the reason.
  const restarted = yield* harness.start("restarted", { ...version(narrow), workerId: "restarted", mayEnd: true })
  assert.strictEqual((yield* restarted.ended).code, 1)
  assert.include(
    restarted.output(),
    "has the filter \"eventTypes: Happened\", but its progress was made under \"eventTypes: Happened, HappenedToo\""
  )
  let pods = [...old, first]
  for (const pod of old) {
    const id = pod.id.replace("old", "new-after")
    const next = yield* start(id, id, version(widened))
    yield* stop(pod)
    pods = [...pods.filter((other) => other !== pod), next]
    yield* harness.waitUntil(`${id} is of the new version`, Harness.sharedBy(pods.map(({ id }) => id)))
  }
  yield* stopLoad
  const end = yield* harness.quiesce([filtered, unchanged])
  assert.deepStrictEqual(end.refusals, [])
  assert.isTrue(end.checkpoints.every(({ workerId }) => workerId?.startsWith("new") === true))
})

it.live(
  "three workers keep their other projections while a newer version changes a filter, and are replaced",
  () => changeFilter.pipe(Effect.scoped, Effect.provide(Harness.layer))
)

/** Every range of the projection has an owner among these, and each of them owns one. */
const ownersOf = (projection: string, ids: ReadonlyArray<string>) => (state: Harness.State) => {
  const owners = state.checkpoints.filter((row) => row.projection === projection).map(({ workerId }) => workerId)
  return owners.every((owner) => owner !== null && ids.includes(owner)) && new Set(owners).size === ids.length
}

/**
 * Workers of two versions run at the same time; then the newer version appends events that the event sets of the older
 * workers do not declare.
 */
const mixVersions = Effect.fnUntraced(function*(order: readonly ["new" | "old", ...Array<"new" | "old">]) {
  const harness = yield* Harness.Harness
  const version = (name: "new" | "old"): Harness.WorkerOptions => ({
    projections: [filtered, unchanged],
    typed: { projection: filtered, newest: name === "new" ? 2 : 1 }
  })
  const pods: Array<Pod> = []
  for (const [index, name] of order.entries()) {
    pods.push(yield* start(`${name}-${index}`, `${name}-${index}`, version(name)))
    yield* harness.waitUntil("the worker has joined", Harness.sharedBy(pods.map(({ id }) => id)))
  }
  const ids = pods.map(({ id }) => id)
  const young = ids.filter((id) => id.startsWith("new"))
  yield* harness.append(200)
  yield* harness.waitUntil(
    "all workers work on both projections",
    (state) => ownersOf(filtered, ids)(state) && ownersOf(unchanged, ids)(state)
  )
  // Events of both versions of the same aggregates.
  const stopLoad = yield* harness.load({ perSecond: 100 })
  yield* harness.append(200, { eventVersion: 2 })
  yield* harness.waitUntil(
    "the newer workers have all of the projection, and the older ones work on the other",
    (state) => ownersOf(filtered, young)(state) && ownersOf(unchanged, ids)(state)
  )
  yield* harness.append(200, { eventVersion: 2 })
  yield* stopLoad
  const end = yield* harness.quiesce([filtered, unchanged])
  assert.deepStrictEqual(end.refusals, [])
  for (const { id, worker } of pods) {
    const warnings = worker.output().split("\n").filter((line) => line.includes("is newer than version 1"))
    assert.strictEqual(warnings.length, young.includes(id) ? 0 : 1, id)
    if (!young.includes(id)) assert.include(warnings[0], `continues with its other projections: ${unchanged}.`)
  }
})

test("two older workers give up a projection at events of a newer version, which the newer worker handles", function*() {
  yield* mixVersions(["old", "old", "new"])
})

test("an older worker that registers after the newer one gives up the projection, too", function*() {
  yield* mixVersions(["new", "old"])
})

test("six workers are replaced by others under their ids", function*() {
  yield* deploy(6, stopFirst)
})

test("three workers are replaced by others that start before they stop", function*() {
  yield* deploy(3, startFirst)
})
