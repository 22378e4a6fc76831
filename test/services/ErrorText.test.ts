import { assert, it } from "@effect/vitest"
import { Cause, Schema } from "effect"
import * as SqlError from "effect/sql/SqlError"
import { StatementFailed, StoreError } from "../../src/schema/Errors.ts"
import { textProblem } from "../../src/schema/Text.ts"
import { errorText, stackText } from "../../src/services/ErrorText.ts"
import * as Hostile from "../support/Hostile.ts"

class Refused extends Schema.TaggedError<Refused>()("Refused", { cause: Schema.Defect() }) {
  override get message() {
    return "refused"
  }
}

const unique = new SqlError.SqlError({
  reason: new SqlError.UniqueViolation({
    constraint: "users_pkey",
    cause: Object.assign(new Error("duplicate key, secret value"), { code: "23505" }),
    message: "PgConnection: Query failed",
    operation: "query"
  })
})

const assertText = (text: string) => {
  assert.isNotEmpty(text.trim())
  assert.isAtMost(text.length, 2000)
  assert.isUndefined(textProblem(text))
}

it("describes a database error by kind, SQLSTATE and constraint, never by its values", () => {
  assert.strictEqual(errorText(Cause.fail(unique)), "SqlError: UniqueViolation 23505 (users_pkey)")
  const wrapped = errorText(Cause.fail(new Refused({ cause: unique })))
  assert.strictEqual(wrapped, "Refused: refused (SqlError: UniqueViolation 23505 (users_pkey))")
  assert.notInclude(wrapped, "secret")
})

it("describes a store error by its reason", () => {
  const reason = new StatementFailed({ operation: "append events", code: "23505", detail: "refused", cause: unique })
  assert.strictEqual(
    errorText(Cause.fail(new StoreError({ reason }))),
    `StatementFailed: ${reason.message} (SqlError: UniqueViolation 23505 (users_pkey))`
  )
})

it("describes other errors by name and message, each once, and cuts long texts", () => {
  assert.strictEqual(errorText(Cause.die(new TypeError("no such thing"))), "TypeError: no such thing")
  assert.strictEqual(errorText(Cause.combine(Cause.fail("a"), Cause.fail("a"))), "a")
  const long = errorText(Cause.die(new Error("x".repeat(5000))))
  assert.strictEqual(long.length, 2000)
  assert.isTrue(long.endsWith("x..."), "the ellipsis must be ASCII, which every database encoding can store")
  const pairs = errorText(Cause.fail("\u{1F600}".repeat(2000)))
  assert.isTrue(pairs.endsWith("\u{1F600}..."))
  assertText(pairs)
})

it("includes the server's message for a faulty statement, which contains no values", () => {
  const missing = new SqlError.SqlError({
    reason: new SqlError.SqlSyntaxError({
      cause: Object.assign(new Error("relation \"users\" does not exist"), { code: "42P01" }),
      message: "PgConnection: Query failed",
      operation: "query"
    })
  })
  assert.strictEqual(
    errorText(Cause.fail(missing)),
    "SqlError: SqlSyntaxError 42P01 (relation \"users\" does not exist)"
  )
})

it("includes the chain of causes, up to a limit", () => {
  const error = new Error("outer", { cause: new Error("inner") })
  assert.strictEqual(errorText(Cause.fail(error)), "Error: outer (Error: inner)")
  error.cause = error
  assert.strictEqual(errorText(Cause.fail(error)).split("outer").length - 1, 4)
})

it("a defect has a stack, a failure has none", () => {
  assert.include(stackText(Cause.die(new Error("secret"))), "ErrorText.test.ts")
  assert.notInclude(stackText(Cause.die(new Error("secret"))), "secret")
  assert.strictEqual(stackText(Cause.fail(new Error("told"))), "")
})

it.prop("describes any value that a handler may fail with", { recipe: Hostile.Recipe }, ({ recipe }) => {
  const value = Hostile.make(recipe)
  for (const cause of [Cause.fail(value), Cause.die(value), Cause.fail(new Error("outer", { cause: value }))]) {
    assertText(errorText(cause))
    assert.isUndefined(textProblem(stackText(cause)))
  }
}, { arbitrary: { runs: 500 } })

it.each(Hostile.values)("describes a failure with %s", (_, value) => {
  assertText(errorText(Cause.fail(value)))
  assertText(errorText(Cause.die(value)))
  assert.isString(stackText(Cause.die(value)))
})

it("keeps the readable parts of an error whose properties throw", () => {
  const getter = Object.defineProperty(new TypeError("no such thing"), "cause", {
    get: () => {
      throw new Error("inspected")
    }
  })
  assert.strictEqual(errorText(Cause.die(getter)), "TypeError: no such thing")
  assert.strictEqual(
    errorText(Cause.die(new AggregateError([new Error("a"), new TypeError("b")], "both"))),
    "AggregateError: both (Error: a; TypeError: b)"
  )
  assert.strictEqual(errorText(Cause.die(Hostile.otherRealm)), "TypeError: of another realm")
})
