import { assert, describe, it } from "@effect/vitest"
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

const permanent: ReadonlySet<string> = new Set([
  "wrong password",
  "not admitted",
  "TLS failed",
  "unknown database",
  "unknown host"
])
const reasons: ReadonlyArray<readonly [StoreErrorReason, isRetryable: boolean]> = [
  ...DatabaseUnavailable.fields.condition.literals.map((condition) =>
    [new DatabaseUnavailable({ ...login, condition }), !permanent.has(condition)] as const
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
  it("has its reason's message, and is retryable if the same call may succeed later without intervention", () => {
    for (const [reason, isRetryable] of reasons) {
      assert.strictEqual(reason.isRetryable, isRetryable, reason.message)
      assert.include(new StoreError({ reason }), { isRetryable, message: reason.message, cause: reason })
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
})
