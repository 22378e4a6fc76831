import { assert, it } from "@effect/vitest"
import { Cause, Schema } from "effect"
import * as SqlError from "effect/sql/SqlError"
import { errorText, stackText } from "../../src/services/ErrorText.ts"

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

it("an error of the database is told by kind, SQLSTATE and constraint, never by its values", () => {
  assert.strictEqual(errorText(Cause.fail(unique)), "SqlError: UniqueViolation 23505 (users_pkey)")
  const wrapped = errorText(Cause.fail(new Refused({ cause: unique })))
  assert.strictEqual(wrapped, "Refused: refused (SqlError: UniqueViolation 23505 (users_pkey))")
  assert.notInclude(wrapped, "secret")
})

it("other errors are told by name and message, each once, and cut when long", () => {
  assert.strictEqual(errorText(Cause.die(new TypeError("no such thing"))), "TypeError: no such thing")
  assert.strictEqual(errorText(Cause.combine(Cause.fail("a"), Cause.fail("a"))), "a")
  assert.strictEqual(errorText(Cause.die(new Error("x".repeat(5000)))).length, 2001)
})

it("what is wrong with a statement is told by the server, which names no values there", () => {
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

it("causes are told, a few", () => {
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
