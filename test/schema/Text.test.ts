import { assert, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import { label } from "../../src/schema/Event.ts"
import { ascii, cut, sentence, textProblem, wellFormed } from "../../src/schema/Text.ts"

/** Texts with lone surrogates, NUL and other control characters. */
const texts = Schema.Array(Schema.Int).pipe(Schema.check(Schema.isMaxLength(50)))
const textOf = (codes: ReadonlyArray<number>) => String.fromCharCode(...codes.map((code) => code & 0xFFFF))

it.prop("reduces any text to one that can be stored", { codes: texts, more: texts }, ({ codes, more }) => {
  const text = textOf(codes) + "\u{1F600}".repeat(codes.length) + textOf(more)
  assert.isUndefined(textProblem(wellFormed(text)))
  for (const longest of [3, 10, 21, 1000]) {
    const short = cut(text, longest)
    assert.isAtMost(short.length, longest)
    assert.isUndefined(textProblem(short))
  }
  assert.match(ascii(text), /^[ -~\t\r\n]*$/)
})

it("keeps storable text unchanged", () => {
  for (const text of ["", "a", "é 日本 \u{1F600} …\n"]) {
    assert.strictEqual(wellFormed(text), text)
    assert.strictEqual(cut(text, 100), text)
  }
  assert.strictEqual(ascii("a“é\u{1F600}\n"), "a\\u{201c}\\u{e9}\\u{1f600}\n")
})

it.each([
  ["a", "a."],
  ["a.", "a."],
  ["a. \n", "a."],
  ["a...", "a..."],
  ["why?", "why?"],
  ["(a.)", "(a.)."]
])("ends %j like a sentence", (text, expected) => assert.strictEqual(sentence(text), expected))

it("labels an event by its known fields, on one line", () => {
  const event = { eventType: "UserCreated", aggregateType: "User", aggregateId: "ada", aggregateVersion: 3n }
  assert.strictEqual(label(event), "type UserCreated, User \"ada\", version 3")
  assert.strictEqual(label({ aggregateId: "ada" }), "aggregate \"ada\"")
  assert.strictEqual(label({ ...event, aggregateId: "a\n\"b\"" }), "type UserCreated, User \"a \\\"b\\\"\", version 3")
  assert.isBelow(label({ ...event, eventType: "x".repeat(1000), aggregateId: "y".repeat(1000) }).length, 300)
})
