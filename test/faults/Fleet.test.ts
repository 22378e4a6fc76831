/**
 * Typical deployments: several replica sets in a process, different versions side by side, rolling restarts.
 *
 * @module-tag long
 */
import { assert } from "@effect/vitest"
import { Effect } from "effect"
import * as Harness from "./Harness.ts"
import { test } from "./Live.ts"

test("several replica sets in one process share its sessions", function*({ harness, sql }) {
  const replicaSets = ["one", "two", "three"].map((name) => ({
    name,
    projections: [`per_aggregate/${name}`, `shared_totals/${name}`]
  }))
  const projections = replicaSets.flatMap((replicaSet) => replicaSet.projections)
  /** Sessions of this library by purpose; the harness has its own event store. */
  const sessions = Effect.map(
    sql<{ readonly application_name: string; readonly count: bigint }>`
          SELECT application_name, count(*) AS count FROM pg_stat_activity
          WHERE datname = current_database() AND application_name LIKE 'pupsourcing-orchestrator %'
          GROUP BY application_name`,
    (rows) => new Map(rows.map(({ application_name, count }) => [application_name, Number(count)]))
  )
  const allShared = (ids: ReadonlyArray<string>) => (state: Harness.State) =>
    replicaSets.every(({ name }) => Harness.sharedBy(ids, name)(state))
  yield* harness.append(300)
  const before = yield* sessions
  const a = yield* harness.start("a", { replicaSets })
  yield* harness.waitUntil("a runs all three", allShared(["a"]))
  yield* harness.quiesce(projections)
  const after = yield* sessions
  const added = [...after].map(([name, count]) => [name, count - (before.get(name) ?? 0)])
  assert.deepStrictEqual(Object.fromEntries(added), {
    "pupsourcing-orchestrator coordination": 1,
    "pupsourcing-orchestrator listener": 1,
    "pupsourcing-orchestrator reader": 1
  })

  // A second process: the two share each of the three projections.
  const b = yield* harness.start("b", { replicaSets })
  yield* harness.waitUntil("a and b share all three", allShared(["a", "b"]))
  yield* harness.append(300)
  yield* b.kill
  yield* harness.waitUntil("a holds all three", allShared(["a"]))
  yield* harness.quiesce(projections)
  assert.deepStrictEqual(yield* a.stop, { code: 0, signal: null })
})

test("workers that carry different projections divide each among those that carry it", function*({ harness }) {
  const both = ["per_aggregate", "shared_totals"]
  yield* harness.append(300)
  const a = yield* harness.start("a", { projections: both })
  const b = yield* harness.start("b", { projections: ["per_aggregate"] })
  const { state } = yield* harness.waitUntil("a and b share the work", Harness.sharedBy(["a", "b"]))
  const holders = (state: Harness.State, projection: string) =>
    [
      ...new Set(state.checkpoints.filter((row) => row.projection === projection).map(({ workerId }) => workerId))
    ].sort()
  assert.deepStrictEqual(holders(state, "per_aggregate"), ["a", "b"])
  assert.deepStrictEqual(holders(state, "shared_totals"), ["a"])

  // A new version adds a third projection, which no other worker carries.
  const c = yield* harness.start("c", { projections: [...both, "per_aggregate/new"] })
  const joined = yield* harness.waitUntil("c has joined", Harness.sharedBy(["a", "b", "c"]))
  assert.deepStrictEqual(holders(joined.state, "per_aggregate/new"), ["c"])
  yield* harness.append(300)
  yield* harness.quiesce([...both, "per_aggregate/new"])

  // Without a carrier its rows stay free at their positions.
  yield* c.stop
  const left = yield* harness.waitUntil("c has left", Harness.sharedBy(["a", "b"]))
  assert.deepStrictEqual(holders(left.state, "per_aggregate/new"), [null])
  yield* harness.append(100)
  yield* harness.quiesce(both)
  yield* a.kill
  yield* harness.waitUntil("b continues with its projections", Harness.sharedBy(["b"]))
  yield* harness.start("d", { projections: [...both, "per_aggregate/new"] })
  yield* harness.waitUntil("d claims what b does not carry", Harness.sharedBy(["b", "d"]))
  yield* harness.quiesce([...both, "per_aggregate/new"])
  assert.deepStrictEqual(yield* b.stop, { code: 0, signal: null })
})

test("three workers are restarted one after another under load", function*({ harness }) {
  const ids = ["pod-0", "pod-1", "pod-2"]
  const stopLoad = yield* harness.load({ perSecond: 500 })
  const start = (name: string, workerId: string) => harness.start(name, { workerId, delayMillis: 1 })
  const workers = yield* Effect.forEach(ids, (id) => start(id, id), { concurrency: "unbounded" })
  yield* harness.waitUntil("the three share the work", Harness.sharedBy(ids))
  for (const worker of workers) {
    assert.deepStrictEqual(yield* worker.stop, { code: 0, signal: null })
    yield* start(`${worker.id} of the new version`, worker.id)
    yield* harness.waitUntil(`${worker.id} is back`, Harness.sharedBy(ids))
  }
  yield* stopLoad
  const end = yield* harness.quiesce()
  assert.deepStrictEqual(end.refusals, [])
})
