import { assert, it } from "@effect/vitest"
import { Schema } from "effect"
import * as Append from "../../src/schema/Append.ts"

const int = (minimum: number, maximum: number) => Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum, maximum })))

const stream = { boundedContext: "test", aggregateType: "Test", aggregateId: "a" }

it.prop("a batch is a repetition exactly if its events follow each other in the stream", {
  length: int(0, 5),
  batch: Schema.Array(int(1, 6)).pipe(Schema.check(Schema.isMaxLength(5)))
}, ({ batch, length }) => {
  const position = (version: number) => BigInt(version * 10)
  const found = Append.original(
    stream,
    batch.map((version) => version <= length ? { version: BigInt(version), position: position(version) } : undefined)
  )
  const all = Array.from({ length }, (_, index) => index + 1)
  const isPart = batch.length > 0 && `,${all},`.includes(`,${batch},`)
  assert.deepStrictEqual(
    found,
    isPart
      ? {
        stream,
        firstVersion: BigInt(batch[0]!),
        lastVersion: BigInt(batch.at(-1)!),
        positions: batch.map(position)
      }
      : undefined
  )
})
