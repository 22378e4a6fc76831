/**
 * What the waits of the fault tests rely on: each fails when nothing happens any more.
 *
 * @module-tag long
 */
import { assert } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Process from "node:process"
import { test } from "./Live.ts"

/** A clock on which a second passes between any two looks at it. */
const hurried = Effect.map(Clock.Clock, (clock) => {
  let looks = 0n
  const monotonicTimeNanosUnsafe = () => clock.monotonicTimeNanosUnsafe() + ++looks * 1_000_000_000n
  const changed = { monotonicTimeNanosUnsafe, monotonicTimeNanos: Effect.sync(monotonicTimeNanosUnsafe) }
  return Object.assign(Object.create(clock), changed) as Clock.Clock
})

const messageOf = (exit: Exit.Exit<unknown, unknown>): string => {
  assert(Exit.isFailure(exit), "the wait has succeeded")
  return Cause.pretty(exit.cause)
}

test("a wait fails with the rows when they do not change any more", function*({ harness }) {
  const exit = yield* harness.waitUntil("there is a worker", ({ workers }) => workers.length > 0).pipe(
    Effect.provideService(Clock.Clock, yield* hurried),
    Effect.exit
  )
  assert.match(messageOf(exit), /No progress for .* while waiting until there is a worker/)
  assert.include(messageOf(exit), "0 events")
})

test("a wait fails with the output of a process that has ended by itself", function*({ harness }) {
  const worker = yield* harness.start("a")
  yield* harness.waitForOutput(worker, "Processing events...")
  Process.kill(worker.pid, "SIGKILL")
  const exit = yield* Effect.exit(harness.waitUntil("there are two workers", ({ workers }) => workers.length > 1))
  assert.include(messageOf(exit), "a ended by itself with SIGKILL")
  assert.include(messageOf(exit), "Worker registered: a")
})
