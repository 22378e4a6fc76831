import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as SqlError from "effect/sql/SqlError"
import { describe } from "vitest"
import { sqlErrorIn, toStoreError } from "../../../../src/layers/postgres/connection/SqlErrors.ts"

const cause = new Error("test")
const conflict = new SqlError.SqlError({ reason: new SqlError.LockTimeoutError({ cause }) })
const lost = new SqlError.SqlError({ reason: new SqlError.ConnectionError({ cause }) })

describe("sqlErrorIn", () => {
  it("finds an error raised as a failure or as a defect, unless the fiber was also interrupted", () => {
    assert.strictEqual(sqlErrorIn(Cause.fail(conflict)), conflict)
    assert.strictEqual(sqlErrorIn(Cause.die(conflict)), conflict)
    assert.isUndefined(sqlErrorIn(Cause.combine(Cause.die(conflict), Cause.interrupt())))
  })

  it("prefers a lost connection to other errors: the ROLLBACK after a conflict did not reach the server", () => {
    assert.strictEqual(sqlErrorIn(Cause.combine(Cause.die(conflict), Cause.die(lost))), lost)
    assert.strictEqual(sqlErrorIn(Cause.combine(Cause.die(lost), Cause.die(conflict))), lost)
  })
})

describe("toStoreError", () => {
  const server = { server: "db:5432", database: "app", user: "worker" }
  const connecting = (code: string, text: string, message?: string) =>
    toStoreError(server, "open the stores")(
      new SqlError.SqlError({
        reason: new SqlError.ConnectionError({
          cause: Object.assign(new Error(text), { code }),
          operation: "connect",
          message
        })
      })
    )

  it("distinguishes a refused role from a wrong password, and includes the server's message", () => {
    const text = "no pg_hba.conf entry for host \"10.0.0.7\", user \"worker\", database \"app\", no encryption"
    const error = connecting("28000", text)
    assert.include(error.reason, { _tag: "DatabaseUnavailable", condition: "not admitted" })
    assert.include(error.message, text)
    assert.include(error.message, "sslmode=require")
  })

  it.each(["SELF_SIGNED_CERT_IN_CHAIN", "UNABLE_TO_VERIFY_LEAF_SIGNATURE", "ERR_TLS_CERT_ALTNAME_INVALID"])(
    "reports an untrusted certificate (%s) as a TLS failure, not as an unreachable network",
    (code) => {
      const error = connecting(code, "the message of Node", "PgConnection: Failed to connect")
      assert.include(error.reason, { _tag: "DatabaseUnavailable", condition: "TLS failed" })
      assert.include(error.message, "the message of Node")
    }
  )

  it("reports a lock timeout as a missing answer, so that readers retry", () => {
    const error = toStoreError(server, "follow the events")(conflict)
    assert.include(error.reason, { _tag: "DatabaseUnavailable", condition: "no answer in time" })
  })

  it("advises an append that lost a conflict to run its whole transaction again", () => {
    const error = toStoreError(server, "append events")(
      new SqlError.SqlError({
        reason: new SqlError.DeadlockError({ cause: Object.assign(new Error("deadlock detected"), { code: "40P01" }) })
      })
    )
    assert.include(error.reason, { _tag: "StatementFailed", code: "40P01" })
    assert.include(error.message, "Retry the whole transaction")
  })
})
