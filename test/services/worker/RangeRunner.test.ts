import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as SqlError from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import * as TxRef from "effect/TxRef"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import {
  CheckpointAheadOfEvents,
  DatabaseUnavailable,
  EventTooLarge,
  EventUnreadable,
  StoreFailure
} from "../../../src/schema/Errors.ts"
import type { Event } from "../../../src/schema/Event.ts"
import * as HashRange from "../../../src/schema/HashRange.ts"
import { type CheckpointStore, Fenced, TransientFailure } from "../../../src/services/CheckpointStore.ts"
import { tryRead } from "../../../src/services/ErrorText.ts"
import type { EventStore } from "../../../src/services/EventStore.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as Hostile from "../../support/Hostile.ts"
import { breathe, Broken, event, pass, runner } from "../World.ts"

/** Records the ids that it has handled, in the transaction. */
const recording = (
  handled: TxRef.TxRef<ReadonlyArray<string>>,
  before: (event: Event) => Effect.Effect<unknown, unknown> = () => Effect.void
) =>
  Projection.make("users", {
    handle: Effect.fnUntraced(function*(event) {
      yield* before(event)
      yield* TxRef.update(handled, (ids) => [...ids, event.aggregateId])
    })
  })

const ids = (count: number) => Array.from({ length: count }, (_, index) => `user-${index + 1}`)

class NoSuchCountry extends Error {
  override readonly name = "NoSuchCountry"
}

const unavailable = new DatabaseUnavailable({
  reason: "shutting down",
  server: "db:5432",
  database: "app",
  user: "app",
  cause: "test"
})

const conflict = new TransientFailure({ kind: "conflict", cause: new Error("deadlock detected") })
const connectionLost = new TransientFailure({ kind: "connection", cause: new Error("connection reset") })

/** A commit that rolls back and fails on every attempt for which `failure` returns an error. */
const failingCommits = (failure: (attempt: number) => TransientFailure | DatabaseUnavailable | Fenced | undefined) => {
  const attempts: Array<number> = []
  return {
    attempts,
    checkpoints: (real: CheckpointStore["Service"]): Partial<CheckpointStore["Service"]> => ({
      commit: (held, options, work) =>
        Effect.flatMap(Clock.currentTimeMillis, (now) => {
          attempts.push(now)
          const error = failure(attempts.length)
          // As with a real failure, the handler runs and is rolled back.
          return error === undefined
            ? real.commit(held, options, work)
            : real.commit(held, options, Effect.andThen(work, Effect.fail(error))).pipe(
              Effect.catchTag("HandlerFailure", () => Effect.fail(error))
            )
        })
    })
  }
}

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
    yield* worker.events.append([event("a")])
    yield* worker.events.append([event("b")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(200)
    assert.deepStrictEqual(yield* TxRef.get(handled), ["a"])
    const { halt, position } = yield* worker.row
    assert.strictEqual(position, 1n)
    assert.strictEqual(halt?.position, 2n)
    assert.include(halt?.error ?? "", text)
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

it.effect.each(Hostile.values)("halts the range at a failure with %s", ([, value]) =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const worker = yield* runner(
      world,
      recording(handled, (event) => event.aggregateId === "b" ? Effect.die(value) : Effect.void)
    )
    yield* worker.events.append([event("a")])
    yield* worker.events.append([event("b")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(200)
    assert.deepStrictEqual(yield* TxRef.get(handled), ["a"])
    const { halt, position } = yield* worker.row
    assert.deepStrictEqual([position, halt?.position], [1n, 2n])
    assert.isNotEmpty(halt?.error)
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

const promise: unknown = globalThis.Promise.resolve(1)

/** Like the query builders of other libraries, which execute only when awaited. */
const thenable = ((method: string) => ({ [method]: () => {} }))("then")

const unused: ReadonlyArray<readonly [string, () => unknown, string]> = [
  ["an Effect", () => Effect.succeed(Effect.sync(() => {})), "succeeded with an Effect"],
  ["an Effect of an async operation", () => Effect.sync(() => Effect.promise(async () => {})), "yield*"],
  ["Effects in an array", () => Effect.sync(() => [1, 2].map((n) => Effect.sync(() => n))), "Effect.all"],
  ["an Effect that fails", () => Effect.sync(() => Effect.fail("not raised")), "return yield*"],
  ["an error that can be yielded", () => Effect.sync(() => new Broken({ message: "not raised" })), "return yield*"],
  ["a failed Exit", () => Effect.exit(Effect.fail("not raised")), "Effect.ignore"],
  ["a Stream", () => Effect.succeed(Stream.make(1)), "succeeded with a Stream"],
  ["a Promise", () => Effect.succeed(promise), "succeeded with a Promise"],
  ["Promises in an array", () => Effect.succeed([promise]), "Effect.tryPromise"],
  ["a query of another library", () => Effect.succeed(thenable), "thenable"],
  ["nothing at all", () => undefined, "did not return an Effect"],
  ["a Promise instead of an Effect", async () => {}, "async function"],
  ["a generator instead of an Effect", function*() {}, "generator function"]
]

it.effect.each(unused)(
  "halts the range where the handler's result is %s",
  ([, handle, text]) =>
    Effect.gen(function*() {
      const world = yield* MemoryStores.makeWorld
      const handled = yield* TxRef.make<ReadonlyArray<string>>([])
      const { handle: record } = recording(handled)
      const worker = yield* runner(
        world,
        Projection.make("users", {
          // As from JavaScript, or through `any`.
          handle: (event) => event.aggregateId === "b" ? handle() as Effect.Effect<unknown> : record(event)
        })
      )
      yield* worker.events.append([event("a")])
      yield* worker.events.append([event("b")])
      const fiber = yield* Effect.forkChild(worker.run)
      yield* pass(200)
      assert.deepStrictEqual(yield* TxRef.get(handled), ["a"])
      const { halt, position } = yield* worker.row
      assert.deepStrictEqual([position, halt?.position], [1n, 2n])
      assert.include(halt?.error, "HandlerResultUnused: ")
      assert.include(halt?.error, text)
      assert.strictEqual(yield* worker.drain(fiber), "drained")
    })
)

it.effect("accepts any other handler result", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const results: ReadonlyArray<Effect.Effect<unknown, unknown>> = [
      Effect.exit(Effect.void),
      Effect.forEach([1, 2], () => Effect.exit(Effect.void)),
      Effect.succeed(new Error("no Effect")),
      Effect.option(Effect.fail("ignored")),
      Effect.result(Effect.fail("ignored")),
      Effect.forkChild(Effect.void),
      Effect.succeed([]),
      Effect.succeed([{ id: 1 }]),
      Effect.succeed(() => Effect.void),
      // Except Effects and thenables, which are refused.
      ...Hostile.values.filter(([what, value]) =>
        what !== "a thenable" && tryRead(() => value instanceof SqlError.SqlError) !== true
      ).map(([, value]) => Effect.succeed(value))
    ]
    const worker = yield* runner(
      world,
      Projection.make("users", { handle: ({ aggregateVersion }) => results[Number(aggregateVersion) - 1]! })
    )
    yield* Effect.forEach(results, () => worker.events.append([event("a")]))
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(200)
    const { halt, position } = yield* worker.row
    assert.deepStrictEqual([halt, position], [undefined, BigInt(results.length)])
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

it.effect("halts the range when the handler's failure makes the store die", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const worker = yield* runner(
      world,
      recording(handled, (event) => event.aggregateId === "b" ? Effect.fail(new NoSuchCountry("ZZ")) : Effect.void),
      {
        checkpoints: (real) => ({
          commit: (held, options, work) =>
            Effect.catchTag(real.commit(held, options, work), "HandlerFailure", (failure) =>
              Effect.die(new TypeError(`stack.split is not a function, ${failure._tag}`)))
        })
      }
    )
    yield* worker.events.append([event("a")])
    yield* worker.events.append([event("b")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(200)
    assert.deepStrictEqual(yield* TxRef.get(handled), ["a"])
    const { halt, position } = yield* worker.row
    assert.deepStrictEqual([position, halt?.position, halt?.error], [
      1n,
      2n,
      "type UserCreated, User \"b\", version 1: NoSuchCountry: ZZ"
    ])
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

const eventId = "00000000-0000-4000-8000-000000000002"

it.effect.each(
  [
    [
      "is too large",
      new EventTooLarge({ position: 2n, eventId, aggregateId: "b", bytes: 20_000_000, limit: 16_000_000 })
    ],
    ["cannot be read", new EventUnreadable({ position: 2n, eventId, code: "XX001", detail: "missing chunk" })]
  ] as const
)("halts the range at an event that %s and commits the events before it", ([, failure]) =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const worker = yield* runner(world, recording(handled), {
      events: (real) => ({
        read: (options) =>
          options.after >= 1n
            ? Effect.fail(failure)
            : Effect.map(real.read(options), (page) => ({ ...page, events: page.events.slice(0, 1), position: 1n }))
      })
    })
    yield* worker.events.append([event("a")])
    yield* worker.events.append([event("b")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(200)
    assert.deepStrictEqual(yield* TxRef.get(handled), ["a"])
    const { halt, position } = yield* worker.row
    assert.strictEqual(position, 1n)
    assert.strictEqual(halt?.position, 2n)
    assert.strictEqual(halt?.eventId, eventId)
    assert.isTrue(halt?.error.endsWith(`${failure._tag}: ${failure.message}`), halt?.error)
    const halted = worker.lines.find(({ level }) => level === "Error")?.text
    assert.include(halted, "Fix the cause and restart the worker")
    assert.notInclude(halted, "handler")
    assert.strictEqual(worker.of("RangeHalted").length, 1)
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

it.effect("retries a transient failure with exponential backoff from 10 ms to 5 s, with 20 % jitter", () =>
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
      const base = Math.min(10 * 2 ** index, 5_000)
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

it.effect("retries a failed read; CheckpointAheadOfEvents ends the runner", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    let reads = 0
    const worker = yield* runner(world, recording(handled), {
      events: (real) => ({
        read: (options) =>
          Effect.suspend(() => {
            reads++
            if (reads <= 3) return Effect.fail(unavailable)
            return reads === 5
              ? Effect.fail(new CheckpointAheadOfEvents({ position: 9n, lastPosition: 1n }))
              : real.read(options)
          })
      })
    })
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(1_000)
    assert.deepStrictEqual(yield* TxRef.get(handled), ["a"])
    assert.deepStrictEqual(worker.of("BatchRetried").map(({ attempt }) => attempt), [1, 2, 3])
    yield* worker.events.append([event("b")])
    yield* pass(1_000)
    const exit = yield* Fiber.await(fiber)
    assert.isTrue(Exit.isFailure(exit))
    if (Exit.isFailure(exit)) {
      assert.strictEqual(exit.cause.reasons.find(Cause.isFailReason)?.error._tag, "CheckpointAheadOfEvents")
    }
  }))

it.effect("when the server has lost committed progress, the runner ends as fenced so that its row is read again", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    let lost = false
    const worker = yield* runner(world, Projection.make("users", { handle: () => Effect.void }), {
      events: (real) => ({
        read: (options) =>
          lost
            ? Effect.fail(new CheckpointAheadOfEvents({ position: options.after, lastPosition: 1n }))
            : real.read(options)
      }),
      checkpoints: (real) => ({
        // As a fenced write fails when the row is no longer at the expected position.
        advance: (held, options) =>
          lost ? Effect.fail(new Fenced({ projection: "users" })) : real.advance(held, options)
      })
    })
    yield* worker.events.append([event("a"), event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(100)
    lost = true
    yield* worker.events.append([event("a")])
    yield* pass(2_000)
    assert.strictEqual(yield* Fiber.join(fiber), "fenced")
  }))

it.effect("unwritten progress beyond the last event is not reported as CheckpointAheadOfEvents", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    let less = false
    const worker = yield* runner(
      world,
      Projection.make("users", { aggregateTypes: ["Nothing"], handle: () => Effect.void }),
      {
        events: (real) => ({
          read: (options) =>
            less && options.after > 2n
              ? Effect.fail(new CheckpointAheadOfEvents({ position: options.after, lastPosition: 1n }))
              : real.read(options)
        })
      }
    )
    yield* worker.events.append([event("a"), event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(100)
    yield* worker.events.append([event("a")])
    yield* pass(100)
    assert.deepStrictEqual([worker.state().handledUpTo, worker.state().writtenUpTo], [3n, 2n])
    less = true
    yield* worker.events.append([event("a")])
    yield* pass(500)
    less = false
    yield* pass(2_000)
    yield* worker.drain(fiber)
    assert.strictEqual(worker.state().handledUpTo, 4n)
  }))

/** Records the position after which each read starts. */
const reads = () => {
  const after: Array<bigint> = []
  return {
    after,
    events: (real: EventStore["Service"]): Partial<EventStore["Service"]> => ({
      read: (options) => {
        after.push(options.after)
        return real.read(options)
      }
    })
  }
}

it.effect("progress read in an earlier server epoch is not written in a later one; its events are read again", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const { after, events } = reads()
    const worker = yield* runner(
      world,
      Projection.make("users", { aggregateTypes: ["Nothing"], handle: () => Effect.void }),
      { events }
    )
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(100)
    yield* worker.events.append([event("a")])
    yield* pass(100)
    assert.deepStrictEqual([worker.state().handledUpTo, worker.state().writtenUpTo, after], [2n, 1n, [0n, 1n]])
    world.epoch = "2"
    yield* pass(5_000)
    assert.strictEqual((yield* worker.row).position, 2n)
    assert.deepStrictEqual(after, [0n, 1n, 1n])
    // The progress over the first event is written, over the second not yet.
    for (const millis of [1_000, 100]) {
      yield* worker.events.append([event("a")])
      yield* pass(millis)
    }
    world.epoch = "3"
    yield* worker.events.append([event("a")])
    yield* pass(2_000)
    assert.deepStrictEqual([(yield* worker.row).position, after], [5n, [0n, 1n, 1n, 2n, 3n, 4n, 3n]])
    assert.strictEqual(worker.lines.filter(({ level }) => level === "Error").length, 0)
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

it.effect("draining does not write progress read in an earlier server epoch; the next owner reads again", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const worker = yield* runner(
      world,
      Projection.make("users", { aggregateTypes: ["Nothing"], handle: () => Effect.void })
    )
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(100)
    yield* worker.events.append([event("a")])
    yield* pass(100)
    world.epoch = "2"
    assert.strictEqual(yield* worker.drain(fiber), "drained")
    assert.strictEqual((yield* worker.row).position, 1n)
  }))

it.effect("empty progress is written when a range is first caught up, later once a second", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const worker = yield* runner(
      world,
      Projection.make("users", { aggregateTypes: ["Nothing"], handle: () => Effect.void })
    )
    yield* worker.events.append([event("a"), event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(100)
    assert.strictEqual((yield* worker.row).position, 2n)
    for (let position = 3n; position < 6n; position++) {
      yield* worker.events.append([event("a")])
      yield* pass(100)
      assert.deepStrictEqual([worker.state().handledUpTo, (yield* worker.row).position], [position, 2n])
    }
    yield* pass(1_000)
    assert.strictEqual((yield* worker.row).position, 5n)
    yield* worker.drain(fiber)
  }))

it.effect("a batch read in an earlier server epoch is read again in the current one", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const { after, events } = reads()
    const lives: Array<string | undefined> = []
    const worker = yield* runner(world, recording(handled), {
      events,
      checkpoints: (real) => ({
        commit: (held, options, work) => {
          // The epoch changes after the batch was read and before its transaction begins.
          if (lives.length === 0) world.epoch = "2"
          lives.push(options.epoch)
          return real.commit(held, options, work)
        }
      })
    })
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(2_000)
    assert.deepStrictEqual([lives, after], [["1", "2"], [0n, 0n]])
    assert.deepStrictEqual(yield* TxRef.get(handled), ["a"])
    yield* worker.drain(fiber)
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
const lostInHandler = (real: CheckpointStore["Service"]): Partial<CheckpointStore["Service"]> => ({
  commit: (held, options, work) =>
    real.commit(held, options, work).pipe(
      Effect.catchTag("HandlerFailure", (failure) =>
        Effect.fail(Cause.squash(failure.cause) === connectionLost ? connectionLost : failure))
    )
})

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

/** A handler that blocks the event loop at one event: the clock advances and nothing else runs. */
const blocking = (handled: TxRef.TxRef<ReadonlyArray<string>>, at: string, tried: Array<string>) =>
  recording(handled, ({ aggregateId }) => {
    tried.push(aggregateId)
    return aggregateId === at ? TestClock.adjust("16 seconds") : Effect.void
  })

/** Fails a batch that takes longer than the transaction's idle timeout of 15 s. */
const lostByTime =
  (failure: () => TransientFailure | Fenced) =>
  (real: CheckpointStore["Service"]): Partial<CheckpointStore["Service"]> => ({
    commit: (held, options, work) =>
      Effect.gen(function*() {
        const before = yield* Clock.monotonicTimeNanos
        const late = Effect.flatMap(Clock.monotonicTimeNanos, (now) =>
          now - before > 15_000_000_000n ? Effect.fail(connectionLost) : Effect.void)
        return yield* real.commit(
          held,
          options,
          Effect.tap(work, () =>
            late)
        )
      }).pipe(Effect.catchTag("HandlerFailure", () => Effect.fail(failure())))
  })

it.effect("a handler that overruns three times at one event is halted there; earlier events commit", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const tried: Array<string> = []
    const worker = yield* runner(world, blocking(handled, "c", tried), {
      checkpoints: lostByTime(() => connectionLost)
    })
    for (const id of ["a", "b", "c", "d"]) yield* worker.events.append([event(id)])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(5_000)
    assert.deepStrictEqual(yield* TxRef.get(handled), ["a", "b"])
    const { halt, position } = yield* worker.row
    assert.strictEqual(position, 2n)
    assert.strictEqual(halt?.position, 3n)
    assert.include(halt?.error ?? "", "longer than 15s")
    assert.include(halt?.error ?? "", "3 times")
    // The first overrun is behind earlier events, which the retry commits first.
    assert.deepStrictEqual(tried, ["a", "b", "c", "a", "b", "c", "c"])
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

it.effect("overruns are counted across losses of the range", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const tried: Array<string> = []
    const worker = yield* runner(world, blocking(handled, "a", tried), {
      checkpoints: lostByTime(() => new Fenced({ projection: "users" }))
    })
    yield* worker.events.append([event("a")])
    for (let attempt = 1; attempt <= 3; attempt++) assert.strictEqual(yield* worker.run, "fenced")
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(200)
    assert.strictEqual((yield* worker.row).halt?.position, 1n)
    assert.deepStrictEqual(tried, ["a", "a", "a"])
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

it.effect("handlers running during another handler's overrun are not blamed for it", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const tried: Array<string> = []
    let blocked = false
    const block = Effect.gen(function*() {
      blocked = true
      yield* TestClock.adjust("16 seconds")
      blocked = false
    })
    // No handler ends while the process is blocked.
    const waiting = Effect.andThen(
      Effect.sleep("700 millis"),
      Effect.repeat(Effect.sleep("100 millis"), { while: () => blocked })
    )
    const projection = (name: string, handle: Effect.Effect<void>) =>
      Projection.make(name, {
        handle: () =>
          Effect.suspend(() => {
            tried.push(name)
            return Effect.andThen(handle, TxRef.update(handled, (names) => [...names, name]))
          })
      })
    const first = yield* runner(
      world,
      projection("poisoned", Effect.andThen(Effect.sleep("200 millis"), block)),
      { checkpoints: lostByTime(() => connectionLost) }
    )
    const others = yield* Effect.forEach(
      ["one", "two"],
      (name) => runner(world, projection(name, waiting), { beside: first })
    )
    yield* first.events.append([event("a")])
    const all = [first, ...others]
    const fibers = yield* Effect.forEach(all, ({ run }) => Effect.forkChild(run))
    yield* pass(60_000, 100)
    assert.strictEqual((yield* first.row).halt?.position, 1n)
    assert.sameMembers([...(yield* TxRef.get(handled))], ["one", "two"])
    // All run together once; then each of the others is retried once, alone.
    assert.sameMembers(tried, ["poisoned", "poisoned", "poisoned", "one", "one", "two", "two"])
    for (const [index, worker] of all.entries()) assert.strictEqual(yield* worker.drain(fibers[index]!), "drained")
  }))

it.effect("an endless overrun delays other ranges for a limited time, and draining ranges not at all", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    // Both are running when their connections are lost; the retry of one of them never ends.
    let calls = 0
    const endless = Projection.make("endless", {
      handle: () => Effect.suspend(() => calls++ === 0 ? Effect.sleep("20 seconds") : Effect.never)
    })
    const first = yield* runner(world, endless, { checkpoints: lostByTime(() => connectionLost) })
    let others = 0
    const waiting = yield* Effect.forEach(["other", "leaving"], (name) =>
      runner(
        world,
        Projection.make(name, {
          handle: () =>
            Effect.suspend(() => Effect.sleep(others++ < 2 ? "21 seconds" : 0)).pipe(
              Effect.andThen(TxRef.update(handled, (names) => [...names, name]))
            )
        }),
        { beside: first }
      ))
    yield* first.events.append([event("a")])
    const all = [first, ...waiting]
    const fibers = yield* Effect.forEach(all, ({ run }) => Effect.forkChild(run))
    yield* pass(25_000, 100)
    assert.deepStrictEqual(yield* TxRef.get(handled), [])
    assert.strictEqual(yield* all[2]!.drain(fibers[2]!), "drained")
    yield* pass(20_000, 100)
    assert.deepStrictEqual(yield* TxRef.get(handled), ["other"])
    assert.strictEqual(yield* all[1]!.drain(fibers[1]!), "drained")
    yield* Fiber.interrupt(fibers[0]!)
  }))

it.effect("a long handler that commits or loses a conflict does not count as an overrun", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    let conflicts = 4
    const worker = yield* runner(
      world,
      recording(handled, ({ aggregateId }) =>
        Effect.andThen(
          Effect.sleep("1 minute"),
          Effect.suspend(() => aggregateId === "b" && conflicts-- > 0 ? Effect.fail(conflict) : Effect.void)
        )),
      {
        checkpoints: (real) => ({
          commit: (held, options, work) =>
            Effect.catchTag(real.commit(held, options, work), "HandlerFailure", () =>
              // After the conflicts the connection is lost once.
              Effect.fail(conflicts === 0 ? connectionLost : conflict))
        })
      }
    )
    for (const id of ["a", "b"]) yield* worker.events.append([event(id)])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(8 * 60_000, 1_000)
    assert.deepStrictEqual(yield* TxRef.get(handled), ["a", "b"])
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

it.effect("a handler interrupted because its range is released does not count as an overrun", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    let begun = 0
    const worker = yield* runner(world, recording(handled, () => Effect.suspend(() => (begun++, Effect.never))))
    yield* worker.events.append([event("a")])
    for (let again = 1; again <= 5; again++) {
      const fiber = yield* Effect.forkChild(worker.run)
      yield* pass(60_000, 1_000)
      assert.strictEqual(begun, again)
      yield* worker.draining.open
      yield* Fiber.interrupt(fiber)
      yield* worker.draining.close
    }
    assert.strictEqual((yield* worker.row).halt, undefined)
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

it.effect("progress over filtered-out events is written at most once a second and on drain", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const written: Array<readonly [at: number, to: bigint]> = []
    const worker = yield* runner(
      world,
      Projection.make("users", { eventTypes: ["Never"], handle: () => Effect.void }),
      {
        checkpoints: (real) => ({
          advance: (held, options) =>
            Effect.andThen(
              Effect.flatMap(Clock.currentTimeMillis, (now) => Effect.sync(() => written.push([now, options.to]))),
              real.advance(held, options)
            )
        })
      }
    )
    const fiber = yield* Effect.forkChild(worker.run)
    for (const _ of ids(50)) {
      yield* worker.events.append([event("a")])
      yield* pass(100)
    }
    assert.isAtLeast(written.length, 4)
    for (const [index, [at]] of written.slice(1).entries()) assert.isAtLeast(at - written[index]![0], 1_000)
    yield* worker.events.append([event("a")])
    yield* pass(50)
    assert.strictEqual(worker.state().handledUpTo, 51n)
    assert.isBelow(Number((yield* worker.row).position), 51)
    assert.strictEqual(yield* worker.drain(fiber), "drained")
    assert.strictEqual((yield* worker.row).position, 51n)
    assert.strictEqual(worker.of("BatchCommitted").length, 0)
  }))

it.effect("ranges write progress over filtered-out events at the same instants, whenever each was opened", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const written: Array<readonly [at: number, projection: string]> = []
    const record = (projection: string) =>
      Effect.flatMap(Clock.currentTimeMillis, (now) => Effect.sync(() => written.push([now, projection])))
    const start = (name: string) =>
      Effect.gen(function*() {
        const worker = yield* runner(
          world,
          Projection.make(name, { eventTypes: ["Never"], handle: () => Effect.void }),
          {
            checkpoints: (real) => ({
              advance: (held, options) => Effect.andThen(record(name), real.advance(held, options))
            })
          }
        )
        yield* Effect.forkChild(worker.run)
        return worker
      })
    const names = ["first", "second", "third"]
    const workers: Array<Effect.Success<ReturnType<typeof start>>> = []
    for (const name of names) {
      workers.push(yield* start(name))
      yield* pass(330)
    }
    for (const _ of ids(20)) {
      yield* workers[0]!.events.append([event("a")])
      yield* pass(170)
    }
    const instants = [...new Set(written.map(([at]) => at))]
    assert.isAtLeast(instants.length, 3)
    for (const instant of instants.slice(1)) {
      assert.sameMembers(written.flatMap(([at, projection]) => at === instant ? [projection] : []), names)
    }
  }))

it.effect("a batch commits after 100 ms with the events handled so far", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const worker = yield* runner(world, recording(handled, () => Effect.sleep("30 millis")))
    yield* Effect.forEach(ids(10), (id) => worker.events.append([event(id)]))
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(1_000, 1)
    assert.deepStrictEqual(yield* TxRef.get(handled), ids(10))
    // The fourth event ends after 120 ms.
    assert.deepStrictEqual(worker.of("BatchCommitted").map(({ events }) => events), [4, 4, 2])
    assert.deepStrictEqual(worker.of("BatchCommitted").map(({ position }) => position), [4n, 8n, 10n])
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

it.effect("a batch ends at batchSize or batchBytes, but contains at least one event", () =>
  Effect.gen(function*() {
    const sizes = Effect.fnUntraced(function*(settings: { readonly batchSize?: number; readonly batchBytes?: number }) {
      const world = yield* MemoryStores.makeWorld
      const worker = yield* runner(world, Projection.make("users", { handle: () => Effect.void }), { settings })
      yield* worker.events.append(ids(5).map(() => event("a")))
      const fiber = yield* Effect.forkChild(worker.run)
      yield* pass(200)
      yield* worker.drain(fiber)
      return worker.of("BatchCommitted").map(({ events }) => events)
    })
    assert.deepStrictEqual(yield* sizes({ batchSize: 2 }), [2, 2, 1])
    assert.deepStrictEqual(yield* sizes({ batchBytes: 1 }), [1, 1, 1, 1, 1])
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
    const badDisk = new StoreFailure({ operation: "handle a batch", code: "58030", detail: "bad block", cause: "test" })
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
    const inHand = yield* Deferred.make<void>()
    const goOn = yield* Deferred.make<void>()
    const worker = yield* runner(
      world,
      recording(handled, (event) =>
        event.aggregateId === "user-2"
          ? Effect.andThen(Deferred.succeed(inHand, undefined), Deferred.await(goOn))
          : Effect.void)
    )
    yield* Effect.forEach(ids(5), (id) => worker.events.append([event(id)]))
    const fiber = yield* Effect.forkChild(worker.run)
    yield* Deferred.await(inHand)
    yield* worker.draining.open
    yield* breathe
    assert.isUndefined(fiber.pollUnsafe(), "draining must wait for the handler")
    yield* Deferred.succeed(goOn, undefined)
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
    const inHand = yield* Deferred.make<void>()
    const goOn = yield* Deferred.make<void>()
    const slow = recording(
      handled,
      () => Effect.andThen(Deferred.succeed(inHand, undefined), Deferred.await(goOn))
    )
    const first = yield* runner(world, slow)
    yield* first.events.append([event("a")])
    const fiber = yield* Effect.forkChild(first.run)
    yield* Deferred.await(inHand)
    // The worker leaves while its handler runs, and another worker claims the range.
    yield* first.leave
    const second = yield* runner(world, recording(handled))
    assert.notDeepEqual(second.held.fence, first.held.fence)
    yield* Deferred.succeed(goOn, undefined)
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

it.effect("resources of a handler's Scope are released at the end of its batch, before the commit", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const order: Array<string> = []
    const worker = yield* runner(
      world,
      Projection.make("users", {
        handle: Effect.fnUntraced(function*(event) {
          yield* Effect.acquireRelease(
            Effect.sync(() => order.push(`open ${event.aggregateId}`)),
            () => Effect.sync(() => order.push(`close ${event.aggregateId}`))
          )
        })
      }),
      {
        settings: { batchSize: 2 },
        checkpoints: (real) => ({
          commit: (held, options, work) =>
            Effect.tap(
              real.commit(held, options, Effect.tap(work, () => Effect.sync(() => order.push("advance")))),
              () => Effect.sync(() => order.push("committed"))
            )
        })
      }
    )
    yield* Effect.forEach(["a", "b", "c"], (id) => worker.events.append([event(id)]))
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(100)
    assert.strictEqual(
      order.join(", "),
      "open a, open b, close b, close a, advance, committed, open c, close c, advance, committed"
    )
    yield* worker.drain(fiber)
  }))

class Country extends Context.Service<Country, string>()("test/Country") {}

it.effect("a handler runs with the services captured at construction, but with the runner's clock", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const found: Array<readonly [string, number]> = []
    const captured = Context.make(Country, "of the layer").pipe(
      Context.add(Clock.Clock, { ...(yield* Clock.Clock), currentTimeMillis: Effect.succeed(-1) })
    )
    const worker = yield* runner(
      world,
      Projection.make("users", {
        handle: () =>
          Effect.gen(function*() {
            found.push([yield* Country, yield* Clock.currentTimeMillis])
          })
      }),
      { captured: captured as Context.Context<unknown> }
    )
    yield* worker.events.append([event("a")])
    yield* TestClock.adjust(7)
    const fiber = yield* Effect.forkChild(Effect.provideService(worker.run, Country, "of who runs it"))
    yield* pass(0)
    assert.deepStrictEqual(found, [["of the layer", 7]])
    yield* worker.drain(fiber)
  }))

it.effect("a batch that is rerun after a conflicting transaction handles its events again", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const read = yield* Deferred.make<void>()
    const goOn = yield* Deferred.make<void>()
    const worker = yield* runner(
      world,
      Projection.make("users", {
        handle: Effect.fnUntraced(function*(event) {
          const before = yield* TxRef.get(handled)
          yield* Deferred.succeed(read, undefined)
          yield* Deferred.await(goOn)
          yield* TxRef.set(handled, [...before, event.aggregateId])
        })
      })
    )
    yield* worker.events.append([event("a")])
    yield* worker.events.append([event("b")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* Deferred.await(read)
    // Conflicts with the batch's read.
    yield* TxRef.update(handled, (ids) => [...ids, "from elsewhere"])
    yield* Deferred.succeed(goOn, undefined)
    yield* pass(100)
    assert.deepStrictEqual(yield* TxRef.get(handled), ["from elsewhere", "a", "b"])
    assert.strictEqual((yield* worker.row).position, 2n)
    yield* worker.drain(fiber)
  }))

it.effect("a permanent failure of the first read ends the runner; after a successful read it is retried", () =>
  Effect.gen(function*() {
    const refusal = new StoreFailure({ operation: "read", code: "42501", detail: "permission denied", cause: "test" })
    const outcome = Effect.fnUntraced(function*(refuses: (read: number) => boolean) {
      const world = yield* MemoryStores.makeWorld
      const handled = yield* TxRef.make<ReadonlyArray<string>>([])
      let reads = 0
      const worker = yield* runner(world, recording(handled), {
        events: (real) => ({
          read: (options) => Effect.suspend(() => refuses(++reads) ? Effect.fail(refusal) : real.read(options))
        })
      })
      yield* worker.events.append([event("a")])
      const fiber = yield* Effect.forkChild(worker.run)
      yield* pass(100)
      yield* worker.events.append([event("b")])
      yield* pass(1_000)
      const exit = fiber.pollUnsafe()
      yield* worker.draining.open
      const failure = exit !== undefined && Exit.isFailure(exit)
        ? exit.cause.reasons.find(Cause.isFailReason)
        : undefined
      return { failure: failure?.error._tag, handled: yield* TxRef.get(handled) }
    })
    assert.deepStrictEqual(yield* outcome((read) => read === 1), { failure: "StoreFailure", handled: [] })
    assert.deepStrictEqual(yield* outcome((read) => read === 2 || read === 3), {
      failure: undefined,
      handled: ["a", "b"]
    })
  }))

describe("the log of an outage", () => {
  const outage = (worker: { readonly lines: ReadonlyArray<{ readonly text: string }> }) =>
    worker.lines.flatMap(({ text }) => /failed and is retried|Still failing|Recovered/.exec(text)?.[0] ?? [])

  it.effect("ends with a committed batch after empty progress could not be written", () =>
    Effect.gen(function*() {
      let isAway = true
      const worker = yield* runner(
        yield* MemoryStores.makeWorld,
        Projection.make("users", { eventTypes: ["UserCreated"], handle: () => Effect.void }),
        {
          checkpoints: (real) => ({
            advance: (held, options) => isAway ? Effect.fail(unavailable) : real.advance(held, options)
          })
        }
      )
      yield* worker.events.append([event("a", { eventType: "Other" })])
      const fiber = yield* Effect.forkChild(worker.run)
      yield* pass(1_100)
      assert.deepStrictEqual(outage(worker), ["failed and is retried"])
      isAway = false
      yield* worker.events.append([event("b")])
      yield* pass(500)
      assert.deepStrictEqual(outage(worker), ["failed and is retried", "Recovered"])
      yield* worker.drain(fiber)
    }))

  it.effect("ends with a halt at an event that cannot be read", () =>
    Effect.gen(function*() {
      let reads = 0
      const worker = yield* runner(
        yield* MemoryStores.makeWorld,
        Projection.make("users", { handle: () => Effect.void }),
        {
          events: () => ({
            read: () =>
              Effect.suspend(() =>
                Effect.fail(
                  ++reads === 1
                    ? unavailable
                    : new EventUnreadable({ position: 1n, detail: "invalid page", epoch: "1" })
                )
              )
          })
        }
      )
      yield* worker.events.append([event("a")])
      const fiber = yield* Effect.forkChild(worker.run)
      yield* pass(1_000)
      assert.strictEqual(worker.of("RangeHalted").length, 1)
      assert.deepStrictEqual(outage(worker), ["failed and is retried", "Recovered"])
      yield* worker.drain(fiber)
    }))

  it.effect("ends with the commit of an event whose halt could not be recorded before", () =>
    Effect.gen(function*() {
      let tried = 0
      const worker = yield* runner(
        yield* MemoryStores.makeWorld,
        Projection.make("users", {
          handle: () => Effect.suspend(() => ++tried === 1 ? Effect.fail(new Broken({ message: "no" })) : Effect.void)
        }),
        { checkpoints: () => ({ halt: () => Effect.fail(unavailable) }) }
      )
      yield* worker.events.append([event("a")])
      const fiber = yield* Effect.forkChild(worker.run)
      yield* pass(1_000)
      assert.strictEqual((yield* worker.row).position, 1n)
      assert.deepStrictEqual(outage(worker), ["failed and is retried", "Recovered"])
      yield* worker.drain(fiber)
    }))

  for (const hasEvents of [true, false]) {
    it.effect(`does not end while reads time out ${hasEvents ? "" : "and no event is appended"}`, () =>
      Effect.gen(function*() {
        let isAway = false
        const late = Effect.andThen(Effect.sleep("5 seconds"), Effect.fail(unavailable))
        const worker = yield* runner(
          yield* MemoryStores.makeWorld,
          Projection.make("users", { handle: () => Effect.void }),
          {
            events: (real) => ({
              // As a read fails at its statement timeout, for example while the table is locked.
              settledBeyond: (...args) =>
                Effect.suspend(() =>
                  isAway
                    ? late
                    : Effect.raceFirst(
                      real.settledBeyond(...args),
                      Effect.repeat(Effect.sleep("1 second"), { until: () => isAway }).pipe(Effect.andThen(late))
                    )
                ),
              headPosition: Effect.suspend(() => isAway ? late : real.headPosition)
            })
          }
        )
        yield* worker.events.append([event("a")])
        const fiber = yield* Effect.forkChild(worker.run)
        yield* pass(1_000)
        isAway = true
        if (hasEvents) yield* worker.events.append([event("b")])
        yield* pass(60_000)
        assert.deepStrictEqual(new Set(outage(worker)), new Set(["failed and is retried", "Still failing"]))
        isAway = false
        yield* pass(10_000)
        assert.deepStrictEqual(outage(worker).at(-1), "Recovered")
        yield* worker.drain(fiber)
      }))
  }
})
