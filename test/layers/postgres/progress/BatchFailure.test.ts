import { assert, describe, it } from "@effect/vitest"
import { Cause, Schema } from "effect"
import * as SqlError from "effect/sql/SqlError"
import * as BatchFailure from "../../../../src/layers/postgres/progress/BatchFailure.ts"
import { DatabaseUnavailable, ReadOnlyDatabase, StoreError } from "../../../../src/schema/Errors.ts"
import { Fenced, HandlerFailure, TransientFailure } from "../../../../src/services/CheckpointStore.ts"
import * as Hostile from "../../../support/Hostile.ts"
import { reasonOf } from "../../../support/StoreErrors.ts"

const server = { server: "db:5432", database: "app", user: "worker" }

/** An error of a statement, as the driver reports it. */
const sqlError = (
  Reason: new(options: { cause: unknown; operation: string }) => SqlError.SqlError["reason"],
  code?: string,
  message = "test"
) =>
  new SqlError.SqlError({
    reason: new Reason({ cause: Object.assign(new Error(message), { code }), operation: "query" })
  })

const lost = sqlError(SqlError.ConnectionError)
const terminated = sqlError(SqlError.UnknownError, "57P01")
const deadlock = sqlError(SqlError.DeadlockError, "40P01")
const timeout = sqlError(SqlError.StatementTimeoutError, "57014")
const fullDisk = sqlError(SqlError.UnknownError, "53100")
const badDisk = sqlError(SqlError.UnknownError, "58030")
const missingFile = sqlError(SqlError.UnknownError, "58P01")
const constraint = sqlError(SqlError.ConstraintError, "23514")
const aborted = sqlError(SqlError.UnknownError, "25P02")
const rolledBack = sqlError(SqlError.UnknownError, undefined, "COMMIT rolled back an aborted transaction")
const released = sqlError(SqlError.ConnectionError, undefined, "Pinned connection was released")

/** The kind of a failure, and what the handler did wrong, in short. */
const describeFailure = (failure: BatchFailure.RollBackReason): string => {
  if (failure._tag === "TransientFailure") return failure.kind
  if (failure._tag !== "HandlerFailure") return reasonOf(failure)._tag
  const [first] = failure.cause.reasons
  const message = first !== undefined && Cause.isDieReason(first) && first.defect instanceof Error
    ? first.defect.message
    : ""
  return /its error was ignored|outlived its batch|not because its range was closed/.exec(message)?.[0] ?? failure._tag
}

describe("a handler's failure", () => {
  it.each<readonly [string, Cause.Cause<unknown>, string]>([
    ["an error of its own", Cause.fail("no"), "HandlerFailure"],
    ["a defect", Cause.die(new Error("bug")), "HandlerFailure"],
    ["a violated constraint", Cause.fail(constraint), "HandlerFailure"],
    ["a missing file that its statement reads", Cause.fail(missingFile), "HandlerFailure"],
    ["a deadlock", Cause.fail(deadlock), "conflict"],
    ["a statement timeout", Cause.die(timeout), "refusal"],
    ["a full disk", Cause.fail(fullDisk), "refusal"],
    ["a deadlock inside an error of its own", Cause.fail({ cause: { cause: deadlock } }), "conflict"],
    ["a disk that cannot be read", Cause.fail(badDisk), "StatementFailed"],
    ["a lost connection", Cause.fail(lost), "SqlError"],
    ["a lost connection inside an error of its own", Cause.die({ cause: terminated }), "SqlError"],
    ["a statement in an aborted transaction", Cause.fail(aborted), "its error was ignored"],
    ["a statement on a released connection", Cause.fail(released), "outlived its batch"],
    ["an interruption of itself", Cause.interrupt(1), "not because its range was closed"],
    [
      "an interruption besides a lost connection",
      Cause.combine(Cause.fail(lost), Cause.interrupt(1)),
      "not because its range was closed"
    ]
  ])("%s", (_, cause, expected) => {
    assert.strictEqual(describeFailure(BatchFailure.classifyHandler(server, cause)), expected)
  })

  it("is classified whatever the value is", () => {
    for (const [what, value] of Hostile.values) {
      assert.strictEqual(BatchFailure.classifyHandler(server, Cause.fail(value))._tag, "HandlerFailure", what)
    }
  })
})

const begun = { transaction: { pid: "1", begun: "2" }, hasAdvanced: false, rollBackReason: undefined }
const advanced = { ...begun, hasAdvanced: true }

describe("a transaction's failure", () => {
  const classify = (
    cause: Cause.Cause<BatchFailure.RollBack | SqlError.SqlError | StoreError>,
    progress: BatchFailure.Progress
  ): string =>
    BatchFailure.match(BatchFailure.classify(server, cause, progress), {
      UnknownCommit: () => "unknown commit",
      Failed: ({ failure }) => describeFailure(failure),
      Interrupted: () => "interrupted",
      Died: () => "died"
    })

  it.each([
    ["a lost connection before the first answer", lost, { ...begun, transaction: undefined }, "DatabaseUnavailable"],
    ["a lost connection during the batch", lost, begun, "unknown commit"],
    ["a lost connection during COMMIT", terminated, advanced, "unknown commit"],
    ["a serialization failure at COMMIT", sqlError(SqlError.SerializationError, "40001"), advanced, "conflict"],
    ["a deferred constraint that is violated at COMMIT", constraint, advanced, "HandlerFailure"],
    ["a full disk at COMMIT", fullDisk, advanced, "refusal"],
    ["a bad disk at COMMIT", badDisk, advanced, "StatementFailed"],
    ["a COMMIT that is answered with ROLLBACK", rolledBack, advanced, "its error was ignored"],
    ["an advance in an aborted transaction", aborted, begun, "its error was ignored"],
    ["another error of a statement of the batch", constraint, begun, "StatementFailed"]
  ])("%s", (_, error, progress, expected) => {
    assert.strictEqual(classify(Cause.fail(error), progress), expected)
    assert.strictEqual(classify(Cause.die(error), progress), expected, "as a defect, after a failed ROLLBACK")
  })

  it("a transaction that has not begun in time, and a bug", () => {
    const late = new StoreError({
      reason: new DatabaseUnavailable({ ...server, condition: "no connection in time", cause: undefined })
    })
    assert.strictEqual(classify(Cause.fail(late), { ...begun, transaction: undefined }), "DatabaseUnavailable")
    assert.strictEqual(classify(Cause.die(new Error("bug")), begun), "died")
  })
})

describe("whatever else failed,", () => {
  const rollBackReasons = [
    undefined,
    new Fenced({ projection: "p" }),
    new HandlerFailure({ cause: Cause.fail("no") }),
    new StoreError({ reason: new ReadOnlyDatabase({ server: "db" }) }),
    new TransientFailure({ kind: "conflict", cause: deadlock }),
    lost
  ]
  const errors = [lost, terminated, deadlock, timeout, badDisk, constraint, aborted, rolledBack]
  const index = (count: number) => Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum: 0, maximum: count - 1 })))
  const situation = {
    reason: index(rollBackReasons.length),
    raised: Schema.Array(index(errors.length)),
    hasBegun: Schema.Boolean,
    hasAdvanced: Schema.Boolean
  }
  /** A cause with these errors: the first is a failure, the others are defects. */
  const causeOf = (raised: ReadonlyArray<number>) =>
    Cause.fromReasons<BatchFailure.RollBack | SqlError.SqlError>(
      raised.map((index, place) =>
        place === 0 ? Cause.makeFailReason(errors[index]!) : Cause.makeDieReason(errors[index]!)
      )
    )
  const progressOf = (reason: number, hasBegun: boolean, hasAdvanced: boolean): BatchFailure.Progress => ({
    transaction: hasBegun ? begun.transaction : undefined,
    hasAdvanced,
    rollBackReason: rollBackReasons[reason]
  })

  it.prop("a lost connection makes the outcome unknown exactly if the batch has begun", situation, (given) => {
    const { hasAdvanced, hasBegun, raised, reason } = given
    const failure = BatchFailure.classify(server, causeOf(raised), progressOf(reason, hasBegun, hasAdvanced))
    const isLost = rollBackReasons[reason] === lost || raised.some((index) => index <= 1)
    assert.strictEqual(failure._tag === "UnknownCommit", isLost && hasBegun)
  })

  it.prop("a recorded reason is kept if the connection is not lost", situation, (given) => {
    const { hasAdvanced, hasBegun, reason } = given
    const raised = given.raised.filter((index) => index > 1)
    if (rollBackReasons[reason] === undefined || rollBackReasons[reason] === lost) return
    const failure = BatchFailure.classify(server, causeOf(raised), progressOf(reason, hasBegun, hasAdvanced))
    assert(failure._tag === "Failed")
    assert.isTrue(failure.failure === rollBackReasons[reason])
  })

  it.prop("an interruption of the caller stays an interruption", situation, (given) => {
    const cause = Cause.combine(causeOf(given.raised), Cause.interrupt(1))
    const progress = progressOf(given.reason, given.hasBegun, given.hasAdvanced)
    const failure = BatchFailure.classify(server, cause, progress)
    assert(failure._tag === "Interrupted")
    assert.isTrue(Cause.hasInterruptsOnly(failure.cause))
  })
})
