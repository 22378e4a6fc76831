import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as Checkpoint from "../../../src/schema/Checkpoint.ts"
import type { StoreError } from "../../../src/schema/Errors.ts"
import type { Plan } from "../../../src/schema/Plan.ts"
import * as Settings from "../../../src/schema/Settings.ts"
import { CheckpointStore } from "../../../src/services/CheckpointStore.ts"
import { CoordinationStore } from "../../../src/services/CoordinationStore.ts"
import { Membership } from "../../../src/services/Membership.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as RetryLog from "../../../src/services/telemetry/RetryLog.ts"
import * as Alarm from "../../../src/services/worker/Alarm.ts"
import * as RangeState from "../../../src/services/worker/RangeState.ts"
import * as Reconciler from "../../../src/services/worker/Reconciler.ts"
import * as Startup from "../../../src/services/worker/Startup.ts"
import { enter, event, logs, pass, restorePoint, runner, stubborn, unavailable } from "../World.ts"

it.effect("a worker fails with CoordinationTimeout when its handler does not stop", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const first = yield* enter(world)
    yield* first.events.append([event("a")])
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [stubborn] }).pipe(
      Effect.provide(first.stores)
    )
    const fiber = yield* Effect.forkDetach(orchestrator.run)
    yield* pass(500)
    const second = yield* enter(world)
    const other = yield* Orchestrator.make({ replicaSet: "main", projections: [stubborn] }).pipe(
      Effect.provide(second.stores)
    )
    yield* Effect.forkDetach(other.run)
    yield* pass(100_000, 250)
    const exit = fiber.pollUnsafe()
    assert.isTrue(exit !== undefined && Exit.isFailure(exit))
    assert.include(String(exit), "CoordinationTimeout")
  }))

it.effect("a database outage does not count towards coordinationTimeout", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const process = yield* enter(world)
    let isAway = false
    // As if another worker still held a part.
    const incomplete = (plan: Plan): Plan => ({ ...plan, isComplete: false })
    const users = Projection.make("users", { handle: () => Effect.void })
    const { lines, layer } = logs()
    const stores = Context.add(process.stores, CoordinationStore, {
      preview: (request) =>
        Effect.suspend(() => isAway ? Effect.fail(unavailable) : process.coordination.preview(request)),
      apply: (request) =>
        Effect.suspend(() => isAway ? Effect.fail(unavailable) : process.coordination.apply(request)).pipe(
          Effect.map(incomplete)
        )
    }).pipe(Context.add(Membership, process.membership))
    const orchestrator = yield* Orchestrator.make({
      replicaSet: "main",
      projections: [users],
      coordinationTimeout: "20 seconds"
    }).pipe(Effect.provide(Context.add(stores, CoordinationStore, {
      ...Context.get(stores, CoordinationStore),
      preview: (request) => Effect.map(Context.get(stores, CoordinationStore).preview(request), incomplete)
    })))
    const fiber = yield* Effect.forkDetach(orchestrator.run.pipe(Effect.provide(layer)))
    yield* pass(1000)
    isAway = true
    yield* pass(60_000, 250)
    isAway = false
    yield* pass(2000)
    assert.isUndefined(fiber.pollUnsafe())
    assert.deepStrictEqual(lines.filter(({ level }) => level !== "Info" && level !== "Debug").map(({ text }) => text), [
      `Coordination failed and is retried: ${unavailable.message}`,
      `Still failing after 10s and 41 attempts: Coordination. Last failure: ${unavailable.message}`,
      `Still failing after 30s and 121 attempts: Coordination. Last failure: ${unavailable.message}`
    ])
    assert.match(
      lines.map(({ text }) => text).join("\n"),
      /^Recovered after 56s and \d+ failed attempts: Coordination works again\.$/m
    )
    yield* Effect.forkDetach(Fiber.interrupt(fiber))
    yield* pass(2000)
  }))

it.effect.each(
  [
    { interval: "heartbeat interval while LISTEN is active", isListening: true, times: 4 },
    { interval: "poll interval otherwise", isListening: false, times: 20 }
  ] as const
)("the state is read once per $interval", ({ isListening, times }) =>
  Effect.gen(function*() {
    const process = yield* enter(yield* MemoryStores.makeWorld)
    let reads = 0
    const stores = Context.add(process.stores, CoordinationStore, {
      ...process.coordination,
      preview: (request) =>
        Effect.suspend(() => {
          reads++
          return process.coordination.preview(request)
        })
    }).pipe(Context.add(Membership, {
      ...process.membership,
      connections: Effect.succeed({ isListening, sessions: 3 })
    }))
    const orchestrator = yield* Orchestrator.make({
      replicaSet: "main",
      projections: [Projection.make("users", { handle: () => Effect.void })],
      heartbeatInterval: "5 seconds",
      pollInterval: "1 second"
    }).pipe(Effect.provide(stores))
    const fiber = yield* Effect.forkDetach(orchestrator.run)
    yield* pass(2_000)
    reads = 0
    yield* pass(20_000)
    assert.strictEqual(reads, times)
    yield* Effect.forkDetach(Fiber.interrupt(fiber))
    yield* pass(2_000)
  }))

it.effect("a range that ends while the plan is made is opened again at the position that its row has then", () =>
  Effect.gen(function*() {
    const users = Projection.make("users", { handle: () => Effect.void })
    const { checkpoints, coordination, held, membership, registration } = yield* runner(
      yield* MemoryStores.makeWorld,
      users
    )
    const key = Checkpoint.key(held)
    const all = new Map([[key, RangeState.make(held, 0n)]])
    const opened: Array<bigint> = []
    const alarm = Alarm.make()
    const retryLog = RetryLog.make()
    yield* Effect.forkChild(Reconciler.run({
      registration,
      settings: yield* Effect.fromResult(Settings.make({ replicaSet: "main" })),
      projections: new Map([["users", users]]),
      carried: () => [{ name: "users", filter: held.filter, startPosition: 0n }],
      giveUp: (_, error) => Effect.die(error),
      giveUpChanged: Effect.fail,
      captured: Context.empty() as Context.Context<unknown>,
      coordination: {
        ...coordination,
        preview: (request) =>
          Effect.tap(coordination.preview(request), () => {
            if (!all.delete(key)) return Effect.void
            alarm.latch.openUnsafe()
            return checkpoints.advance(held, { from: 0n, to: 1n })
            // Fails only if the test is wrong: the worker holds the row.
          }).pipe(Effect.orDie)
      },
      membership,
      ranges: {
        all,
        open: ({ position }) => Effect.sync(() => opened.push(position)),
        close: () => Effect.void,
        closeAll: () => Effect.void
      },
      log: { record: () => Effect.void },
      retryLog,
      alarm,
      suspended: () => false,
      startup: Startup.make(retryLog),
      onGeneration: () => {},
      onAssigned: () => {}
    }))
    yield* pass(100)
    assert.deepStrictEqual(opened, [1n])
  }))

it.effect("ranges are merged although events keep arriving", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const users = Projection.make("users", { aggregateTypes: ["User"], handle: () => Effect.void })
    const first = yield* enter(world)
    const one = yield* Orchestrator.make({ replicaSet: "main", projections: [users] }).pipe(
      Effect.provide(Context.add(first.stores, CheckpointStore, {
        ...first.checkpoints,
        // Writing progress takes a different time for each range.
        advance: (held, to) =>
          Effect.andThen(Effect.sleep(held.range.start === 0 ? 5 : 25), first.checkpoints.advance(held, to))
      }))
    )
    const two = yield* Orchestrator.make({ replicaSet: "main", projections: [users] }).pipe(
      Effect.provide((yield* enter(world)).stores)
    )
    const running = yield* Effect.forkDetach(one.run)
    yield* pass(500)
    const leaving = yield* Effect.forkDetach(two.run)
    yield* pass(1000)
    assert.strictEqual((yield* first.checkpoints.rows("users")).length, 2)
    yield* Effect.forkDetach(Fiber.interrupt(leaving))
    yield* Effect.andThen(first.events.append([event("a", { aggregateType: "Other" })]), pass(50, 10)).pipe(
      Effect.repeat({ times: 300 })
    )
    assert.strictEqual((yield* first.checkpoints.rows("users")).length, 1)
    yield* Effect.forkDetach(Fiber.interrupt(running))
    yield* pass(1000)
  }))

it.effect("ranges are not merged while their handlers run", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    let isSlow = false
    const handled: Array<string> = []
    const users = Projection.make("users", {
      handle: ({ aggregateId }) =>
        Effect.suspend(() => {
          handled.push(aggregateId)
          return isSlow ? Effect.sleep("40 seconds") : Effect.void
        })
    })
    const first = yield* enter(world)
    const [one, two] = yield* Effect.forEach(
      [first.stores, (yield* enter(world)).stores],
      (stores) => Effect.provide(Orchestrator.make({ replicaSet: "main", projections: [users] }), stores)
    )
    const running = yield* Effect.forkDetach(one!.run)
    yield* pass(500)
    const leaving = yield* Effect.forkDetach(two!.run)
    yield* pass(1000)
    yield* Effect.forkDetach(Fiber.interrupt(leaving))
    yield* pass(500)
    isSlow = true
    const ids = Array.from({ length: 8 }, (_, index) => `user-${index}`)
    yield* Effect.forEach(ids, (id) => first.events.append([event(id)]))
    yield* pass(30_000, 100)
    assert.strictEqual((yield* first.checkpoints.rows("users")).length, 2)
    assert.strictEqual(handled.length, 2, "each range must handle one event, once")
    yield* Effect.forkDetach(Fiber.interrupt(running))
    yield* pass(30_000, 500)
  }))

it.effect("a generation whose number is reissued after lost commits is treated as a different one", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = new Set<string>()
    const users = Projection.make("users", {
      handle: ({ aggregateId }) => Effect.sync(() => handled.add(aggregateId))
    })
    let isAway = false
    const unlessAway = <A, E, R>(self: Effect.Effect<A, E, R>) =>
      Effect.suspend((): Effect.Effect<A, E | StoreError, R> => isAway ? Effect.fail(unavailable) : self)
    const start = Effect.fnUntraced(function*(workerId: string, mayBeAway = false) {
      const process = yield* enter(world)
      const stores = mayBeAway
        ? Context.add(process.stores, CoordinationStore, {
          preview: (request) => unlessAway(process.coordination.preview(request)),
          apply: (request) => unlessAway(process.coordination.apply(request))
        })
        : process.stores
      const orchestrator = yield* Effect.provide(
        Orchestrator.make({ replicaSet: "main", projections: [users], workerId }),
        stores
      )
      yield* Effect.forkDetach(Effect.exit(orchestrator.run))
      return process
    })
    const members = () => world.generations.value.get("main")?.at(-1)?.members.map(({ workerId }) => workerId)
    const first = yield* start("a", true)
    yield* pass(3000)
    const comeBack = restorePoint(world)
    const lost = [yield* start("b"), yield* start("c")]
    yield* pass(3000)
    assert.deepStrictEqual(members(), ["a", "b", "c"])
    // The server and two workers crash; while the third worker cannot reach the server, a new worker joins first.
    yield* Effect.forEach(lost, ({ handle }) => handle.cut)
    isAway = true
    yield* comeBack
    yield* start("d")
    yield* pass(2000)
    assert.deepStrictEqual(members(), ["a", "d"])
    isAway = false
    yield* pass(2000)
    const ids = Array.from({ length: 60 }, (_, index) => `user-${index}`)
    yield* Effect.forEach(ids, (id) => first.events.append([event(id)]))
    yield* pass(30_000, 250)
    assert.deepStrictEqual(members(), ["a", "d"])
    assert.strictEqual(handled.size, ids.length)
  }))
