import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { TestClock } from "effect/testing"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import * as WorkerProcess from "../../src/testing/WorkerProcess.ts"

it.effect("a process that ignores SIGTERM fails the wait for its end, with its output", () =>
  Effect.gen(function*() {
    const worker = yield* WorkerProcess.spawn({
      id: "stubborn",
      script: "",
      env: {},
      nodeArguments: ["--eval", "process.on('SIGTERM', () => {}); setInterval(() => {}, 1000); console.log('ready')"],
      mayEnd: false
    })
    const printed = TimeLimits.waitUntil("it is ready", Effect.sync(worker.output), (text) => text.includes("ready"))
    yield* TestClock.withLive(printed)
    const stopping = yield* Effect.forkChild(worker.stop, { startImmediately: true })
    yield* TestClock.adjust(TimeLimits.stalled)
    const exit = stopping.pollUnsafe()
    assert(exit !== undefined && Exit.isFailure(exit), "the wait continues")
    assert.match(Cause.pretty(exit.cause), /stubborn did not end after SIGTERM:\s+ready/)
    yield* Fiber.interrupt(stopping)
  }).pipe(Effect.scoped))

it.live("a started process inherits how slow the machine is, and scales its limits", () =>
  Effect.gen(function*() {
    const module = import.meta.resolve("../../src/testing/TimeLimits.ts")
    const print = `import { scaledMillis } from ${JSON.stringify(module)}; console.log("millis", scaledMillis(1000))`
    const worker = yield* WorkerProcess.spawn({
      id: "scaled",
      script: "",
      env: { [TimeLimits.variable]: "2.5" },
      nodeArguments: ["--input-type=module", "--eval", print],
      mayEnd: true
    })
    assert.deepStrictEqual(yield* worker.ended, { code: 0, signal: null }, worker.output())
    assert.include(worker.output(), "millis 2500")
  }).pipe(Effect.scoped))
