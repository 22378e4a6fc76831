import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import { Context, Deferred, Effect, Exit, Fiber, Layer, Redacted, Stream } from "effect"
import * as TxRef from "effect/TxRef"
import * as MemoryStores from "../../src/layers/memory/MemoryStores.ts"
import type * as MemoryWorld from "../../src/layers/memory/MemoryWorld.ts"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as PostgresStores from "../../src/layers/postgres/PostgresStores.ts"
import type { Activity } from "../../src/schema/Activity.ts"
import type { Checkpoint } from "../../src/schema/Checkpoint.ts"
import type { DatabaseUnavailable } from "../../src/schema/Errors.ts"
import { CheckpointStore, Fenced } from "../../src/services/CheckpointStore.ts"
import { CoordinationStore } from "../../src/services/CoordinationStore.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import { Membership } from "../../src/services/Membership.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import { away, enter, event, logs, pass } from "./World.ts"

const outcome = (fiber: Fiber.Fiber<Exit.Exit<void, unknown>>): string => {
  const exit = fiber.pollUnsafe()
  return exit === undefined ? "running" : Exit.isFailure(exit) ? "died" : exit.value._tag
}

/** A handler that cannot be interrupted. */
const stubborn = Projection.make("stubborn", { handle: () => Effect.uninterruptible(Effect.never) })

it.effect("a worker leaves although its handler does not stop", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const process = yield* enter(world)
    yield* process.events.append([event("a")])
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [stubborn] }).pipe(
      Effect.provide(process.stores)
    )
    const fiber = yield* Effect.forkDetach(orchestrator.run)
    yield* pass(500)
    yield* Effect.forkDetach(Fiber.interrupt(fiber))
    yield* pass(40_000, 250)
    assert.isDefined(fiber.pollUnsafe())
    assert.isDefined([...world.workers.value.values()][0]?.stoppedAt)
  }))

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

it.effect("catchUp retries the event at which an earlier run halted", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const process = yield* enter(world)
    yield* process.events.append([event("a")])
    const broken = Projection.make("users", { handle: () => Effect.fail("not yet") })
    const before = yield* Orchestrator.make({ replicaSet: "main", projections: [broken] }).pipe(
      Effect.provide(process.stores)
    )
    const failing = yield* Effect.forkDetach(Effect.exit(before.catchUp))
    yield* pass(5000)
    assert.include(String(failing.pollUnsafe()), "ProjectionHalted")
    const mended = Projection.make("users", { handle: () => Effect.void })
    const after = yield* Orchestrator.make({ replicaSet: "main", projections: [mended] }).pipe(
      Effect.provide((yield* enter(world)).stores)
    )
    const fiber = yield* Effect.forkDetach(Effect.exit(after.catchUp))
    yield* pass(5000)
    assert.strictEqual(outcome(fiber), "Success")
  }))

it.effect("catchUp retries while the database is briefly unreachable", () =>
  Effect.gen(function*() {
    const process = yield* enter(yield* MemoryStores.makeWorld)
    yield* process.events.append([event("a")])
    let isAway = true
    const users = Projection.make("users", { handle: () => Effect.void })
    const { catchUp } = yield* Orchestrator.make({ replicaSet: "main", projections: [users] }).pipe(
      Effect.provide(Context.add(process.stores, CheckpointStore, {
        ...process.checkpoints,
        rows: (name) => Effect.suspend(() => isAway ? Effect.fail(away) : process.checkpoints.rows(name))
      }))
    )
    const fiber = yield* Effect.forkDetach(Effect.exit(catchUp))
    yield* pass(1000)
    isAway = false
    yield* pass(3000)
    assert.strictEqual(outcome(fiber), "Success")
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

it.effect("a database outage does not count towards coordinationTimeout", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const process = yield* enter(world)
    let isAway = false
    const users = Projection.make("users", { handle: () => Effect.void })
    const { lines, layer } = logs()
    const stores = Context.add(process.stores, CoordinationStore, {
      preview: (request) => Effect.suspend(() => isAway ? Effect.fail(away) : process.decisions.preview(request)),
      apply: (request) =>
        Effect.suspend(() => isAway ? Effect.fail(away) : process.decisions.apply(request)).pipe(
          // Never settled, as if another worker still held a part.
          Effect.map((decision) => ({ ...decision, settled: false }))
        )
    }).pipe(Context.add(Membership, process.membership))
    const orchestrator = yield* Orchestrator.make({
      replicaSet: "main",
      projections: [users],
      coordinationTimeout: "20 seconds"
    }).pipe(Effect.provide(Context.add(stores, CoordinationStore, {
      ...Context.get(stores, CoordinationStore),
      preview: (request) =>
        Effect.map(
          Context.get(stores, CoordinationStore).preview(request),
          (decision) => ({ ...decision, settled: false })
        )
    })))
    const fiber = yield* Effect.forkDetach(orchestrator.run.pipe(Effect.provide(layer)))
    yield* pass(1000)
    isAway = true
    yield* pass(60_000, 250)
    isAway = false
    yield* pass(2000)
    assert.isUndefined(fiber.pollUnsafe())
    assert.deepStrictEqual(lines.filter(({ level }) => level !== "Info" && level !== "Debug").map(({ text }) => text), [
      `Coordination failed and is retried: ${away.message}`,
      `Still failing after 10s and 41 attempts: Coordination. Last failure: ${away.message}`,
      `Still failing after 30s and 121 attempts: Coordination. Last failure: ${away.message}`
    ])
    assert.match(
      lines.map(({ text }) => text).join("\n"),
      /^Recovered after 1m and \d+ failed attempts: Coordination works again\.$/m
    )
    yield* Effect.forkDetach(Fiber.interrupt(fiber))
    yield* pass(2000)
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

it.effect("a late subscriber receives the halts of the current state", () =>
  Effect.gen(function*() {
    const process = yield* enter(yield* MemoryStores.makeWorld)
    yield* process.events.append([event("a")])
    const broken = Projection.make("broken", { handle: () => Effect.fail("no") })
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [broken] }).pipe(
      Effect.provide(process.stores)
    )
    const fiber = yield* Effect.forkDetach(orchestrator.run)
    yield* pass(1000)
    const present = yield* orchestrator.activity.pipe(Stream.take(4), Stream.runCollect)
    assert.deepStrictEqual([...present].map(({ _tag }) => _tag), [
      "WorkerRegistered",
      "GenerationChanged",
      "RangeClaimed",
      "RangeHalted"
    ])
    yield* Effect.forkDetach(Fiber.interrupt(fiber))
    yield* pass(1000)
  }))

it.live("the application's pool closes although a handler does not stop", () =>
  Effect.gen(function*() {
    const { url } = yield* PostgresTest.TestDatabase
    const holding = yield* Deferred.make<void>()
    const holds = Projection.make("holds", {
      handle: () => Effect.andThen(Deferred.succeed(holding, undefined), Effect.uninterruptible(Effect.never))
    })
    const live = Orchestrator.layer({ replicaSet: "main", projections: [holds], drainTimeout: 50 }).pipe(
      Layer.provideMerge(PostgresStores.layer),
      Layer.provideMerge(PgClient.layer({ url: Redacted.make(url) }))
    )
    const fiber = yield* Effect.gen(function*() {
      yield* (yield* EventStore).append([event("a")])
      return yield* Orchestrator.run
    }).pipe(Effect.provide(live), Effect.forkDetach)
    yield* Effect.raceFirst(Deferred.await(holding), Fiber.join(fiber))
    fiber.interruptUnsafe()
    yield* TimeLimits.within("60 seconds")(Fiber.await(fiber))
  }).pipe(Effect.provide(Layer.effectDiscard(Migrations.up).pipe(Layer.provideMerge(PostgresTest.layer)))))

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

it.effect("a defect during shutdown is logged", () =>
  Effect.gen(function*() {
    const process = yield* enter(yield* MemoryStores.makeWorld)
    const { run } = yield* Orchestrator.make({
      replicaSet: "main",
      projections: [Projection.make("users", { handle: () => Effect.void })]
    }).pipe(
      Effect.provide(Context.add(process.stores, Membership, {
        ...process.membership,
        wakeUps: (self) =>
          Effect.acquireRelease(process.membership.wakeUps(self), () => Effect.die(new Error("a bug in closing")))
      }))
    )
    const { layer, lines } = logs()
    const fiber = yield* Effect.forkDetach(Effect.provide(run, layer))
    yield* pass(1000)
    yield* Fiber.interrupt(fiber)
    const texts = lines.map(({ text }) => text)
    assert.include(texts, "The orchestrator died")
    assert.notInclude(texts, "Shutdown complete")
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
        heartbeat: (...args) => Effect.suspend(() => isAway ? Effect.fail(away) : process.membership.heartbeat(...args))
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

/**
 * Returns an effect that restores the world's server to its state at the time of the call, in a new epoch: later
 * commits are lost.
 */
const memory = (
  world: MemoryWorld.MemoryWorld,
  refs: ReadonlyArray<
    MemoryWorld.MemoryWorld["workers" | "generations" | "log"] | TxRef.TxRef<Checkpoint | undefined>
  > = [
    world.workers,
    world.generations,
    world.log,
    ...world.rows.values()
  ]
) => {
  const values = refs.map((ref) => [ref, ref.value] as const)
  return Effect.gen(function*() {
    for (const [ref, value] of values) yield* Effect.tx(TxRef.set(ref as TxRef.TxRef<unknown>, value))
    world.epoch = `${BigInt(world.epoch) + 1n}`
  })
}

it.effect("a generation whose number is reissued after lost commits is treated as a different one", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const handled = new Set<string>()
    const users = Projection.make("users", {
      handle: ({ aggregateId }) => Effect.sync(() => handled.add(aggregateId))
    })
    let isAway = false
    const unlessAway = <A, E, R>(self: Effect.Effect<A, E, R>) =>
      Effect.suspend((): Effect.Effect<A, E | DatabaseUnavailable, R> => isAway ? Effect.fail(away) : self)
    const start = Effect.fnUntraced(function*(workerId: string, mayBeAway = false) {
      const process = yield* enter(world)
      const stores = mayBeAway
        ? Context.add(process.stores, CoordinationStore, {
          preview: (request) => unlessAway(process.decisions.preview(request)),
          apply: (request) => unlessAway(process.decisions.apply(request))
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
    const comeBack = memory(world)
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
    const comeBack = memory(world, [...world.rows.values()])
    yield* Effect.forEach(["a", "b"], (id) => process.events.append([event(id)]))
    yield* pass(3000)
    assert.deepStrictEqual(yield* positions, [2n])
    yield* comeBack
    assert.deepStrictEqual(yield* positions, [0n])
    yield* pass(10_000)
    assert.deepStrictEqual(yield* positions, [2n])
  }))

it.effect("a worker whose registration the server has lost registers again, also if its id was used before", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const users = Projection.make("users", { handle: () => Effect.void })
    const start = Effect.fnUntraced(function*() {
      const orchestrator = yield* Orchestrator.make({
        replicaSet: "main",
        projections: [users],
        workerId: "pod-0"
      }).pipe(Effect.provide((yield* enter(world)).stores))
      return yield* Effect.forkDetach(Effect.exit(orchestrator.run))
    })
    const before = yield* start()
    yield* pass(1000)
    yield* Effect.forkDetach(Fiber.interrupt(before))
    yield* pass(1000)
    const comeBack = memory(world)
    const worker = yield* start()
    yield* pass(1000)
    yield* comeBack
    yield* pass(20_000)
    assert.isUndefined(worker.pollUnsafe())
    assert.strictEqual(world.workers.value.values().next().value?.state, "running")
  }))

it.effect("catchUp returns although the server has lost the events that it waits for", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const process = yield* enter(world)
    yield* process.events.append([event("a")])
    const comeBack = memory(world, [world.log])
    yield* process.events.append([event("b")])
    let isSlow = true
    const users = Projection.make("users", { handle: () => Effect.suspend(() => Effect.sleep(isSlow ? 2000 : 0)) })
    const { catchUp } = yield* Orchestrator.make({ replicaSet: "main", projections: [users] }).pipe(
      Effect.provide(process.stores)
    )
    const fiber = yield* Effect.forkDetach(Effect.exit(catchUp))
    yield* pass(500)
    yield* comeBack
    isSlow = false
    yield* pass(20_000)
    assert.strictEqual(outcome(fiber), "Success")
  }))
