import { assert, it } from "@effect/vitest"
import * as Checkpoint from "../../src/schema/Checkpoint.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import * as Succession from "../../src/schema/Succession.ts"

const fenceOf = (workerId: string) => ({ workerId, incarnation: 1n, generationId: 1n })

const row = (range: HashRange.HashRange, owner: string | undefined, projection = "users"): Checkpoint.Checkpoint => ({
  projection,
  range,
  position: 0n,
  replicaSet: "main",
  fence: owner === undefined ? undefined : fenceOf(owner),
  filter: "",
  halt: undefined
})

const quarter = (key: number) => HashRange.partition(key, 4)

it("a claim succeeds the rows of other workers that it covers, each for the part that was claimed", () => {
  const claim = { ...row(HashRange.partition(0, 2), "me"), fence: fenceOf("me") }
  const rows = [
    row({ start: 0, end: quarter(0).end }, undefined),
    row({ start: quarter(1).start, end: quarter(2).end }, "dead"),
    row(quarter(3), undefined),
    row(quarter(0), undefined, "orders")
  ]
  const ages = new Map(rows.map((row, index) => [
    Checkpoint.key(row),
    { unchangedForMillis: 10 * (index + 1), ownerSilentForMillis: 1000 * (index + 1) }
  ]))
  assert.deepStrictEqual(Succession.of([claim], rows, ages), [
    { projection: "users", range: quarter(0), kind: "handOver", afterMillis: 10 },
    { projection: "users", range: quarter(1), kind: "takeover", afterMillis: 2000 }
  ])
})

it("a worker does not succeed itself, and without a time there is no succession", () => {
  const claim = { ...row(HashRange.whole, "me"), fence: fenceOf("me") }
  const age = { unchangedForMillis: 10, ownerSilentForMillis: undefined }
  const ages = new Map([["users@0", age]])
  assert.deepStrictEqual(Succession.of([claim], [row(HashRange.whole, "me")], ages), [])
  assert.deepStrictEqual(Succession.of([claim], [row(HashRange.whole, "dead")], ages), [])
  assert.deepStrictEqual(Succession.of([claim], [], ages), [])
})

it("a clock that was set back gives no negative time", () => {
  const claim = { ...row(HashRange.whole, "me"), fence: fenceOf("me") }
  const ages = new Map([["users@0", { unchangedForMillis: -5, ownerSilentForMillis: undefined }]])
  assert.deepStrictEqual(Succession.of([claim], [row(HashRange.whole, undefined)], ages)[0]?.afterMillis, 0)
})
