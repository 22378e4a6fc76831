import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { TestClock } from "effect/testing"
import * as TxRef from "effect/TxRef"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import { StatementFailed, StoreError } from "../../../src/schema/Errors.ts"
import * as HashRange from "../../../src/schema/HashRange.ts"
import { CheckpointStore, Fenced, TransientFailure } from "../../../src/services/CheckpointStore.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as Hostile from "../../support/Hostile.ts"
import { breathe, Broken, enter, event, pass, restorePoint, runner, unavailable } from "../World.ts"
import {
  conflict,
  connectionLost,
  failingCommits,
  gate,
  haltAtSecond,
  ids,
  NoSuchCountry,
  recording
} from "./Failures.ts"

it.effect("commits the events before a failing event and records the halt in the row, the log and activity", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const tried: Array<string> = []
    const projection = recording(handled, (event) => {
      tried.push(event.aggregateId)
      return event.aggregateId === "user-3" ? Effect.fail(new NoSuchCountry("no country ZZ.")) : Effect.void
    })
    const worker = yield* runner(world, projection)
    yield* worker.events.append([event("user-1")])
    yield* worker.events.append([event("user-2")])
    yield* worker.events.append([event("user-3")])
    yield* worker.events.append([event("user-4")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(3_000)

    assert.deepStrictEqual(yield* TxRef.get(handled), ["user-1", "user-2"])
    const row = yield* worker.row
    assert.strictEqual(row.position, 2n)
    assert.strictEqual(row.halt?.position, 3n)
    const error = "type UserCreated, User \"user-3\", version 1: NoSuchCountry: no country ZZ."
    assert.strictEqual(row.halt?.error, error)
    const failed = (yield* worker.events.readStream({
      boundedContext: "app",
      aggregateType: "User",
      aggregateId: "user-3"
    }))[0]!
    assert.strictEqual(row.halt?.eventId, failed.eventId)
    assert.deepStrictEqual(worker.tags(), ["BatchCommitted", "RangeHalted"])
    assert.deepStrictEqual(worker.of("RangeHalted")[0]?.halt, {
      error,
      position: 3n,
      eventId: failed.eventId
    })
    const errors = worker.lines.filter(({ level }) => level === "Error")
    assert.strictEqual(errors.length, 1)
    const halted = (since: string) =>
      `Projection "users" is halted in range ${
        HashRange.format(HashRange.whole)
      }${since}: event ${failed.eventId} at position 3, ${error} Fix the handler and restart the worker: a worker that starts after the failure retries the event. Other ranges and projections continue.`
    assert.strictEqual(errors[0]!.text, halted(""))
    const before = tried.length
    yield* pass(10_000, 1_000)
    assert.strictEqual(tried.length, before, "the handler must not be called again")
    assert.strictEqual(yield* worker.drain(fiber), "drained")

    // A worker claims the halted range but does not retry the halt.
    assert.strictEqual(yield* worker.runOn({ ...worker.held, halt: row.halt }), "drained")
    assert.deepInclude(worker.lines.at(-1), { level: "Warn", text: halted(` since ${row.halt?.since.toISOString()}`) })
  }))

it.effect.each(
  [
    ["a defect", Effect.die(new Error("undefined is not a function")), "undefined is not a function"],
    ["its own interruption", Effect.interrupt, "nterrupt"],
    ["a failure that is not an Error", Effect.fail({ code: 7 }), "7"]
  ] as const
)("%s halts the range", ([, failure, text]) =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const worker = yield* runner(
      world,
      recording(handled, (event): Effect.Effect<unknown, unknown> => event.aggregateId === "b" ? failure : Effect.void)
    )
    assert.include((yield* haltAtSecond(worker, handled)).error, text)
  }))

it.effect.each(Hostile.values)("halts the range at a failure with %s", ([, value]) =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const worker = yield* runner(
      world,
      recording(handled, (event) => event.aggregateId === "b" ? Effect.die(value) : Effect.void)
    )
    assert.isNotEmpty((yield* haltAtSecond(worker, handled)).error)
  }))

it.effect("retries a transient failure after 10 ms to 5 s, or to 1 s while the server is unavailable, with 20 % jitter", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const script = failingCommits((attempt) => attempt <= 16 ? attempt % 2 === 0 ? unavailable : conflict : undefined)
    const worker = yield* runner(world, recording(handled), script)
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(800, 1)
    yield* pass(60_000, 20)

    const waits = script.attempts.slice(1).map((at, index) => at - script.attempts[index]!)
    assert.strictEqual(waits.length, 16)
    for (const [index, wait] of waits.entries()) {
      const isUnavailable = index % 2 === 1
      const base = Math.min(10 * 2 ** index, isUnavailable ? 1_000 : 5_000)
      assert.isAtLeast(wait, 0.8 * base - (base < 500 ? 1 : 20), `wait ${index + 1}`)
      assert.isAtMost(wait, 1.2 * base + (base < 500 ? 2 : 40), `wait ${index + 1}`)
    }
    const longest = waits.slice(-6)
    assert.isAbove(new Set(longest).size, 1, `no jitter: ${longest}`)

    assert.deepStrictEqual(yield* TxRef.get(handled), ["a"], "every attempt but the last must be rolled back")
    assert.deepStrictEqual(worker.of("BatchRetried").map(({ attempt }) => attempt), ids(16).map((_, n) => n + 1))
    // Every fifth conflict is logged as an error; an unavailable database has one line, then occasional summaries.
    const conflicts = worker.lines.filter(({ text }) => text.includes("times and is retried: Error: deadlock detected"))
    assert.deepStrictEqual(
      conflicts.map(({ level }) => level),
      [1, 3, 5, 7, 9, 11, 13, 15].map((n) => n % 5 === 0 ? "Error" : "Debug")
    )
    assert.include(conflicts[2]!.text, "failed 5 times")
    const unavailableLines = worker.lines.filter(({ text }) => text.includes("db:5432"))
    assert.strictEqual(unavailableLines[0]!.level, "Warn")
    assert.deepStrictEqual(new Set(unavailableLines.slice(1).map(({ level }) => level)), new Set(["Error"]))
    assert.isAtMost(unavailableLines.length, 4)
    assert.strictEqual(worker.lines.filter(({ level }) => level === "Info").length, 1)
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

it.effect("warns at intervals that a projection repeatedly loses conflicts, and states the remedy", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    let fails = (): TransientFailure | undefined => undefined
    const script = failingCommits(() => fails())
    // After a conflict, batches are back at their full size after three commits.
    const worker = yield* runner(world, recording(handled), { ...script, settings: { batchSize: 8 } })
    const fiber = yield* Effect.forkChild(worker.run)
    const handle = (id: string) => Effect.andThen(worker.events.append([event(id)]), pass(200))
    const warnings = () => worker.lines.filter(({ level }) => level === "Warn").map(({ text }) => text)
    /** One conflict before each commit. */
    const alternating = (failure: TransientFailure) => {
      let failed = false
      return () => {
        failed = !failed
        return failed ? failure : undefined
      }
    }

    fails = alternating(conflict)
    yield* handle("a")
    yield* handle("b")
    assert.deepStrictEqual(warnings(), [])
    yield* handle("c")
    const [warning] = warnings()
    for (
      const part of [
        "Projection \"users\"",
        HashRange.format(HashRange.whole),
        "3 batches",
        "deadlock detected",
        "one row for each aggregate",
        "docs/concepts.md"
      ]
    ) {
      assert.include(warning, part)
    }
    yield* Effect.forEach(ids(5), handle)
    assert.strictEqual(warnings().length, 1, "not a line for each conflict")
    yield* pass(600_000, 60_000)
    yield* handle("d")
    assert.strictEqual(warnings().length, 2)

    fails = () => undefined
    yield* Effect.forEach(ids(3), handle)
    yield* pass(600_000, 60_000)
    fails = alternating(conflict)
    yield* handle("e")
    yield* handle("f")
    assert.strictEqual(warnings().length, 2, "batches at their full size in between reset the count")
    fails = () => undefined
    yield* Effect.forEach(ids(3), handle)
    fails = alternating(new TransientFailure({ kind: "refusal", cause: new Error("out of memory") }))
    yield* Effect.forEach(ids(8), handle)
    assert.strictEqual(warnings().length, 2, "other transient failures are not conflicts")
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

it.effect("no range is halted at an event read in an earlier server epoch", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    let tried = 0
    const projection = Projection.make("users", {
      handle: () => Effect.suspend(() => ++tried === 1 ? Effect.fail(new Broken({ message: "no" })) : Effect.void)
    })
    const worker = yield* runner(world, projection, {
      checkpoints: (real) => ({
        halt: (held, halt) => {
          world.epoch = "2"
          return real.halt(held, halt)
        }
      })
    })
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(2_000)
    assert.strictEqual(tried, 2)
    const row = yield* worker.row
    assert.deepStrictEqual([row.position, row.halt], [1n, undefined])
    assert.strictEqual(worker.of("RangeHalted").length, 0)
    yield* worker.drain(fiber)
  }))

/** Reports a connection lost in a handler as a failure of the store. */
const lostInHandler = (real: CheckpointStore): Partial<CheckpointStore> => ({
  commit: (held, options, work) =>
    real.commit(held, options, work).pipe(
      Effect.catchTag("HandlerFailure", (failure) =>
        Effect.fail(Cause.squash(failure.cause) === connectionLost ? connectionLost : failure))
    )
})

it.effect("a range is halted at an event whose handler crashes the server, which ends the server epoch", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    let crashes = 0
    const projection = recording(handled, ({ aggregateId }) =>
      Effect.suspend(() => {
        if (aggregateId !== "b") return Effect.void
        world.epoch = `${++crashes} crashes`
        return Effect.fail(connectionLost)
      }))
    const worker = yield* runner(world, projection, { checkpoints: lostInHandler })
    yield* worker.events.append([event("a")])
    yield* worker.events.append([event("b")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(60_000)
    const { halt, position } = yield* worker.row
    assert.deepStrictEqual([yield* TxRef.get(handled), position, halt?.position], [["a"], 1n, 2n])
    assert.include(halt?.error, "the connection was lost 10 times in a row in the handler")
    assert.strictEqual(crashes, 20, "first with the event before it, then alone")
    yield* worker.drain(fiber)
  }))

it.effect("a transaction timeout that hits a different event each time is avoided by smaller batches", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const slow = Projection.make("slow", { handle: () => Effect.sleep("25 millis") })
    let commits = 0
    const job = yield* runner(world, slow, {
      checkpoints: (real) => ({
        commit: (held, options, work) =>
          Effect.timeoutOrElse(real.commit(held, options, work), {
            duration: commits++ % 2 === 0 ? 60 : 85,
            orElse: () => Effect.fail(new TransientFailure({ kind: "connection", cause: new Error("too long") }))
          })
      })
    })
    yield* Effect.forEach(Array.from({ length: 20 }), (_, index) => job.events.append([event(`user-${index}`)]))
    const fiber = yield* Effect.forkChild(job.run)
    yield* pass(60_000, 25)
    assert.strictEqual((yield* job.row).position, 20n)
    assert.isUndefined((yield* job.row).halt)
    yield* job.drain(fiber)
  }))

it.effect("halts at an event whose handler loses its connection ten times in a row", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const poison = recording(
      handled,
      ({ aggregateId }) => aggregateId === "b" ? Effect.fail(connectionLost) : Effect.void
    )
    const worker = yield* runner(world, poison, { checkpoints: lostInHandler })
    for (const id of ["a", "b", "c"]) yield* worker.events.append([event(id)])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(40_000)
    assert.deepStrictEqual(yield* TxRef.get(handled), ["a"])
    const { halt, position } = yield* worker.row
    assert.strictEqual(position, 1n)
    assert.strictEqual(halt?.position, 2n)
    assert.include(halt?.error ?? "", "connection was lost 10 times in a row in the handler: Error: connection reset")
    // Ten attempts each, the last without a retry: once behind the first event, once alone.
    assert.strictEqual(worker.of("BatchRetried").length, 9 * 2)
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

it.effect("connections lost repeatedly outside of handlers, as by a network fault, do not halt the range", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const { attempts, checkpoints } = failingCommits((attempt) => attempt <= 12 ? connectionLost : undefined)
    const worker = yield* runner(world, recording(handled), { checkpoints })
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(60_000, 100)
    assert.deepStrictEqual(yield* TxRef.get(handled), ["a"])
    assert.strictEqual(attempts.length, 13)
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

it.effect("a connection lost thirty times in a row after the handler halts the range; halving finds the event", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const worker = yield* runner(world, recording(handled), {
      checkpoints: (real) => ({
        commit: (held, options, work) =>
          real.commit(
            held,
            options,
            Effect.tap(work, () =>
              Effect.flatMap(TxRef.get(handled), (ids) =>
                ids.includes("c") ? Effect.fail(connectionLost) : Effect.void))
          ).pipe(
            Effect.catchTag("HandlerFailure", () =>
              Effect.fail(connectionLost))
          )
      })
    })
    for (const id of ["a", "b", "c", "d"]) yield* worker.events.append([event(id)])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(15 * 60_000, 1_000)
    assert.deepStrictEqual(yield* TxRef.get(handled), ["a", "b"])
    const { halt } = yield* worker.row
    assert.strictEqual(halt?.position, 3n)
    assert.include(halt?.error ?? "", "connection was lost 30 times in a row after the handler had ended: ")
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

it.effect("alternating connection losses in and after the handler reset neither count", () =>
  Effect.gen(function*() {
    let attempts = 0
    // Whether the handler fails on the loss before it ends depends on timing.
    const poison = Projection.make("users", {
      handle: () => ++attempts % 2 === 0 ? Effect.fail(connectionLost) : Effect.void
    })
    const worker = yield* runner(yield* MemoryStores.makeWorld, poison, {
      checkpoints: (real) => ({
        commit: (held, options, work) =>
          real.commit(held, options, Effect.andThen(work, Effect.fail(connectionLost))).pipe(
            Effect.catchTag("HandlerFailure", () => Effect.fail(connectionLost))
          )
      })
    })
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(10 * 60_000, 1_000)
    assert.strictEqual(attempts, 20)
    assert.strictEqual((yield* worker.row).halt?.position, 1n)
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

it.effect("a batch that fails while draining is not followed by another", () =>
  Effect.gen(function*() {
    const failing = yield* Deferred.make<void>()
    const go = yield* Deferred.make<void>()
    const calls: Array<string> = []
    const users = Projection.make("users", {
      handle: ({ aggregateId }) =>
        Effect.suspend(() => {
          calls.push(aggregateId)
          return aggregateId === "a" ? Effect.void : Deferred.succeed(failing, undefined).pipe(
            Effect.andThen(Deferred.await(go)),
            Effect.andThen(Effect.fail(new Broken({ message: "no" })))
          )
        })
    })
    const worker = yield* runner(yield* MemoryStores.makeWorld, users)
    for (const id of ["a", "b"]) yield* worker.events.append([event(id)])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(50)
    yield* Deferred.await(failing)
    const draining = yield* Effect.forkChild(worker.drain(fiber))
    yield* pass(50)
    yield* Deferred.succeed(go, undefined)
    assert.strictEqual(yield* Fiber.join(draining), "drained")
    assert.deepStrictEqual(calls, ["a", "b"])
  }))

it.effect("a connection lost before the handler began, or only twice, is retried without limit", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    let attempts = 0
    const worker = yield* runner(world, recording(handled), {
      checkpoints: (real) => ({
        commit: (held, options, work) =>
          Effect.suspend(() => {
            attempts++
            if (attempts <= 8) return Effect.fail(connectionLost)
            return attempts <= 10
              ? real.commit(held, options, Effect.andThen(work, Effect.fail(connectionLost))).pipe(
                Effect.catchTag("HandlerFailure", () => Effect.fail(connectionLost))
              )
              : real.commit(held, options, work)
          })
      })
    })
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(60_000, 100)
    assert.deepStrictEqual(yield* TxRef.get(handled), ["a"])
    assert.strictEqual((yield* worker.row).halt, undefined)
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

it.effect("a halted range is retried by a worker that starts later, and continues once the handler is fixed", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    let mended = false
    let tried = 0
    const projection = recording(handled, () => {
      tried++
      return mended ? Effect.void : Effect.fail(new Broken({ message: "broken" }))
    })
    /** Starts a worker, lets it run for 200 ms and stops it. */
    const epoch = Effect.scoped(Effect.gen(function*() {
      const worker = yield* runner(world, projection)
      const fiber = yield* Effect.forkChild(worker.run)
      yield* pass(200)
      const row = yield* worker.row
      yield* worker.drain(fiber)
      yield* worker.leave
      return { row, halted: worker.held.halt !== undefined }
    }))
    const first = yield* runner(world, projection)
    yield* first.events.append([event("a")])
    yield* first.leave
    yield* TestClock.adjust(1000)

    const broken = yield* epoch
    assert.isFalse(broken.halted)
    assert.strictEqual(broken.row.halt?.position, 1n)
    const triedBefore = tried
    yield* TestClock.adjust(1000)
    const again = yield* epoch
    assert.isAbove(tried, triedBefore, "the event must be retried")
    assert.strictEqual(again.row.halt?.position, 1n)
    mended = true
    yield* TestClock.adjust(1000)
    const last = yield* epoch
    assert.strictEqual(last.row.halt, undefined)
    assert.strictEqual(last.row.position, 1n)
    assert.deepStrictEqual(yield* TxRef.get(handled), ["a"])
  }))

it.effect("the end of a halted range writes no empty progress, which would clear the halt", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const projection = Projection.make("users", {
      aggregateTypes: ["User"],
      handle: () => Effect.fail(new Broken({ message: "broken" }))
    })
    const worker = yield* runner(world, projection)
    const fiber = yield* Effect.forkChild(worker.run)
    // The first empty progress is written at once; that of the second event is not due yet when the range halts.
    for (const aggregateType of ["Group", "Group", "User"]) {
      yield* worker.events.append([event("a", { aggregateType })])
      yield* pass(100)
    }
    const halted = yield* worker.row
    assert.deepStrictEqual([halted.position, halted.halt?.position], [1n, 3n])
    yield* pass(2_000)
    assert.strictEqual(yield* worker.drain(fiber), "drained")
    assert.deepStrictEqual(yield* worker.row, halted)
  }))

it.effect("halves the batch after a conflict and doubles it after each commit", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const { attempts, checkpoints } = failingCommits((attempt) => attempt <= 3 ? conflict : undefined)
    const worker = yield* runner(world, Projection.make("users", { handle: () => Effect.void }), { checkpoints })
    yield* worker.events.append(ids(16).map(() => event("a")))
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(1000)
    yield* worker.drain(fiber)
    assert.deepStrictEqual(worker.of("BatchCommitted").map(({ events }) => events), [2, 4, 8, 2])
    assert.strictEqual(attempts.length, 7)
  }))

it.effect("events before one whose handler meets a server fault are committed", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const badDisk = new StoreError({
      reason: new StatementFailed({ operation: "handle a batch", code: "58030", detail: "bad block", cause: "test" })
    })
    const users = recording(handled, ({ aggregateId }) => aggregateId === "c" ? Effect.fail(badDisk) : Effect.void)
    const worker = yield* runner(world, users, {
      checkpoints: (real) => ({
        commit: (held, options, work) =>
          Effect.catchTag(real.commit(held, options, work), "HandlerFailure", () => Effect.fail(badDisk))
      })
    })
    for (const id of ["a", "b", "c", "d"]) yield* worker.events.append([event(id)])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(60_000, 250)
    assert.deepStrictEqual(yield* TxRef.get(handled), ["a", "b"])
    assert.isUndefined((yield* worker.row).halt)
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

it.effect("draining waits for the current event, commits it and starts no other", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const handler = yield* gate
    const worker = yield* runner(
      world,
      recording(handled, (event) => event.aggregateId === "user-2" ? handler.wait : Effect.void)
    )
    yield* Effect.forEach(ids(5), (id) => worker.events.append([event(id)]))
    const fiber = yield* Effect.forkChild(worker.run)
    yield* handler.reached
    yield* worker.draining.open
    yield* breathe
    assert.isUndefined(fiber.pollUnsafe(), "draining must wait for the handler")
    yield* handler.open
    assert.strictEqual(yield* Fiber.join(fiber), "drained")
    assert.deepStrictEqual(yield* TxRef.get(handled), ["user-1", "user-2"])
    assert.strictEqual((yield* worker.row).position, 2n)
  }))

it.effect("draining interrupts waiting for events and backing off", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const idle = yield* runner(world, recording(handled))
    const waiting = yield* Effect.forkChild(idle.run)
    yield* breathe
    assert.strictEqual(yield* idle.drain(waiting), "drained")
    yield* idle.events.append([event("a")])
    yield* idle.leave

    const failing = yield* runner(world, recording(handled), failingCommits(() => unavailable))
    const backingOff = yield* Effect.forkChild(failing.run)
    yield* pass(30_000, 100)
    assert.strictEqual(yield* failing.drain(backingOff), "drained")
    assert.deepStrictEqual(yield* TxRef.get(handled), [])
  }))

it.effect("a fenced runner ends without writing", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const handler = yield* gate
    const first = yield* runner(world, recording(handled, () => handler.wait))
    yield* first.events.append([event("a")])
    const fiber = yield* Effect.forkChild(first.run)
    yield* handler.reached
    // The worker leaves while its handler runs, and another worker claims the range.
    yield* first.leave
    const second = yield* runner(world, recording(handled))
    assert.notDeepEqual(second.held.fence, first.held.fence)
    yield* handler.open
    assert.strictEqual(yield* Fiber.join(fiber), "fenced")
    assert.deepStrictEqual(yield* TxRef.get(handled), [])
    const row = yield* second.row
    assert.strictEqual(row.position, 0n)
    assert.deepStrictEqual(row.fence, second.held.fence)
    assert.deepStrictEqual(first.tags(), [])
  }))

it.effect("a halt or an advance that is fenced ends the runner", () =>
  Effect.gen(function*() {
    for (const eventTypes of [undefined, ["Never"]]) {
      const world = yield* MemoryStores.makeWorld
      const worker = yield* runner(
        world,
        Projection.make("users", { eventTypes, handle: () => Effect.fail(new Broken({ message: "broken" })) }),
        {
          checkpoints: () => ({
            halt: () => Effect.fail(new Fenced({ projection: "users" })),
            advance: () => Effect.fail(new Fenced({ projection: "users" }))
          })
        }
      )
      yield* worker.events.append([event("a")])
      const fiber = yield* Effect.forkChild(worker.run)
      yield* pass(1_500)
      assert.strictEqual(yield* Fiber.join(fiber), "fenced")
      assert.notInclude(worker.tags(), "RangeHalted")
    }
  }))

it.effect("an event whose commit is refused is found by halving the batch", () =>
  Effect.gen(function*() {
    const process = yield* enter(yield* MemoryStores.makeWorld)
    yield* Effect.forEach(Array.from({ length: 300 }), (_, index) => process.events.append([event(`user-${index}`)]))
    let calls = 0
    let hasPoison = false
    const users = Projection.make("users", {
      handle: (event) =>
        Effect.sync(() => {
          calls++
          hasPoison ||= event.aggregateId === "user-7"
        })
    })
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [users] }).pipe(
      Effect.provide(Context.add(process.stores, CheckpointStore, {
        ...process.checkpoints,
        // As a deferred constraint does.
        commit: (held, options, work) =>
          Effect.suspend(() => {
            hasPoison = false
            return process.checkpoints.commit(
              held,
              options,
              Effect.tap(work, () => hasPoison ? Effect.die(new Error("refused")) : Effect.void)
            )
          })
      }))
    )
    const fiber = yield* Effect.forkDetach(Effect.exit(orchestrator.catchUp))
    yield* pass(4000)
    const exit = fiber.pollUnsafe()
    assert.include(String(exit), "ProjectionHalted")
    assert.include(String(exit), "position 8")
    assert.isBelow(calls, 3000)
  }))

it.effect("a halt whose record the server has lost is recorded again", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const process = yield* enter(world)
    const users = Projection.make("users", { handle: () => Effect.fail("broken") })
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [users] }).pipe(
      Effect.provide(process.stores)
    )
    yield* Effect.forkDetach(Effect.exit(orchestrator.run))
    const halts = Effect.map(process.checkpoints.rows("users"), (rows) => rows.map(({ halt }) => halt?.error))
    yield* process.events.append([event("a")])
    yield* pass(3000)
    assert.deepStrictEqual(yield* halts, ["type UserCreated, User \"a\", version 1: broken"])
    const [row] = world.rows.values()
    yield* Effect.tx(TxRef.update(row!, (checkpoint) => checkpoint && { ...checkpoint, halt: undefined }))
    world.epoch = "2"
    yield* pass(10_000)
    assert.deepStrictEqual(yield* halts, ["type UserCreated, User \"a\", version 1: broken"])
  }))

it.effect("progress that the server has lost is redone, although no event follows", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const process = yield* enter(world)
    const users = Projection.make("users", { handle: () => Effect.void })
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [users] }).pipe(
      Effect.provide(process.stores)
    )
    yield* Effect.forkDetach(Effect.exit(orchestrator.run))
    yield* pass(1000)
    const positions = Effect.map(process.checkpoints.rows("users"), (rows) => rows.map(({ position }) => position))
    const comeBack = restorePoint(world, [...world.rows.values()])
    yield* Effect.forEach(["a", "b"], (id) => process.events.append([event(id)]))
    yield* pass(3000)
    assert.deepStrictEqual(yield* positions, [2n])
    yield* comeBack
    assert.deepStrictEqual(yield* positions, [0n])
    yield* pass(10_000)
    assert.deepStrictEqual(yield* positions, [2n])
  }))
