import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as SqlError from "effect/sql/SqlError"
import { describe } from "vitest"
import { sqlErrorIn } from "../../../src/layers/postgres/DatabaseErrors.ts"

const cause = new Error("test")
const conflict = new SqlError.SqlError({ reason: new SqlError.LockTimeoutError({ cause }) })
const lost = new SqlError.SqlError({ reason: new SqlError.ConnectionError({ cause }) })

describe("sqlErrorIn", () => {
  it("finds what was raised and what arrives as a defect; an interruption outweighs it", () => {
    assert.strictEqual(sqlErrorIn(Cause.fail(conflict)), conflict)
    assert.strictEqual(sqlErrorIn(Cause.die(conflict)), conflict)
    assert.isUndefined(sqlErrorIn(Cause.combine(Cause.die(conflict), Cause.interrupt())))
  })

  it("of several, the loss of the connection counts: the ROLLBACK after a conflict did not reach the server", () => {
    assert.strictEqual(sqlErrorIn(Cause.combine(Cause.die(conflict), Cause.die(lost))), lost)
    assert.strictEqual(sqlErrorIn(Cause.combine(Cause.die(lost), Cause.die(conflict))), lost)
  })
})
