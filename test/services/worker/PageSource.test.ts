import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as TxRef from "effect/TxRef"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import {
  CheckpointAheadOfEvents,
  EventTooLarge,
  EventUnreadable,
  StatementFailed,
  StoreError
} from "../../../src/schema/Errors.ts"
import * as HashRange from "../../../src/schema/HashRange.ts"
import * as Settings from "../../../src/schema/Settings.ts"
import { EpochEnded, Fenced, type TransientFailure } from "../../../src/services/CheckpointStore.ts"
import type { EventStore } from "../../../src/services/EventStore.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as RetryLog from "../../../src/services/telemetry/RetryLog.ts"
import * as Feed from "../../../src/services/worker/Feed.ts"
import * as PageSource from "../../../src/services/worker/PageSource.ts"
import * as Parking from "../../../src/services/worker/Parking.ts"
import * as RangeState from "../../../src/services/worker/RangeState.ts"
import * as Retries from "../../../src/services/worker/Retries.ts"
import * as Startup from "../../../src/services/worker/Startup.ts"
import { reasonOf } from "../../support/StoreErrors.ts"
import { Broken, event, pass, restorePoint, runner, unavailable } from "../World.ts"
import { connectionLost, haltAtSecond, ids, recording } from "./Failures.ts"

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
    const halt = yield* haltAtSecond(worker, handled)
    assert.strictEqual(halt.eventId, eventId)
    assert.isTrue(halt.error.endsWith(`${failure._tag}: ${failure.message}`), halt.error)
    const halted = worker.lines.find(({ level }) => level === "Error")?.text
    assert.include(halted, "Fix the cause and restart the worker")
    assert.notInclude(halted, "handler")
    assert.strictEqual(worker.of("RangeHalted").length, 1)
  }))

it.effect.each(
  [
    ["its range", "aggregateId", HashRange.whole],
    ["no range if other keys determine it", "correlationId", undefined]
  ] as const
)("waits for events with %s, also within a batch window", ([, partitionBy, range]) =>
  Effect.gen(function*() {
    const waits: Array<HashRange.HashRange | undefined> = []
    const handled: Array<string> = []
    const worker = yield* runner(
      yield* MemoryStores.makeWorld,
      Projection.make("users", {
        partitionBy,
        batchWindow: { events: 2, time: "1 second" },
        handleBatch: (events) => Effect.sync(() => handled.push(...events.map(({ aggregateId }) => aggregateId)))
      }),
      {
        events: (real) => ({
          settledBeyond: (position, pollInterval, range) => {
            waits.push(range)
            return real.settledBeyond(position, pollInterval, range)
          }
        })
      }
    )
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(50)
    yield* worker.events.append([event("a")])
    yield* pass(200)
    assert.deepStrictEqual(handled, [])
    yield* worker.events.append([event("b")])
    yield* pass(100)
    assert.deepStrictEqual(handled, ["a", "b"])
    // The first event, the second one within the window, and the next one.
    assert.deepStrictEqual(waits, [range, range, range])
    yield* worker.drain(fiber)
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

it.effect("CaughtUp is recorded although the server epoch ends before the first progress is written", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    let writes = 0
    const worker = yield* runner(
      world,
      Projection.make("users", { aggregateTypes: ["Nothing"], handle: () => Effect.void }),
      {
        checkpoints: (real) => ({
          advance: (...args) => {
            if (++writes === 1) world.epoch = "2"
            return real.advance(...args)
          }
        })
      }
    )
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(2_000)
    assert.deepStrictEqual([writes, (yield* worker.row).position], [2, 1n])
    assert.deepStrictEqual(worker.of("CaughtUp").map(({ position }) => position), [1n])
    yield* worker.drain(fiber)
  }))

it.effect("a range is halted at an event whose reads end the server epoch, after events that do not match", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    let reads = 0
    const worker = yield* runner(
      world,
      Projection.make("users", { aggregateTypes: ["Nothing"], handle: () => Effect.void }),
      {
        events: (real) => ({
          // The driver closes a connection on which it cannot decode an event.
          read: (options) =>
            options.after < 2n
              ? real.read({ ...options, upTo: 2n })
              : Effect.suspend(() => {
                world.epoch = `${++reads} reads`
                return Effect.fail(new EventUnreadable({ position: 3n, detail: "no date", epoch: world.epoch }))
              })
        })
      }
    )
    yield* worker.events.append([event("a"), event("a"), event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(60_000)
    const { halt, position } = yield* worker.row
    assert.deepStrictEqual([position, halt?.position], [2n, 3n])
    yield* worker.drain(fiber)
  }))

it.effect("the events before one whose reads end the server epoch are handled and committed", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    let reads = 0
    const worker = yield* runner(world, recording(handled), {
      events: (real) => ({
        read: (options) =>
          options.after < 2n
            ? real.read({ ...options, upTo: 2n })
            : Effect.suspend(() => {
              world.epoch = `${++reads} reads`
              return Effect.fail(new EventUnreadable({ position: 3n, detail: "no date", epoch: world.epoch }))
            })
      })
    })
    yield* worker.events.append([event("a"), event("a"), event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(60_000)
    const { halt, position } = yield* worker.row
    assert.deepStrictEqual([position, halt?.position], [2n, 3n])
    yield* worker.drain(fiber)
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

it.effect("progress is not due once a batch has written it", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const users = Projection.make("users", { handle: () => Effect.void })
    const { checkpoints, draining, events, held, parkedEvents, registration } = yield* runner(world, users)
    const state = RangeState.make(held, 0n)
    const retryLog = RetryLog.make()
    const job: RangeState.Job = {
      projection: users,
      registration,
      hasNoParked: false,
      captured: Context.empty() as Context.Context<unknown>,
      settings: yield* Effect.fromResult(Settings.make({ replicaSet: "main" })),
      state,
      draining,
      caughtUp: draining,
      record: () => Effect.void,
      giveUp: Effect.die
    }
    const startup = Startup.make(retryLog)
    const parking = Parking.make(parkedEvents, job)
    const feed = Feed.make(events)
    const pages = PageSource.make({
      job,
      events,
      feed,
      member: Feed.join(feed, job),
      checkpoints,
      startup,
      retries: Retries.make(job, retryLog),
      parking
    })
    yield* events.append([event("a"), event("a")])
    state.epoch = world.epoch
    RangeState.passOver(state, 1n)
    assert.strictEqual((yield* pages.next)._tag, "Page")
    RangeState.write(state, 2n, 0n)
    const fiber = yield* Effect.forkChild(pages.next)
    yield* pass(3000)
    assert.isUndefined(fiber.pollUnsafe())
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

it.effect("nothing is read again after a lost connection, as long as the server epoch lasts", () =>
  Effect.gen(function*() {
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const { after, events } = reads()
    let failing = 0
    const orFail = <A, E, R>(self: Effect.Effect<A, E, R>) =>
      Effect.suspend((): Effect.Effect<A, E | TransientFailure, R> =>
        failing-- > 0 ? Effect.fail(connectionLost) : self
      )
    const worker = yield* runner(
      yield* MemoryStores.makeWorld,
      { ...recording(handled), filter: { eventTypes: ["UserCreated"] } },
      {
        events,
        checkpoints: (real) => ({
          commit: (...args) => orFail(real.commit(...args)),
          advance: (...args) => orFail(real.advance(...args))
        })
      }
    )
    const fiber = yield* Effect.forkChild(worker.run)
    for (const [eventType, position] of [["UserCreated", 1n], ["Other", 2n]] as const) {
      failing = 2
      yield* worker.events.append([event("a", { eventType })])
      yield* pass(4_000)
      assert.deepStrictEqual([(yield* worker.row).position, failing], [position, -1])
    }
    assert.deepStrictEqual([yield* TxRef.get(handled), after], [["a"], [0n, 1n]])
    yield* worker.drain(fiber)
  }))

it.effect("the pauses grow while reads and writes reach different servers", () =>
  Effect.gen(function*() {
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const { after, events } = reads()
    const ended: Array<string> = []
    const worker = yield* runner(yield* MemoryStores.makeWorld, recording(handled), {
      events: (real) => ({
        ...events(real),
        endEpoch: (epoch) => Effect.sync(() => ended.push(epoch))
      }),
      checkpoints: (real) => ({
        commit: (...args) =>
          Effect.suspend(() => ended.length < 10 ? Effect.fail(new EpochEnded()) : real.commit(...args))
      })
    })
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(3_000)
    assert.isAtMost(after.length, 9)
    yield* pass(30_000)
    assert.deepStrictEqual([yield* TxRef.get(handled), after.length, ended.length], [["a"], 11, 10])
    assert.deepStrictEqual(
      worker.of("BatchRetried").map(({ attempt }) => attempt),
      ids(10).map((_, index) => index + 1)
    )
    yield* worker.drain(fiber)
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

it.effect("a permanent failure of the first read ends the runner; after a successful read it is retried", () =>
  Effect.gen(function*() {
    const refusal = new StoreError({
      reason: new StatementFailed({ operation: "read", code: "42501", detail: "permission denied", cause: "test" })
    })
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
      return { failure: failure && reasonOf(failure.error)._tag, handled: yield* TxRef.get(handled) }
    })
    assert.deepStrictEqual(yield* outcome((read) => read === 1), { failure: "StatementFailed", handled: [] })
    assert.deepStrictEqual(yield* outcome((read) => read === 2 || read === 3), {
      failure: undefined,
      handled: ["a", "b"]
    })
  }))

describe("the log of an outage", () => {
  const outage = (worker: { readonly lines: ReadonlyArray<{ readonly text: string }> }) =>
    worker.lines.flatMap(({ text }) => /failed and is retried|Still failing|Recovered/.exec(text)?.[0] ?? [])

  it.effect("ends although the server has lost the events whose progress could not be written", () =>
    Effect.gen(function*() {
      const world = yield* MemoryStores.makeWorld
      const worker = yield* runner(
        world,
        Projection.make("users", { aggregateTypes: ["Nothing"], handle: () => Effect.void })
      )
      yield* worker.events.append([event("a")])
      const fiber = yield* Effect.forkChild(worker.run)
      yield* pass(100)
      const comeBack = restorePoint(world, [world.log])
      yield* worker.events.append([event("a")])
      yield* pass(100)
      assert.deepStrictEqual([worker.state().handledUpTo, worker.state().writtenUpTo], [2n, 1n])
      yield* comeBack
      yield* pass(60_000)
      assert.deepStrictEqual([worker.state().handledUpTo, worker.state().writtenUpTo], [1n, 1n])
      assert.deepStrictEqual(outage(worker), ["failed and is retried", "Recovered"])
      yield* worker.drain(fiber)
    }))

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
