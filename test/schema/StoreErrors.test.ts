import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import {
  DatabaseUnavailable,
  ReadOnlyDatabase,
  StatementFailed,
  StoreError,
  type StoreErrorReason,
  UnsupportedDatabase
} from "../../src/schema/Errors.ts"

const login = { server: "db:5432", database: "app", user: "app", cause: new Error("socket") }
const statement = { operation: "append events", detail: "refused", cause: new Error("refused") }
const unavailable = (condition: DatabaseUnavailable["condition"]) => new DatabaseUnavailable({ ...login, condition })

const permanent: ReadonlySet<string> = new Set([
  "wrong password",
  "not admitted",
  "TLS failed",
  "unknown database",
  "unknown host"
])
const reasons: ReadonlyArray<readonly [StoreErrorReason, isRetryable: boolean]> = [
  ...DatabaseUnavailable.fields.condition.literals.map((condition) =>
    [unavailable(condition), !permanent.has(condition)] as const
  ),
  ...["40001", "40P01", "53100", "53300", "58030"].map((code) =>
    [new StatementFailed({ ...statement, code }), true] as const
  ),
  ...["23505", "25006", "42501", "XX001"].map((code) => [new StatementFailed({ ...statement, code }), false] as const),
  [new StatementFailed(statement), false],
  [new ReadOnlyDatabase({ server: "db:5432" }), false],
  [new UnsupportedDatabase({ problem: "It is PostgreSQL 9.", advice: "Use PostgreSQL 14." }), false]
]

describe("a StoreError", () => {
  it("is retryable if the same call may succeed later without intervention", () => {
    for (const [reason, isRetryable] of reasons) {
      assert.strictEqual(reason.isRetryable, isRetryable, reason.message)
      assert.strictEqual(new StoreError({ reason }).isRetryable, isRetryable, reason.message)
    }
  })

  it("has the message of its reason, and the reason as its cause", () => {
    for (const [reason] of reasons) {
      const error = new StoreError({ reason })
      assert.strictEqual(error.message, reason.message)
      assert.strictEqual(error.cause, reason)
    }
  })

  it("states whether an append may have been committed", () => {
    for (const [reason] of reasons) assert.isFalse(new StoreError({ reason }).mayHaveCommitted)
    for (
      const reason of [
        new DatabaseUnavailable({ ...login, condition: "connection lost", mayHaveCommitted: true }),
        new StatementFailed({ ...statement, mayHaveCommitted: true })
      ]
    ) {
      const error = new StoreError({ reason })
      assert.isTrue(error.mayHaveCommitted)
      assert.include(error.message, "may have been committed")
    }
  })

  it("survives JSON", () => {
    const codec = Schema.toCodecJson(StoreError)
    for (const [reason] of reasons) {
      const error = new StoreError({ reason })
      const json = JSON.stringify(Schema.encodeSync(codec)(error))
      const decoded = Schema.decodeUnknownSync(codec)(JSON.parse(json))
      assert.instanceOf(decoded, StoreError)
      assert.strictEqual(decoded.message, error.message)
      assert.strictEqual(decoded.isRetryable, error.isRetryable)
      assert.strictEqual(JSON.stringify(Schema.encodeSync(codec)(decoded)), json)
    }
  })

  it.effect("is caught by its reason", () =>
    Effect.gen(function*() {
      const handled = yield* Effect.fail(new StoreError({ reason: unavailable("refused") })).pipe(
        Effect.catchReason("StoreError", "DatabaseUnavailable", ({ condition }) => Effect.succeed(condition))
      )
      assert.strictEqual(handled, "refused")
    }))
})
