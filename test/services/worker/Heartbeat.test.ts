import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import type { Activity } from "../../../src/schema/Activity.ts"
import { WorkerReplaced } from "../../../src/schema/Errors.ts"
import type { Displayed, Registration, WorkerState } from "../../../src/schema/Worker.ts"
import { Membership } from "../../../src/services/Membership.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as RetryLog from "../../../src/services/telemetry/RetryLog.ts"
import * as Heartbeat from "../../../src/services/worker/Heartbeat.ts"
import { enter, event, pass, unavailable } from "../World.ts"

const registration: Registration = {
  replicaSet: "main",
  workerId: "a",
  incarnation: 1n,
  startedAt: new Date(0),
  projections: []
}

/** A running heartbeat with an interval of 5 s, whose answer and displayed state the test sets. */
const running = Effect.gen(function*() {
  const sent: Array<WorkerState | undefined> = []
  const activities: Array<string> = []
  const given = {
    state: "pending" as WorkerState,
    answer: Effect.void as ReturnType<Membership["heartbeat"]>
  }
  const never = () => Effect.never
  const heartbeat = yield* Heartbeat.make({
    membership: Membership.of({
      join: never,
      departed: never,
      wakeUps: never,
      watch: never,
      connections: Effect.never,
      heartbeat: (_, displayed) =>
        Effect.suspend(() => {
          sent.push(displayed?.state)
          return given.answer
        })
    }),
    registration,
    settings: { heartbeatInterval: Duration.seconds(5), staleWorkerTimeout: Duration.seconds(30) },
    log: { record: ({ _tag }) => Effect.sync(() => activities.push(_tag)) },
    retryLog: RetryLog.make(),
    displayed: (): Displayed => ({ state: given.state, generationId: undefined, partitionKey: -1 }),
    onChange: () => {}
  })
  const fiber = yield* Effect.forkChild(heartbeat.run, { startImmediately: true })
  return { activities, fiber, given, heartbeat, sent }
})

it.effect("is sent every interval with what is displayed now", () =>
  Effect.gen(function*() {
    const { given, sent } = yield* running
    yield* TestClock.adjust("5 seconds")
    given.state = "ready"
    yield* TestClock.adjust("9 seconds")
    assert.deepStrictEqual(sent, ["pending", "ready"])
  }))

it.effect("is sent 100 ms after what it displays has changed, and then after a whole interval", () =>
  Effect.gen(function*() {
    const { given, heartbeat, sent } = yield* running
    yield* TestClock.adjust("4 seconds")
    given.state = "running"
    heartbeat.beatSoon()
    yield* TestClock.adjust("99 millis")
    assert.deepStrictEqual(sent, [])
    yield* TestClock.adjust("5000 millis")
    assert.deepStrictEqual(sent, ["running"])
    yield* TestClock.adjust("1 millis")
    assert.deepStrictEqual(sent, ["running", "running"])
  }))

it.effect("is sent again if what it displays changes before its answer", () =>
  Effect.gen(function*() {
    const { given, heartbeat, sent } = yield* running
    given.answer = Effect.sleep("1 second")
    heartbeat.beatSoon()
    yield* TestClock.adjust("500 millis")
    given.state = "ready"
    heartbeat.beatSoon()
    yield* TestClock.adjust("700 millis")
    assert.deepStrictEqual(sent, ["pending", "ready"])
  }))

it.effect("is retried every second, suspends its worker when it is overdue, and resumes it", () =>
  Effect.gen(function*() {
    const { activities, given, heartbeat, sent } = yield* running
    given.answer = Effect.fail(unavailable)
    yield* TestClock.adjust("24 seconds")
    assert.strictEqual(sent.length, 20)
    assert.isFalse(heartbeat.suspended())
    yield* TestClock.adjust("1 second")
    assert.isTrue(heartbeat.suspended())
    given.answer = Effect.void
    yield* TestClock.adjust("1 second")
    assert.isFalse(heartbeat.suspended())
    assert.deepStrictEqual(activities, ["Suspended", "HeartbeatRenewed", "Resumed"])
  }))

it.effect("ends when another process has replaced the worker", () =>
  Effect.gen(function*() {
    const { fiber, given } = yield* running
    given.answer = Effect.fail(new WorkerReplaced({ replicaSet: "main", workerId: "a" }))
    yield* TestClock.adjust("5 seconds")
    assert.strictEqual((yield* Effect.flip(Fiber.join(fiber)))._tag, "WorkerReplaced")
  }))

it.effect("a draining worker is displayed as stopping and keeps renewing its heartbeat", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const process = yield* enter(world)
    const states = () => [...world.workers.value.values()].map(({ state }) => state)
    yield* process.events.append([event("a")])
    let beats = 0
    const slow = Projection.make("slow", { handle: () => Effect.sleep("8 seconds") })
    const orchestrator = yield* Orchestrator.make({
      replicaSet: "main",
      projections: [slow],
      heartbeatInterval: "1 second",
      staleWorkerTimeout: "3 seconds"
    }).pipe(
      Effect.provide(Context.add(process.stores, Membership, {
        ...process.membership,
        heartbeat: (...args) =>
          Effect.suspend(() => {
            beats++
            return process.membership.heartbeat(...args)
          })
      }))
    )
    const fiber = yield* Effect.forkDetach(orchestrator.run)
    yield* pass(1500)
    const before = beats
    assert.deepStrictEqual(states(), ["running"])
    yield* Effect.forkDetach(Fiber.interrupt(fiber))
    yield* pass(5000)
    assert.isUndefined(fiber.pollUnsafe())
    assert.deepStrictEqual(states(), ["stopping"])
    assert.isAtLeast(beats - before, 4)
    yield* pass(5000)
    assert.isDefined(fiber.pollUnsafe())
    assert.deepStrictEqual(states(), ["stopped"])
  }))

it.effect("a heartbeat without a response suspends the projections in time", () =>
  Effect.gen(function*() {
    const process = yield* enter(yield* MemoryStores.makeWorld)
    let isCut = false
    const seen: Array<Activity["_tag"]> = []
    const users = Projection.make("users", { handle: () => Effect.void })
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [users] }).pipe(
      Effect.provide(Context.add(process.stores, Membership, {
        ...process.membership,
        heartbeat: (...args) => Effect.suspend(() => isCut ? Effect.never : process.membership.heartbeat(...args))
      }))
    )
    yield* orchestrator.activity.pipe(
      Stream.runForEach(({ _tag }) => Effect.sync(() => seen.push(_tag))),
      Effect.forkScoped
    )
    yield* Effect.forkDetach(orchestrator.run)
    yield* pass(1000)
    isCut = true
    yield* pass(30_000, 250)
    assert.include(seen, "Suspended")
    assert.include(seen, "RangeStopped")
  }))

it.effect("the displayed states of a worker and its generation are written once the database is reachable", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const process = yield* enter(world)
    let isAway = true
    const users = Projection.make("users", { handle: () => Effect.void })
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [users] }).pipe(
      Effect.provide(Context.add(process.stores, Membership, {
        ...process.membership,
        heartbeat: (...args) =>
          Effect.suspend(() => isAway ? Effect.fail(unavailable) : process.membership.heartbeat(...args))
      }))
    )
    const fiber = yield* Effect.forkDetach(orchestrator.run)
    const read = () => ({
      worker: [...world.workers.value.values()].map(({ generationId, state }) => ({ generationId, state })),
      generation: world.generations.value.get("main")?.map(({ state }) => state)
    })
    yield* pass(1000)
    assert.deepStrictEqual(read(), { worker: [{ generationId: undefined, state: "pending" }], generation: ["pending"] })
    isAway = false
    yield* pass(6000)
    assert.deepStrictEqual(read(), { worker: [{ generationId: 1n, state: "running" }], generation: ["active"] })
    yield* Effect.forkDetach(Fiber.interrupt(fiber))
    yield* pass(1000)
  }))
