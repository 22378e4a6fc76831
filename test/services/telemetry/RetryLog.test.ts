import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { TestClock } from "effect/testing"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import { CheckpointStore } from "../../../src/services/CheckpointStore.ts"
import { CoordinationStore } from "../../../src/services/CoordinationStore.ts"
import { EventStore } from "../../../src/services/EventStore.ts"
import { Membership } from "../../../src/services/Membership.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as RetryLog from "../../../src/services/telemetry/RetryLog.ts"
import { enter, event, logs, pass, unavailable } from "../World.ts"

const texts = (lines: ReturnType<typeof logs>["lines"]) => lines.map(({ level, text }) => `${level}: ${text}`)

it.effect("an outage logs a line at its start, summaries at growing intervals, and a line on recovery", () =>
  Effect.gen(function*() {
    const { layer, lines } = logs()
    const log = RetryLog.make()
    yield* Effect.gen(function*() {
      for (let second = 0; second < 120; second++) {
        for (const operation of ["A", "B", "C", "D", "E"]) yield* log.failed(operation, `no server ${second}.`)
        yield* TestClock.adjust("1 second")
      }
      for (const operation of ["A", "B", "C", "D", "E"]) yield* log.succeeded(operation)
      yield* log.succeeded("A")
    }).pipe(Effect.provide(layer))
    assert.deepStrictEqual(texts(lines), [
      "Warn: A failed and is retried: no server 0.",
      "Error: Still failing after 10s and 51 attempts: A, B, C and 2 more. Last failure: no server 10.",
      "Error: Still failing after 30s and 151 attempts: A, B, C and 2 more. Last failure: no server 30.",
      "Error: Still failing after 1m 10s and 351 attempts: A, B, C and 2 more. Last failure: no server 70.",
      "Info: Recovered after 2m and 600 failed attempts: A, B, C and 2 more work again."
    ])
  }))

it.effect("intermittent failures log one or two lines in every ten seconds", () =>
  Effect.gen(function*() {
    const { layer, lines } = logs()
    const log = RetryLog.make()
    yield* Effect.gen(function*() {
      for (let step = 0; step < 300; step++) {
        yield* log.failed("A", "no server.")
        yield* TestClock.adjust("50 millis")
        yield* log.succeeded("A")
        yield* TestClock.adjust("50 millis")
      }
    }).pipe(Effect.provide(layer))
    assert.isAtLeast(lines.length, 6)
    assert.isAtMost(lines.length, 7)
  }))

it.effect("recovery is logged without waiting for an operation that has ended", () =>
  Effect.gen(function*() {
    const { layer, lines } = logs()
    const log = RetryLog.make()
    yield* Effect.gen(function*() {
      yield* log.failed("A", "no server.")
      yield* log.failed("B", "no server.")
      yield* log.ended("B")
      yield* log.succeeded("A")
    }).pipe(Effect.provide(layer))
    assert.deepStrictEqual(texts(lines), [
      "Warn: A failed and is retried: no server.",
      "Info: Recovered after 1s and 2 failed attempts: A, B work again."
    ])
  }))

for (const busy of [true, false]) {
  it.effect(
    `an outage of 40 seconds logs at most 8 lines while 30 ranges ${busy ? "have work" : "wait for events"}`,
    () =>
      Effect.gen(function*() {
        const process = yield* enter(yield* MemoryStores.makeWorld)
        let isAway = false
        const failing = <S extends object>(service: S): S =>
          Object.fromEntries(
            Object.entries(service).map(([name, member]) => [
              name,
              typeof member === "function" && name !== "checkClient" && name !== "wakeUps" && name !== "watch"
                ? (...args: ReadonlyArray<unknown>) =>
                  Effect.suspend(() => isAway ? Effect.fail(unavailable) : member(...args))
                : member
            ])
          ) as S
        const lost = Effect.flatMap(
          Effect.sleep("100 millis"),
          () => isAway ? Effect.fail(unavailable) : Effect.void
        ).pipe(Effect.forever)
        const stores = process.stores.pipe(
          Context.add(EventStore, {
            ...failing(process.events),
            settledBeyond: (...args) => Effect.raceFirst(failing(process.events).settledBeyond(...args), lost)
          }),
          Context.add(CheckpointStore, failing(process.checkpoints)),
          Context.add(CoordinationStore, failing(process.coordination)),
          Context.add(Membership, failing(process.membership))
        )
        const projections = Array.from(
          { length: 30 },
          (_, index) => Projection.make(`projection ${index}`, { handle: () => Effect.void })
        )
        const { layer, lines } = logs()
        const { run } = yield* Orchestrator.make({ replicaSet: "main", projections }).pipe(Effect.provide(stores))
        const fiber = yield* Effect.forkDetach(Effect.provide(run, layer))
        yield* pass(2_000)
        const before = lines.length
        isAway = true
        if (busy) yield* process.events.append([event("a")])
        yield* pass(40_000)
        isAway = false
        yield* pass(10_000)
        const written = texts(lines.slice(before)).filter((line) => !line.startsWith("Debug"))
        assert.isAtMost(written.length, 8, written.join("\n"))
        assert.strictEqual(written.filter((line) => line.includes("and is retried")).length, 1, written.join("\n"))
        assert.strictEqual(written.filter((line) => line.includes("Recovered after 4")).length, 1, written.join("\n"))
        yield* Effect.forkDetach(Fiber.interrupt(fiber))
        yield* pass(2_000)
      })
  )
}

it.effect("an outage ends when all of its operations have ended; the next outage logs its own first line", () =>
  Effect.gen(function*() {
    const { layer, lines } = logs()
    const log = RetryLog.make()
    yield* Effect.gen(function*() {
      yield* log.failed("A", "no server.")
      yield* TestClock.adjust("5 seconds")
      yield* log.ended("A")
      yield* TestClock.adjust("1 hour")
      yield* log.failed("B", "no answer.")
      yield* TestClock.adjust("1 second")
      yield* log.succeeded("B")
    }).pipe(Effect.provide(layer))
    assert.deepStrictEqual(texts(lines), [
      "Warn: A failed and is retried: no server.",
      "Warn: B failed and is retried: no answer.",
      "Info: Recovered after 1s and 1 failed attempts: B works again."
    ])
  }))
