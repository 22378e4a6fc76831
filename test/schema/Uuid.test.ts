import { assert, it } from "@effect/vitest"
import * as Uuid from "../../src/schema/Uuid.ts"

it("a version 7 UUID starts with its timestamp and has the version and variant bits", () => {
  assert.strictEqual(Uuid.v7(0x0123456789ab, [0, 0, 0]), "01234567-89ab-7000-8000-000000000000")
  const largest = 1 - Number.EPSILON / 2
  assert.strictEqual(Uuid.v7(0, [largest, largest, largest]), "00000000-0000-7fff-bfff-ffffffffffff")
})

it("only hyphenated hexadecimal text is a UUID", () => {
  assert.isTrue(Uuid.isUuid("01234567-89AB-cdef-0123-456789abcdef"))
  for (
    const text of [
      "",
      "01234567-89ab-cdef-0123-456789abcde",
      "g1234567-89ab-cdef-0123-456789abcdef",
      "01234567-89ab-cdef-0123-456789abcdef\n"
    ]
  ) {
    assert.isFalse(Uuid.isUuid(text))
  }
})
