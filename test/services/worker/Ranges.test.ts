import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Scheduler from "effect/Scheduler"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import type { Activity } from "../../../src/schema/Activity.ts"
import * as Checkpoint from "../../../src/schema/Checkpoint.ts"
import * as HashRange from "../../../src/schema/HashRange.ts"
import { CheckpointStore, Fenced } from "../../../src/services/CheckpointStore.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import type { RangeRunner } from "../../../src/services/worker/RangeRunner.ts"
import * as Ranges from "../../../src/services/worker/Ranges.ts"
import * as Hostile from "../../support/Hostile.ts"
import { breathe, enter, event, logs, pass } from "../World.ts"

const held = {
  projection: "users",
  range: HashRange.whole,
  position: 0n,
  replicaSet: "main",
  fence: { workerId: "worker", incarnation: 1n, generationId: 1n },
  filter: "",
  halt: undefined
}

/** Ranges with this runner and a drain timeout of one second, and the tags of their activity. */
const makeRanges = Effect.fnUntraced(function*(
  run: RangeRunner["Service"]["run"],
  onChange: (activity: ReadonlyArray<Activity["_tag"]>) => void = () => {}
) {
  const activity: Array<Activity["_tag"]> = []
  const ranges = yield* Ranges.make({
    runner: { run },
    drainTimeout: Duration.seconds(1),
    onChange: () => onChange(activity),
    caughtUp: Latch.makeUnsafe(false),
    onFailure: () => Effect.void
  })
  const open = ranges.open(held, {
    projection: Projection.make("users", { handle: () => Effect.void }),
    registration: { replicaSet: "main", workerId: "worker-0" },
    hasNoParked: true,
    captured: Context.empty() as Context.Context<unknown>,
    settings: {
      batchSize: 1,
      batchBytes: 1,
      pollInterval: Duration.seconds(1),
      staleWorkerTimeout: Duration.seconds(30)
    },
    record: ({ _tag }) => Effect.sync(() => activity.push(_tag)),
    giveUp: Effect.die
  })
  return { ...ranges, activity, open, key: Checkpoint.key(held) }
})

it.effect("logs the cause of a runner's death, whatever it is, and restarts the runner a second later", () =>
  Effect.gen(function*() {
    const { layer, lines } = logs()
    yield* Effect.gen(function*() {
      for (const [what, value] of Hostile.values) {
        const ranges = yield* makeRanges(() => Effect.die(value))
        yield* ranges.open
        assert.strictEqual(ranges.all.size, 1, `${what}: restarted before the delay`)
        yield* pass(1_000)
        assert.strictEqual(ranges.all.size, 0, what)
      }
    }).pipe(Effect.provide(layer))
    assert.strictEqual(lines.length, Hostile.values.length)
    for (const { level, text } of lines) {
      assert.strictEqual(level, "Error")
      assert.match(text, /^The runner of projection "users" died and is restarted: ./)
    }
  }))

it.effect("warns when a range is fenced twice under one fence, each time delaying its end by a second", () =>
  Effect.gen(function*() {
    const { layer, lines } = logs()
    yield* Effect.gen(function*() {
      const ranges = yield* makeRanges(() => Effect.succeed("fenced"))
      for (const expected of [0, 1]) {
        yield* ranges.open
        yield* pass(950)
        assert.strictEqual(ranges.all.size, 1)
        yield* pass(50)
        assert.deepStrictEqual([ranges.all.size, lines.length], [0, expected])
      }
    }).pipe(Effect.provide(layer))
    assert.include(lines[0]?.text, "no other worker owns its row")
  }))

it.effect("records the end of a range before a pass can open it again", () =>
  Effect.gen(function*() {
    const changes: Array<ReadonlyArray<string>> = []
    const ranges = yield* makeRanges(() => Effect.succeed("drained"), (activity) => changes.push([...activity]))
    yield* ranges.open
    assert.deepStrictEqual(changes, [["RangeClaimed", "RangeStopped"]])
    assert.strictEqual(ranges.all.size, 0)
  }))

it.effect("a range that drains in time is not interrupted", () =>
  Effect.gen(function*() {
    const ranges = yield* makeRanges(({ draining }) =>
      Effect.as(Effect.andThen(draining.await, Effect.sleep("900 millis")), "drained")
    )
    yield* ranges.open
    const closing = yield* Effect.forkChild(ranges.closeAll("drain"))
    yield* pass(850)
    assert.deepStrictEqual([ranges.all.get(ranges.key)?.closing, closing.pollUnsafe()], [true, undefined])
    yield* pass(50)
    yield* Fiber.join(closing)
    assert.deepStrictEqual(ranges.activity, ["RangeClaimed", "RangeStopped"])
  }))

it.effect("a range that does not drain in time is interrupted; one that must stop now is interrupted at once", () =>
  Effect.gen(function*() {
    const ranges = yield* makeRanges(() => Effect.never)
    yield* ranges.open
    yield* ranges.close(ranges.key, "drain")
    yield* pass(950)
    assert.strictEqual(ranges.all.size, 1)
    yield* pass(50)
    assert.strictEqual(ranges.all.size, 0)
    yield* ranges.open
    yield* ranges.close(ranges.key, "now")
    yield* breathe
    assert.strictEqual(ranges.all.size, 0)
  }))

it.effect("a runner that ignores its interruption is left behind; its range stays in `all` until it ends", () =>
  Effect.gen(function*() {
    const end = yield* Deferred.make<"drained">()
    const ranges = yield* makeRanges(() => Effect.uninterruptible(Deferred.await(end)))
    yield* ranges.open
    const closing = yield* Effect.forkChild(ranges.closeAll("now"))
    yield* pass(4_950)
    assert.isUndefined(closing.pollUnsafe())
    yield* pass(150)
    assert.isDefined(closing.pollUnsafe())
    assert.strictEqual(ranges.all.size, 1)
    yield* Deferred.succeed(end, "drained")
    yield* breathe
    assert.deepStrictEqual([ranges.all.size, ranges.activity.at(-1)], [0, "RangeStopped"])
  }))

it.effect("the end of a registration records the end of a runner that is left behind, and its later end is not recorded", () =>
  Effect.gen(function*() {
    const end = yield* Deferred.make<"drained">()
    const registration = yield* Effect.forkChild(Effect.scoped(Effect.tap(
      makeRanges(() => Effect.uninterruptible(Deferred.await(end))),
      (ranges) => ranges.open
    )))
    yield* pass(6_100)
    const ranges = yield* Fiber.join(registration)
    assert.deepStrictEqual(ranges.activity, ["RangeClaimed", "RangeStopped"])
    assert.strictEqual(ranges.all.size, 1)
    yield* Deferred.succeed(end, "drained")
    yield* breathe
    assert.strictEqual(ranges.all.size, 0)
    assert.deepStrictEqual(ranges.activity, ["RangeClaimed", "RangeStopped"], "the next registration may own the range")
  }))

it.effect("a range drains although the fiber that began to close it was interrupted", () =>
  Effect.gen(function*() {
    for (let steps = 0; steps < 10; steps++) {
      const ranges = yield* makeRanges(({ draining }) => Effect.as(draining.await, "drained"))
      yield* ranges.open
      // Yields after every step, so that it is interrupted between any two of them.
      const closing = yield* ranges.close(ranges.key, "drain").pipe(
        Effect.provideService(Scheduler.MaxOpsBeforeYield, 3),
        Effect.forkChild
      )
      yield* Effect.repeat(Effect.yieldNow, { times: steps })
      yield* Fiber.interrupt(closing)
      const all = yield* Effect.forkChild(ranges.closeAll("drain"))
      yield* breathe
      const hasEnded = all.pollUnsafe() !== undefined
      yield* ranges.close(ranges.key, "now")
      assert.isTrue(hasEnded, `interrupted after ${steps} steps`)
    }
  }))

it.effect("a range is opened once; the end of the scope drains it", () =>
  Effect.gen(function*() {
    let runs = 0
    const ranges = yield* Effect.scoped(Effect.gen(function*() {
      const ranges = yield* makeRanges(({ draining }) => {
        runs++
        return Effect.as(draining.await, "drained")
      })
      yield* ranges.open
      yield* ranges.open
      return ranges
    }))
    assert.deepStrictEqual([runs, ranges.all.size], [1, 0])
  }))

it.effect("a range whose own row cannot be updated is reopened only after a delay", () =>
  Effect.gen(function*() {
    const process = yield* enter(yield* MemoryStores.makeWorld)
    yield* process.events.append([event("a")])
    let attempts = 0
    // As with row-level security or a trigger through which the UPDATE matches no row.
    const { run } = yield* Orchestrator.make({
      replicaSet: "main",
      projections: [Projection.make("users", { handle: () => Effect.void })]
    }).pipe(
      Effect.provide(Context.add(process.stores, CheckpointStore, {
        ...process.checkpoints,
        commit: () =>
          Effect.suspend(() => {
            attempts++
            return Effect.fail(new Fenced({ projection: "users" }))
          })
      }))
    )
    const { layer, lines } = logs()
    const fiber = yield* Effect.forkDetach(Effect.provide(run, layer))
    yield* pass(10_000)
    assert.isAtLeast(attempts, 9)
    assert.isAtMost(attempts, 11)
    assert.include(lines.filter(({ level }) => level === "Warn").map(({ text }) => text).join(), "row-level security")
    yield* Fiber.interrupt(fiber)
  }))

it.effect("a range that is closed while its runner starts ends, at whichever step of the start", () =>
  Effect.gen(function*() {
    for (let steps = 0; steps < 60; steps++) {
      const ranges = yield* makeRanges(() => Effect.never)
      // Lets this test run after each of its steps.
      const opening = yield* ranges.open.pipe(
        Effect.provideService(Scheduler.MaxOpsBeforeYield, 3),
        Effect.forkChild({ startImmediately: true })
      )
      yield* Effect.repeat(Effect.yieldNow, { times: steps })
      yield* ranges.close(ranges.key, "now")
      yield* Fiber.join(opening)
      if (ranges.all.get(ranges.key)?.closing === false) yield* ranges.close(ranges.key, "now")
      yield* pass(6000, 1000)
      assert.strictEqual(ranges.all.size, 0, `closed after ${steps} steps`)
    }
  }))
