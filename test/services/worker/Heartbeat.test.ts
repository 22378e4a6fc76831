import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import { DatabaseUnavailable, WorkerReplaced } from "../../../src/schema/Errors.ts"
import type { Displayed, Registration, WorkerState } from "../../../src/schema/Worker.ts"
import { Membership } from "../../../src/services/Membership.ts"
import * as RetryLog from "../../../src/services/telemetry/RetryLog.ts"
import * as Heartbeat from "../../../src/services/worker/Heartbeat.ts"

const registration: Registration = {
  replicaSet: "main",
  workerId: "a",
  incarnation: 1n,
  startedAt: new Date(0),
  projections: []
}

const unavailable = new DatabaseUnavailable({
  reason: "connection lost",
  server: "db:5432",
  database: "app",
  user: "app",
  cause: "test"
})

/** A running heartbeat with an interval of 5 s, whose answer and displayed state the test sets. */
const running = Effect.gen(function*() {
  const sent: Array<WorkerState | undefined> = []
  const activities: Array<string> = []
  const given = {
    state: "pending" as WorkerState,
    answer: Effect.void as ReturnType<Membership["Service"]["heartbeat"]>
  }
  const never = () => Effect.never
  const heartbeat = yield* Heartbeat.make({
    membership: Membership.of({
      join: never,
      departed: never,
      wakeUps: never,
      watch: never,
      heartbeat: (_, displayed) =>
        Effect.suspend(() => {
          sent.push(displayed?.state)
          return given.answer
        })
    }),
    registration,
    settings: { heartbeatInterval: Duration.seconds(5), staleWorkerTimeout: Duration.seconds(30) },
    log: { record: ({ _tag }) => Effect.sync(() => activities.push(_tag)), stream: Stream.empty },
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

it.effect("is sent at once when what it displays has changed, and then after a whole interval", () =>
  Effect.gen(function*() {
    const { given, heartbeat, sent } = yield* running
    yield* TestClock.adjust("4 seconds")
    given.state = "running"
    heartbeat.beatNow()
    yield* TestClock.adjust("4999 millis")
    assert.deepStrictEqual(sent, ["running"])
    yield* TestClock.adjust("1 millis")
    assert.deepStrictEqual(sent, ["running", "running"])
  }))

it.effect("is sent again if what it displays changes before its answer", () =>
  Effect.gen(function*() {
    const { given, heartbeat, sent } = yield* running
    given.answer = Effect.sleep("1 second")
    heartbeat.beatNow()
    yield* TestClock.adjust("500 millis")
    given.state = "ready"
    heartbeat.beatNow()
    yield* TestClock.adjust("500 millis")
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
