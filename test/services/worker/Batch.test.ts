import { assert, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as SqlError from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import * as TxRef from "effect/TxRef"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import { Fenced, type TransientFailure } from "../../../src/services/CheckpointStore.ts"
import { tryRead } from "../../../src/services/ErrorText.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as Hostile from "../../support/Hostile.ts"
import { Broken, event, pass, runner } from "../World.ts"
import {
  conflict,
  connectionLost,
  gate,
  haltAtSecond,
  ids,
  lostByTime,
  NoSuchCountry,
  record,
  recording
} from "./Failures.ts"

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
      const worker = yield* runner(
        world,
        Projection.make("users", {
          // As from JavaScript, or through `any`.
          handle: (event) => event.aggregateId === "b" ? handle() as Effect.Effect<unknown> : record(handled, event)
        })
      )
      const { error } = yield* haltAtSecond(worker, handled)
      assert.include(error, "HandlerResultUnused: ")
      assert.include(error, text)
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
    const { error } = yield* haltAtSecond(worker, handled)
    assert.strictEqual(error, "type UserCreated, User \"b\", version 1: NoSuchCountry: ZZ")
  }))

/**
 * A worker whose handler blocks the event loop at one event: the clock advances and nothing else runs. The batch then
 * fails with `failure`.
 */
const blockedAt = Effect.fnUntraced(function*(at: string, failure: () => TransientFailure | Fenced) {
  const handled = yield* TxRef.make<ReadonlyArray<string>>([])
  const tried: Array<string> = []
  const projection = recording(handled, ({ aggregateId }) => {
    tried.push(aggregateId)
    return aggregateId === at ? TestClock.adjust("16 seconds") : Effect.void
  })
  const worker = yield* runner(yield* MemoryStores.makeWorld, projection, { checkpoints: lostByTime(failure) })
  return { handled, tried, worker }
})

it.effect("a handler that overruns three times at one event is halted there; earlier events commit", () =>
  Effect.gen(function*() {
    const { handled, tried, worker } = yield* blockedAt("c", () => connectionLost)
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
    const { tried, worker } = yield* blockedAt("a", () => new Fenced({ projection: "users" }))
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
      { checkpoints: lostByTime() }
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
    const first = yield* runner(world, endless, { checkpoints: lostByTime() })
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
    const fiber = yield* Effect.forkChild(Effect.provideService(worker.run, Country, "of the caller"))
    yield* pass(0)
    assert.deepStrictEqual(found, [["of the layer", 7]])
    yield* worker.drain(fiber)
  }))

it.effect("a batch that is rerun after a conflicting transaction handles its events again", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = yield* TxRef.make<ReadonlyArray<string>>([])
    const handler = yield* gate
    const worker = yield* runner(
      world,
      Projection.make("users", {
        handle: Effect.fnUntraced(function*(event) {
          const before = yield* TxRef.get(handled)
          yield* handler.wait
          yield* TxRef.set(handled, [...before, event.aggregateId])
        })
      })
    )
    yield* worker.events.append([event("a")])
    yield* worker.events.append([event("b")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* handler.reached
    // Conflicts with the batch's read.
    yield* TxRef.update(handled, (ids) => [...ids, "from elsewhere"])
    yield* handler.open
    yield* pass(100)
    assert.deepStrictEqual(yield* TxRef.get(handled), ["from elsewhere", "a", "b"])
    assert.strictEqual((yield* worker.row).position, 2n)
    yield* worker.drain(fiber)
  }))
