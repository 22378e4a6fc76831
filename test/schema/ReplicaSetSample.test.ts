import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Struct from "effect/Struct"
import * as ReplicaSetSample from "../../src/schema/ReplicaSetSample.ts"
import type * as Status from "../../src/schema/Status.ts"

const at = new Date(1_000_000)
const ago = (seconds: number) => new Date(at.getTime() - seconds * 1000)

const range = (rest: Partial<Status.Range>): Status.Range => ({
  start: 0,
  end: 10,
  position: 5n,
  owner: "a",
  lag: { events: 0n, isEstimate: false },
  changedAt: ago(0),
  ...rest
})

const waiting = (events: bigint, oldest: number, changed: number, rest: Partial<Status.Range> = {}) =>
  range({ lag: { events, isEstimate: false, oldest: ago(oldest) }, changedAt: ago(changed), ...rest })

const ownerless = (range: Status.Range): Status.Range => Struct.omit(range, ["owner"])

const sampleOf = (ranges: ReadonlyArray<Status.Range>) => {
  const replicaSets = ["other", "main"].map((replicaSet) => ({
    replicaSet,
    workers: [],
    projections: [{ projection: `${replicaSet} users`, filter: "", ranges }]
  }))
  const { projections } = ReplicaSetSample.make({ at, openWriters: [], replicaSets }, "main", [])
  assert.deepStrictEqual(projections.map(({ projection }) => projection), ["main users"])
  const { lag, lagEvents, rangesWithoutOwner, stalled } = projections[0]!
  return [Number(lagEvents), Duration.toSeconds(lag), Duration.toSeconds(stalled), rangesWithoutOwner]
}

it("a projection has the events of all its ranges, and the lag of the one that is furthest behind", () => {
  assert.deepStrictEqual(sampleOf([range({ changedAt: ago(9000) })]), [0, 0, 0, 0])
  assert.deepStrictEqual(sampleOf([waiting(2n, 7, 3), waiting(3n, 5, 4), range({})]), [5, 7, 4, 0])
  assert.deepStrictEqual(sampleOf([range({}), ownerless(range({})), ownerless(waiting(1n, 2, 1))]), [1, 2, 1, 2])
})

it("a range is stalled only while it has events to handle", () => {
  // Idle for an hour, and its first event is one second old.
  assert.deepStrictEqual(sampleOf([waiting(1n, 1, 3600)]), [1, 1, 1, 0])
  // It makes progress through events that are an hour old.
  assert.deepStrictEqual(sampleOf([waiting(1n, 3600, 1)]), [1, 3600, 1, 0])
})

it("a time in the future counts as now", () => {
  assert.deepStrictEqual(sampleOf([waiting(1n, -5, -5)]), [1, 0, 0, 0])
})

it("the settled lag is the age of the oldest writer, or how long this worker has observed it", () => {
  const of = (openWriters: NonNullable<Status.Status["openWriters"]>) =>
    Duration.toSeconds(
      ReplicaSetSample.make({ at, openWriters, replicaSets: [] }, "main", [
        { pid: 7, openFor: Duration.seconds(40) },
        { pid: undefined, openFor: Duration.seconds(50) }
      ]).settledLag
    )
  assert.strictEqual(of([]), 0)
  assert.strictEqual(of([{ pid: 6, since: ago(20) }, { pid: 8, since: ago(30) }]), 30)
  // The role may not read when these began.
  assert.strictEqual(of([{ pid: 7 }, { pid: 8 }]), 40)
  assert.strictEqual(of([{}, { pid: 7 }]), 50)
})

it("parked events have the age of the oldest one", () => {
  const of = (parked: Status.Parked | undefined) => {
    const projection = { projection: "users", filter: "", ranges: [], ...(parked === undefined ? {} : { parked }) }
    const replicaSets = [{ replicaSet: "main", workers: [], projections: [projection] }]
    const [sample] = ReplicaSetSample.make({ at, replicaSets }, "main", []).projections
    return [sample!.parkedEvents, sample!.parkedKeys, Duration.toSeconds(sample!.parkedFor)]
  }
  assert.deepStrictEqual(of(undefined), [0, 0, 0])
  assert.deepStrictEqual(of({ events: 3, keys: 2, oldest: ago(90) }), [3, 2, 90])
})
