import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Runtime from "effect/Runtime"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import * as TxRef from "effect/TxRef"
import * as MemoryStores from "../../src/layers/memory/MemoryStores.ts"
import * as MemoryWorld from "../../src/layers/memory/MemoryWorld.ts"
import type { Activity } from "../../src/schema/Activity.ts"
import type { Event } from "../../src/schema/Event.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import type * as Settings from "../../src/schema/Settings.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import { Membership } from "../../src/services/Membership.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import { breathe, Broken, enter, event, logs, pass, unavailable } from "./World.ts"

type Counts = Readonly<Record<string, number>>

/** Counts the events of each aggregate in the transaction and fails on any version but the next. */
const counting = (
  counts: TxRef.TxRef<Counts>,
  options: Partial<Projection.Options<unknown, never>> & {
    readonly name?: string
    readonly before?: (event: Event) => Effect.Effect<unknown, unknown>
  } = {}
) =>
  Projection.make(options.name ?? "counts", {
    ...options,
    handle: Effect.fnUntraced(function*(event) {
      if (options.before !== undefined) yield* options.before(event)
      const before = (yield* TxRef.get(counts))[event.aggregateId] ?? 0
      if (BigInt(before) + 1n !== event.aggregateVersion) {
        return yield* Effect.die(new Error(`${event.aggregateId}: ${event.aggregateVersion} after ${before}`))
      }
      yield* TxRef.update(counts, (all) => ({ ...all, [event.aggregateId]: before + 1 }))
    })
  })

const noCounts: Effect.Effect<TxRef.TxRef<Counts>> = TxRef.make<Counts>({})

interface StartOptions {
  readonly settings?: Partial<Settings.Input>
  readonly membership?: (real: Membership) => Partial<Membership>
  readonly events?: (real: EventStore["Service"]) => Partial<EventStore["Service"]>
  readonly how?: "run" | "catchUp"
  readonly metrics?: Map<string, Metric.Metric.Hooks<unknown, unknown>>
}

/** A worker in its own process; stopped when the test ends. */
const start = Effect.fnUntraced(function*(
  world: MemoryWorld.MemoryWorld,
  projections: ReadonlyArray<Projection.Projection<unknown, never>>,
  options: StartOptions = {}
) {
  const process = yield* enter(world)
  const { layer, lines } = logs()
  const activity: Array<Activity> = []
  const stores = process.stores.pipe(
    Context.add(Membership, { ...process.membership, ...options.membership?.(process.membership) }),
    Context.add(EventStore, { ...process.events, ...options.events?.(process.events) })
  )
  const orchestrator = yield* Effect.provideContext(
    Orchestrator.make({ replicaSet: "main", projections, ...options.settings }),
    stores
  )
  yield* orchestrator.activity.pipe(
    Stream.runForEach((entry) => Effect.sync(() => activity.push(entry))),
    Effect.forkScoped({ startImmediately: true })
  )
  const fiber = yield* Effect.forkChild(Effect.provide(orchestrator[options.how ?? "run"], layer))
  yield* breathe
  const of = <T extends Activity["_tag"]>(tag: T): ReadonlyArray<Extract<Activity, { readonly _tag: T }>> =>
    activity.filter((entry): entry is Extract<Activity, { readonly _tag: T }> => entry._tag === tag)
  const said = (level: string) => lines.filter((line) => line.level === level).map(({ text }) => text)
  const tags = () => activity.map(({ _tag }) => _tag)
  /** Interrupts the worker as a signal does; await its exit with `Fiber.await`. */
  const stop = Effect.forkChild(Fiber.interrupt(fiber), { startImmediately: true })
  return { ...process, activity, fiber, lines, of, orchestrator, said, stop, tags }
})

const failureOf = <A, E>(fiber: Fiber.Fiber<A, E>): E | undefined => {
  const exit = fiber.pollUnsafe()
  return exit !== undefined && Exit.isFailure(exit) ? exit.cause.reasons.find(Cause.isFailReason)?.error : undefined
}

/** Awaits the result while advancing the clock. */
const meanwhile = <A>(deferred: Deferred.Deferred<A>) =>
  pass(20).pipe(Effect.repeat({ until: () => Deferred.isDoneUnsafe(deferred), times: 200 }))

const hasEnded = (fiber: Fiber.Fiber<unknown, unknown>) => fiber.pollUnsafe() !== undefined

/** A process without a connection eventually stops waiting for the database. */
const endOf = (worker: { readonly stop: Effect.Effect<unknown> }) => Effect.andThen(worker.stop, pass(30_000, 500))

/** Heartbeats that fail while `failing.now`. */
const failingHeartbeats = (failing: { now: boolean }) => (real: Membership) => ({
  heartbeat: (...args: Parameters<Membership["heartbeat"]>) =>
    Effect.suspend(() => failing.now ? Effect.fail(unavailable) : real.heartbeat(...args))
})

const aggregates = Array.from({ length: 16 }, (_, index) => `user-${index}`)
const appendAll = (events: EventStore["Service"]) =>
  Effect.forEach(aggregates, (id) => events.append([event(id)]), { discard: true })
const times = (n: number): Counts => Object.fromEntries(aggregates.map((id) => [id, n]))

/** An aggregate in the upper half of the hash space, which the second of two workers owns, and one in the lower. */
const upper = aggregates.find((id) => MemoryWorld.hash(id) >= 2 ** 31)!
const lower = aggregates.find((id) => MemoryWorld.hash(id) < 2 ** 31)!

it.effect("a worker's lifecycle is logged with the Go original's messages", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const first = yield* start(world, [counting(counts)], { settings: { workerId: "worker-1" } })
    yield* pass(500)
    const second = yield* start(world, [counting(counts)], { settings: { workerId: "worker-2" } })
    yield* pass(500)
    yield* second.stop
    yield* pass(500)
    yield* first.stop
    yield* pass(500)
    assert.deepStrictEqual(first.said("Info"), [
      "Starting orchestrator...",
      "Worker registered: worker-1",
      "Assigned partition: 0 of 1",
      "Generation 1 has 1 worker; this worker has partition 0 of 1.",
      "Processing events...",
      "New worker detected, reconfiguring...",
      "Stopping current generation",
      "Restarting with new configuration...",
      "Assigned partition: 0 of 2",
      "Generation 2 has 2 workers; this worker has partition 0 of 2.",
      "Processing events...",
      "Worker left, reconfiguring...",
      "Stopping current generation",
      "Restarting with new configuration...",
      "Assigned partition: 0 of 1",
      "Generation 3 has 1 worker; this worker has partition 0 of 1.",
      "Processing all events now...",
      "Unregistering worker...",
      "Shutdown complete"
    ])
    assert.deepStrictEqual(second.said("Info"), [
      "Starting orchestrator...",
      "Worker registered: worker-2",
      "Assigned partition: 1 of 2",
      "Generation 2 has 2 workers; this worker has partition 1 of 2.",
      "Processing events...",
      "Unregistering worker...",
      "Shutdown complete"
    ])
    for (const { annotations, text } of first.lines) {
      assert.strictEqual(annotations["replicaSet"], "main", text)
      if (!/^Starting|^Shutdown/.test(text)) assert.strictEqual(annotations["worker"], "worker-1", text)
    }
    assert.deepStrictEqual(first.said("Warn").concat(first.said("Error")), [])
  }))

it.effect("activity starts with the current state", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const worker = yield* start(world, [counting(counts), counting(yield* noCounts, { name: "others" })])
    yield* appendAll(worker.events)
    yield* pass(500)
    const seen = yield* worker.orchestrator.activity.pipe(Stream.take(4), Stream.runCollect)
    assert.deepStrictEqual(seen.map(({ _tag }) => _tag), [
      "WorkerRegistered",
      "GenerationChanged",
      "RangeClaimed",
      "RangeClaimed"
    ])
    for (const entry of seen) {
      if (entry._tag === "GenerationChanged") {
        assert.strictEqual(entry.partition, 0)
        assert.strictEqual(entry.generation.members.length, 1)
      }
      if (entry._tag === "RangeClaimed") assert.strictEqual(entry.position, 16n)
    }
    assert.deepStrictEqual(worker.tags().filter((tag) => tag !== "HeartbeatRenewed").slice(0, 4), [
      "WorkerStarting",
      "WorkerRegistered",
      "GenerationChanged",
      "RangeClaimed"
    ])
    assert.strictEqual(worker.of("AssignmentReached").length, 1)
    yield* worker.stop
    yield* pass(100)
    // The worker has left: there is no current state to replay.
    const after = yield* worker.orchestrator.activity.pipe(
      Stream.runHead,
      Effect.timeoutOption("1 second"),
      Effect.forkChild
    )
    yield* TestClock.adjust("2 seconds")
    assert.isTrue((yield* Fiber.join(after))._tag === "None")
  }))

it.effect("a concurrent second run of one orchestrator fails with AlreadyRunning; a later run succeeds", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const worker = yield* start(world, [counting(yield* noCounts)])
    const { layer, lines } = logs()
    for (const second of [worker.orchestrator.run, worker.orchestrator.catchUp]) {
      const error = yield* Effect.flip(Effect.provide(second, layer))
      assert.strictEqual(error._tag, "AlreadyRunning")
      assert.include(error.message, "\"main\"")
    }
    assert.strictEqual(lines.length, 2)
    yield* worker.stop
    yield* pass(100)
    const again = yield* Effect.forkChild(worker.orchestrator.run)
    yield* pass(100)
    assert.isFalse(hasEnded(again))
  }))

it.effect("a worker waits for a stale registration under its id and replaces it", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const settings = { workerId: "pod-0" }
    const failing = { now: true }
    const frozen = yield* start(world, [counting(counts)], { settings, membership: failingHeartbeats(failing) })
    yield* pass(500)
    const successor = yield* start(world, [counting(counts)], { settings })
    yield* pass(25_000, 500)
    assert.isFalse(hasEnded(successor.fiber))
    assert.deepStrictEqual(successor.of("WorkerRegistered"), [])
    yield* pass(10_000, 500)
    assert.isFalse(hasEnded(successor.fiber))
    assert.strictEqual(successor.of("WorkerRegistered").length, 1)
    failing.now = false
    yield* pass(2_000)
    assert.strictEqual(failureOf(frozen.fiber)?._tag, "WorkerReplaced")
    yield* appendAll(successor.events)
    yield* pass(500)
    assert.deepStrictEqual(yield* TxRef.get(counts), times(1))
  }))

it.effect("a failure is logged once and not reported again by the runtime", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    yield* start(world, [counting(counts)], { settings: { workerId: "the-first" } })
    yield* pass(100)
    const second = yield* start(world, [counting(counts)], { settings: { workerId: "the-first" } })
    // A heartbeat of the first worker proves that it is alive.
    yield* pass(6_000)
    const error = failureOf(second.fiber)
    assert.strictEqual(error?._tag, "WorkerIdInUse")
    for (const part of ["the-first", "process 1", "memory", "1970-01-01T00:00:00.000Z"]) {
      assert.include(error!.message, part)
    }
    assert.deepStrictEqual(second.said("Error"), [error!.message])
    assert.isFalse(Runtime.getErrorReported(error), "the runtime must not print it again")
  }))

it.effect("a projection carried by a live worker of another replica set is refused until that worker leaves", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const owner = yield* start(world, [counting(counts)], { settings: { replicaSet: "owners", workerId: "owner-1" } })
    yield* appendAll(owner.events)
    yield* pass(500)
    const other = yield* start(world, [counting(counts)], { settings: { replicaSet: "others" } })
    yield* pass(500)
    const error = failureOf(other.fiber)
    assert.strictEqual(error?._tag, "ProjectionInOtherReplicaSet")
    for (const part of ["\"counts\"", "\"owners\"", "\"others\"", "\"owner-1\""]) assert.include(error!.message, part)
    yield* owner.stop
    yield* pass(500)
    const later = yield* start(world, [counting(counts)], { settings: { replicaSet: "others" } })
    yield* appendAll(owner.events)
    yield* pass(500)
    assert.isFalse(hasEnded(later.fiber))
    assert.deepStrictEqual(yield* TxRef.get(counts), times(2))
  }))

it.effect("a changed filter fails with FilterChanged unless acceptFilterChange is set", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const first = yield* start(world, [counting(counts, { eventTypes: ["UserCreated"] })], { how: "catchUp" })
    yield* pass(500)
    assert.isTrue(hasEnded(first.fiber))
    const changed = { eventTypes: ["UserCreated", "UserDeleted"] }
    const refused = yield* start(world, [counting(counts, changed)])
    yield* pass(500)
    const error = failureOf(refused.fiber)
    assert.strictEqual(error?._tag, "FilterChanged")
    for (const part of ["\"counts\"", "UserDeleted", "acceptFilterChange: true"]) assert.include(error!.message, part)
    const accepted = yield* start(world, [counting(counts, { ...changed, acceptFilterChange: true })])
    yield* appendAll(first.events)
    yield* pass(500)
    assert.isFalse(hasEnded(accepted.fiber))
    assert.deepStrictEqual(yield* TxRef.get(counts), times(1))
    yield* accepted.stop
    yield* pass(500)
    // Once accepted, the new filter is recorded; the order of its lists does not matter.
    const same = yield* start(world, [counting(counts, { eventTypes: ["UserDeleted", "UserCreated"] })])
    yield* pass(500)
    assert.isFalse(hasEnded(same.fiber))
  }))

it.effect("a killed worker is logged as lost, a stopped one as left, a restarted one as new", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const started = (workerId: string) => start(world, [counting(counts)], { settings: { workerId } })
    const watcher = yield* started("watcher")
    yield* pass(500)
    const [killed, stopped] = [yield* started("killed"), yield* started("stopped")]
    yield* pass(500)
    const reasons = () => watcher.said("Info").filter((text) => text.endsWith(", reconfiguring..."))
    assert.deepStrictEqual(new Set(reasons()), new Set(["New worker detected, reconfiguring..."]))
    let before = reasons().length
    const since = () => {
      const all = reasons().slice(before)
      before = reasons().length
      return all
    }
    yield* killed.handle.cut
    yield* pass(1_000)
    assert.deepStrictEqual(since(), ["Worker lost, reconfiguring..."])
    yield* stopped.stop
    yield* pass(1_000)
    assert.deepStrictEqual(since(), ["Worker left, reconfiguring..."])
    const restarted = yield* started("killed")
    yield* pass(1_000)
    assert.deepStrictEqual(since(), ["New worker detected, reconfiguring..."])
    assert.include(watcher.said("Info").at(-2), "has 2 workers; this worker has partition 0 of 2.")
    assert.isFalse(hasEnded(restarted.fiber))
    yield* endOf(killed)
  }))

it.effect("a generation that only changes a worker's projections is logged as such", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const old = yield* start(world, [counting(counts, narrow)], { settings: { workerId: "old" } })
    yield* pass(500)
    yield* start(world, [counting(counts, widened)], { settings: { workerId: "young" } })
    yield* pass(2_000)
    assert.deepStrictEqual(old.said("Info").filter((text) => text.endsWith(", reconfiguring...")), [
      "New worker detected, reconfiguring...",
      "Projections of a worker changed, reconfiguring..."
    ])
  }))

it.effect("a worker that was alone before does not log that it now processes all events", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const projections = [counting(yield* noCounts, narrow), counting(yield* noCounts, { name: "others" })]
    const alone = yield* start(world, projections)
    yield* pass(500)
    // A newer version has claimed the range and left again before this worker could read that it had joined.
    const row = world.rows.get("counts@0")!
    yield* TxRef.update(row, (row) => row === undefined ? row : { ...row, filter: "changed", fence: undefined })
    yield* pass(10_000, 500)
    const processing = alone.said("Info").filter((text) => text.startsWith("Processing"))
    assert.deepStrictEqual(alone.of("ProjectionGivenUp").map(({ projection }) => projection), ["counts"])
    assert.deepStrictEqual(processing, ["Processing events...", "Processing events..."])
  }))

/** A newer version of `counting` with a different filter. */
const widened = { eventTypes: ["UserCreated", "UserDeleted"], acceptFilterChange: true }
const narrow = { eventTypes: ["UserCreated"] }

it.effect("a running worker gives up only the projection whose filter a newer version changes", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const others = yield* noCounts
    const old = yield* start(world, [counting(counts, narrow), counting(others, { name: "others" })], {
      settings: { workerId: "old" }
    })
    yield* appendAll(old.events)
    yield* pass(500)
    const young = yield* start(world, [counting(counts, widened), counting(others, { name: "others" })], {
      settings: { workerId: "young" }
    })
    yield* pass(2_000)
    yield* appendAll(old.events)
    yield* pass(2_000)
    assert.isFalse(hasEnded(old.fiber))
    assert.isFalse(hasEnded(young.fiber))
    assert.deepStrictEqual(yield* TxRef.get(counts), times(2))
    assert.deepStrictEqual(yield* TxRef.get(others), times(2))
    const owners = (name: string) =>
      MemoryWorld.committedRows(world, name).map((row) => [row.fence?.workerId, row.range] as const)
    assert.isTrue(owners("counts").every(([owner]) => owner === "young"))
    assert.deepStrictEqual(owners("others"), [
      ["old", HashRange.partition(0, 2)],
      ["young", HashRange.partition(1, 2)]
    ])
    const warnings = old.said("Warn").filter((text) => text.includes("filter"))
    assert.strictEqual(warnings.length, 1)
    for (
      const part of [
        "\"counts\" from \"eventTypes: UserCreated\", which this worker has, to \"eventTypes: UserCreated, UserDeleted\"",
        "Run the newer version",
        "continues with its other projections: others."
      ]
    ) assert.include(warnings[0], part)
    assert.deepStrictEqual(old.of("ProjectionGivenUp").map(({ projection }) => projection), ["counts"])
    assert.deepStrictEqual(young.of("ProjectionGivenUp"), [])
    const [registered, formed, givenUp] = yield* old.orchestrator.activity.pipe(Stream.take(3), Stream.runCollect)
    assert.deepStrictEqual([registered?._tag, formed?._tag, givenUp?._tag], [
      "WorkerRegistered",
      "GenerationChanged",
      "ProjectionGivenUp"
    ])
    // The worker counts as having reached its assignment and forms no further generation.
    const generations = old.of("GenerationChanged").length
    yield* pass(10_000, 500)
    assert.strictEqual(old.of("GenerationChanged").length, generations)
    // A worker that starts with the old filter cannot determine which of the two filters is intended.
    const late = yield* start(world, [counting(counts, narrow)], { settings: { workerId: "late" } })
    yield* pass(500)
    const error = failureOf(late.fiber)
    assert.strictEqual(error?._tag, "FilterChanged")
    for (
      const part of [
        "has the filter \"eventTypes: UserCreated\", but its progress was made under \"eventTypes: UserCreated, UserDeleted\"",
        "acceptFilterChange: true",
        "new name",
        "run that version"
      ]
    ) assert.include(error!.message, part)
    yield* old.stop
    yield* pass(500)
    assert.isTrue(owners("others").every(([owner]) => owner === "young"))
  }))

it.effect("a worker that re-registers after eviction does not carry a projection that it gave up before", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const old = yield* start(world, [counting(counts, narrow), counting(yield* noCounts, { name: "others" })], {
      settings: { workerId: "old" }
    })
    yield* pass(500)
    yield* start(world, [counting(counts, widened)], { settings: { workerId: "young" } })
    yield* pass(1_000)
    assert.strictEqual(old.of("ProjectionGivenUp").length, 1)
    const { incarnation } = old.of("WorkerRegistered")[0]!.registration
    yield* MemoryWorld.changeWorker(world, { replicaSet: "main", workerId: "old", incarnation }, (worker) => ({
      ...worker,
      stoppedAt: 0
    }))
    yield* pass(10_000, 100)
    assert.strictEqual(old.of("WorkerRegistered").length, 2)
    assert.deepStrictEqual(old.of("WorkerRegistered")[1]!.registration.projections, ["others"])
    assert.strictEqual(old.of("ProjectionGivenUp").length, 1)
    assert.isFalse(hasEnded(old.fiber))
  }))

it.effect("a worker that gives up its only projection stays registered without work until it is stopped", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const old = yield* start(world, [counting(counts, narrow)], { settings: { workerId: "old" } })
    yield* appendAll(old.events)
    yield* pass(500)
    const young = yield* start(world, [counting(counts, widened)], { settings: { workerId: "young" } })
    yield* pass(2_000)
    yield* appendAll(old.events)
    yield* pass(2_000)
    assert.isFalse(hasEnded(old.fiber))
    assert.deepStrictEqual(yield* TxRef.get(counts), times(2))
    assert.include(old.said("Warn").join(), "stays registered without a projection")
    assert.deepStrictEqual(
      young.of("GenerationChanged").at(-1)!.generation.members.map((member) => member.projections),
      [
        [],
        ["counts"]
      ]
    )
    yield* old.stop
    yield* pass(500)
    assert.isTrue(hasEnded(old.fiber))
    assert.include(old.said("Info"), "Shutdown complete")
  }))

it.effect("catchUp fails when a newer version changes the filter before everything is handled", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const blocked = yield* Deferred.make<void>()
    const before = (event: Event) => event.aggregateVersion > 1n ? Deferred.await(blocked) : Effect.void
    const first = yield* enter(world)
    yield* appendAll(first.events)
    yield* first.events.append([event(lower)])
    const old = yield* start(world, [counting(counts, { ...narrow, before })], {
      how: "catchUp",
      settings: { drainTimeout: "1 second" }
    })
    yield* pass(500)
    assert.isFalse(hasEnded(old.fiber))
    yield* start(world, [counting(counts, widened)])
    yield* pass(10_000, 100)
    const error = failureOf(old.fiber)
    assert.strictEqual(error?._tag, "FilterChanged")
    assert.include(error!.message, "Another worker, probably of a newer version, has changed the filter")
  }))

it.effect("a startFrom beyond the last event fails with an error naming the projection and both positions", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const worker = yield* start(world, [counting(yield* noCounts, { startFrom: 12n })])
    yield* pass(500)
    const error = failureOf(worker.fiber)
    assert.strictEqual(error?._tag, "InvalidSettings")
    assert.match(error!.message, /startFrom of "\w+" is 12, .* up to 0\. Give "beginning", "now" or/)
    assert.deepStrictEqual(worker.said("Error"), [error!.message])
    // It fails before it registers.
    assert.deepStrictEqual(worker.tags(), ["WorkerStarting"])
  }))

it.effect("catchUp returns when the events visible at its start are handled, and waits for no later event", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const begun = yield* Deferred.make<void>()
    const mayContinue = yield* Deferred.make<void>()
    const feeder = yield* enter(world)
    yield* appendAll(feeder.events)
    const worker = yield* start(world, [
      counting(counts, {
        before: (event) =>
          event.globalPosition === 16n
            ? Effect.andThen(Deferred.succeed(begun, undefined), Deferred.await(mayContinue))
            // The handler never completes for later events.
            : event.globalPosition > 16n
            ? Effect.never
            : Effect.void
      })
    ], { how: "catchUp", settings: { batchSize: 4 } })
    yield* meanwhile(begun)
    yield* pass(2_000)
    assert.isFalse(hasEnded(worker.fiber), "the last event is not handled yet")
    yield* appendAll(feeder.events)
    yield* Deferred.succeed(mayContinue, undefined)
    yield* pass(20_000, 500)
    assert.isTrue(hasEnded(worker.fiber))
    assert.isTrue(Exit.isSuccess(yield* Fiber.await(worker.fiber)))
    assert.deepStrictEqual(yield* TxRef.get(counts), times(1))
    const rows = yield* feeder.checkpoints.rows("counts")
    assert.deepStrictEqual(rows.map(({ fence, position }) => ({ fence, position })), [
      { fence: undefined, position: 16n }
    ])
    assert.deepStrictEqual(worker.tags().slice(-3), ["WorkerLeaving", "WorkerLeft", "WorkerStopped"])
  }))

it.effect("catchUp waits for every projection and advances past events that their filters exclude", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const [some, others] = [yield* noCounts, yield* noCounts]
    const feeder = yield* enter(world)
    yield* appendAll(feeder.events)
    yield* feeder.events.append([event("group", { aggregateType: "Group" })])
    yield* feeder.events.append([event("nobody", { aggregateType: "Nobody" })])
    const worker = yield* start(world, [
      counting(some, { aggregateTypes: ["User"] }),
      counting(others, { name: "groups", aggregateTypes: ["Group"], before: () => Effect.sleep("3 seconds") })
    ], { how: "catchUp" })
    yield* pass(2_000)
    assert.isFalse(hasEnded(worker.fiber))
    yield* pass(2_000)
    assert.isTrue(hasEnded(worker.fiber))
    assert.deepStrictEqual(yield* TxRef.get(some), times(1))
    assert.deepStrictEqual(yield* TxRef.get(others), { group: 1 })
    for (const name of ["counts", "groups"]) {
      assert.deepStrictEqual((yield* feeder.checkpoints.rows(name)).map(({ position }) => position), [18n])
    }
  }))

it.effect.each([["no event", 0], ["events that no projection handles", 16]] as const)(
  "catchUp returns without waiting for a poll when there are %s",
  ([, events]) =>
    Effect.gen(function*() {
      const world = yield* MemoryStores.makeWorld
      const feeder = yield* enter(world)
      if (events > 0) yield* appendAll(feeder.events)
      const worker = yield* start(world, [counting(yield* noCounts, { aggregateTypes: ["Group"] })], {
        how: "catchUp",
        settings: { pollInterval: "25 seconds" }
      })
      yield* pass(500)
      assert.isTrue(hasEnded(worker.fiber))
      assert.isTrue(Exit.isSuccess(yield* Fiber.await(worker.fiber)))
      assert.deepStrictEqual((yield* feeder.checkpoints.rows("counts")).map(({ position }) => position), [
        BigInt(events)
      ])
    })
)

it.effect("catchUp returns without waiting for a poll when empty progress is written after the range was caught up", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const feeder = yield* enter(world)
    yield* appendAll(feeder.events)
    let waits = 0
    const worker = yield* start(world, [counting(yield* noCounts, { aggregateTypes: ["Group"] })], {
      how: "catchUp",
      settings: { pollInterval: "25 seconds" },
      // As if a writer held the settled position at 8 for a moment.
      events: (real) => ({
        settledBeyond: (...args) => waits++ === 0 ? Effect.succeed(8n) : real.settledBeyond(...args)
      })
    })
    yield* pass(2_000)
    assert.isTrue(hasEnded(worker.fiber))
  }))

it.effect("catchUp fails when a range is halted", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const feeder = yield* enter(world)
    yield* appendAll(feeder.events)
    const worker = yield* start(world, [
      counting(yield* noCounts, {
        before: (event) =>
          event.aggregateId === "user-9" ? Effect.fail(new Broken({ message: "no such user" })) : Effect.void
      })
    ], { how: "catchUp" })
    yield* pass(5_000)
    const error = failureOf(worker.fiber)
    assert.strictEqual(error?._tag, "ProjectionHalted")
    for (const part of ["counts", "10", "no such user"]) assert.include(error!.message, part)
    assert.deepStrictEqual(worker.said("Info").slice(-1), ["Unregistering worker..."])
  }))

it.effect("catchUp checks the progress about 20 times a second, however many events arrive", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const feeder = yield* enter(world)
    yield* appendAll(feeder.events)
    let checks = 0
    const worker = yield* start(world, [
      counting(yield* noCounts),
      counting(yield* noCounts, { name: "slow", before: () => Effect.sleep("3 seconds") })
    ], {
      how: "catchUp",
      events: ({ headPosition }) => ({ headPosition: Effect.tap(headPosition, () => Effect.sync(() => checks++)) })
    })
    yield* pass(500)
    checks = 0
    for (let n = 0; n < 100; n++) {
      yield* feeder.events.append([event("later")])
      yield* pass(10)
    }
    const checked = checks
    yield* endOf(worker)
    assert.isAtLeast(worker.of("BatchCommitted").length, 100)
    assert.isBelow(checked, 25)
  }))

it.effect("catchUp returns although a later event has halted a range", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const begun = yield* Deferred.make<void>()
    const mayContinue = yield* Deferred.make<void>()
    const feeder = yield* enter(world)
    yield* appendAll(feeder.events)
    const worker = yield* start(world, [
      counting(yield* noCounts, {
        before: (event) =>
          event.globalPosition === 1n
            ? Effect.andThen(Deferred.succeed(begun, undefined), Deferred.await(mayContinue))
            : event.globalPosition === 17n
            ? Effect.fail(new Broken({ message: "broken" }))
            : Effect.void
      })
    ], { how: "catchUp", settings: { batchSize: 8 } })
    yield* meanwhile(begun)
    // In the store before the last page is read, so that the range is not caught up between 16 and 17.
    yield* feeder.events.append([event("later")])
    yield* Deferred.succeed(mayContinue, undefined)
    yield* pass(5_000)
    assert.deepStrictEqual(worker.of("RangeHalted").map(({ halt }) => halt.position), [17n])
    assert.isTrue(Exit.isSuccess(yield* Fiber.await(worker.fiber)))
  }))

it.effect("catchUp waits for the progress of another worker that owns the range", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const steady = yield* start(world, [counting(counts, { before: () => Effect.sleep("20 millis") })])
    yield* pass(500)
    yield* appendAll(steady.events)
    const brief = yield* start(world, [counting(counts, { before: () => Effect.sleep("20 millis") })], {
      how: "catchUp"
    })
    yield* pass(10_000, 20)
    assert.isTrue(Exit.isSuccess(yield* Fiber.await(brief.fiber)))
    assert.deepStrictEqual(yield* TxRef.get(counts), times(1))
    assert.isFalse(hasEnded(steady.fiber))
  }))

it.effect.each([["now", 16n], [10n, 10n], ["beginning", 0n]] as const)(
  "startFrom %s applies only to the projection's first start",
  ([startFrom, position]) =>
    Effect.gen(function*() {
      const world = yield* MemoryStores.makeWorld
      const handled: Array<bigint> = []
      const projection = Projection.make("counts", {
        startFrom,
        handle: (event) => Effect.sync(() => handled.push(event.globalPosition))
      })
      const feeder = yield* enter(world)
      yield* appendAll(feeder.events)
      const first = yield* start(world, [projection], { how: "catchUp" })
      yield* pass(1_000)
      assert.isTrue(Exit.isSuccess(yield* Fiber.await(first.fiber)))
      assert.deepStrictEqual(
        handled,
        Array.from({ length: 16 - Number(position) }, (_, n) => position + BigInt(n) + 1n)
      )
      assert.strictEqual(first.of("RangeClaimed")[0]?.position, position)
      yield* appendAll(feeder.events)
      const second = yield* start(world, [projection], { how: "catchUp" })
      yield* pass(1_000)
      assert.isTrue(Exit.isSuccess(yield* Fiber.await(second.fiber)))
      assert.strictEqual(second.of("RangeClaimed")[0]?.position, 16n, "recorded progress, not startFrom")
      assert.strictEqual(handled.length, 32 - Number(position))
    })
)

it.effect("a graceful stop waits for the current batch and commits it", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const inHand = yield* Deferred.make<void>()
    const worker = yield* start(world, [
      counting(counts, { before: () => Effect.andThen(Deferred.succeed(inHand, undefined), Effect.sleep("3 seconds")) })
    ])
    yield* worker.events.append([event("a")])
    yield* worker.events.append([event("b")])
    yield* meanwhile(inHand)
    yield* worker.stop
    yield* pass(2_500)
    assert.isFalse(hasEnded(worker.fiber))
    yield* pass(1_000)
    assert.isTrue(hasEnded(worker.fiber))
    const { events, checkpoints } = yield* enter(world)
    assert.strictEqual(yield* events.headPosition, 2n)
    assert.deepStrictEqual(yield* TxRef.get(counts), { a: 1 })
    assert.deepStrictEqual((yield* checkpoints.rows("counts")).map(({ fence, position }) => [fence, position]), [[
      undefined,
      1n
    ]])
    assert.deepStrictEqual(worker.tags().slice(-5), [
      "BatchCommitted",
      "RangeStopped",
      "WorkerLeaving",
      "WorkerLeft",
      "WorkerStopped"
    ])
  }))

it.effect("a batch that takes longer than drainTimeout is interrupted and rolled back", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const inHand = yield* Deferred.make<void>()
    let interrupted = false
    const worker = yield* start(world, [
      Projection.make("counts", {
        handle: (event) =>
          TxRef.update(counts, (all) => ({ ...all, [event.aggregateId]: 1 })).pipe(
            Effect.andThen(Deferred.succeed(inHand, undefined)),
            Effect.andThen(Effect.never),
            Effect.onInterrupt(() =>
              Effect.sync(() => {
                interrupted = true
              })
            )
          )
      })
    ], { settings: { drainTimeout: "2 seconds" } })
    yield* worker.events.append([event("a")])
    yield* meanwhile(inHand)
    yield* worker.stop
    yield* pass(1_900)
    assert.isFalse(interrupted)
    yield* pass(300)
    assert.isTrue(interrupted)
    assert.isTrue(hasEnded(worker.fiber))
    assert.deepStrictEqual(yield* TxRef.get(counts), {})
    const { checkpoints } = yield* enter(world)
    assert.deepStrictEqual((yield* checkpoints.rows("counts")).map(({ fence, position }) => [fence, position]), [[
      undefined,
      0n
    ]])
  }))

it.effect("a worker whose handler does not stop fails and leaves; other workers claim its ranges", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const inHand = yield* Deferred.make<void>()
    const release = yield* Deferred.make<void>()
    const stuck = yield* start(world, [
      counting(counts, {
        before: () =>
          Effect.uninterruptible(Effect.andThen(Deferred.succeed(inHand, undefined), Deferred.await(release)))
      })
    ], { settings: { coordinationTimeout: "20 seconds" } })
    yield* stuck.events.append([event(upper)])
    yield* meanwhile(inHand)
    const other = yield* start(world, [counting(counts)], { settings: { coordinationTimeout: "20 seconds" } })
    yield* pass(19_000, 250)
    assert.isFalse(hasEnded(stuck.fiber))
    assert.deepStrictEqual(yield* TxRef.get(counts), {})
    // coordinationTimeout, plus the time a handler has to stop: drainTimeout and a grace of five seconds.
    yield* pass(20_000, 250)
    assert.isTrue(hasEnded(stuck.fiber), "the stuck worker has not ended")
    const error = failureOf(stuck.fiber)
    assert.strictEqual(error?._tag, "CoordinationTimeout")
    assert.include(error!.message, "the handler of counts does not stop")
    assert.isFalse(hasEnded(other.fiber), "the worker waiting for it must keep running")
    yield* pass(1_000)
    assert.deepStrictEqual(yield* TxRef.get(counts), { [upper]: 1 })
    // The stuck handler's late writes do not commit.
    yield* Deferred.succeed(release, undefined)
    yield* pass(1_000)
    assert.deepStrictEqual(yield* TxRef.get(counts), { [upper]: 1 })
  }))

it.effect("an evicted worker stops its projections, registers again and continues", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const failing = { now: false }
    const silent = yield* start(world, [counting(counts)], { membership: failingHeartbeats(failing) })
    const other = yield* start(world, [counting(counts)])
    yield* pass(500)
    yield* appendAll(other.events)
    yield* pass(500)
    failing.now = true
    yield* pass(45_000, 500)
    assert.strictEqual(silent.of("Suspended").length, 1)
    assert.strictEqual(other.of("GenerationChanged").at(-1)?.generation.members.length, 1)
    yield* appendAll(other.events)
    yield* pass(1_000)
    assert.deepStrictEqual(yield* TxRef.get(counts), times(2), "the other worker owns all ranges")
    failing.now = false
    yield* pass(5_000, 250)
    assert.deepStrictEqual(
      silent.tags().filter((tag) => tag === "WorkerEvicted" || tag === "WorkerRegistered"),
      ["WorkerRegistered", "WorkerEvicted", "WorkerRegistered"]
    )
    const [before, after] = silent.of("WorkerRegistered").map(({ registration }) => registration)
    assert.strictEqual(after?.workerId, before?.workerId)
    assert.isTrue(after!.incarnation > before!.incarnation)
    assert.isTrue(silent.said("Warn").some((text) => text.includes("registers again")))
    assert.deepStrictEqual(silent.said("Info").filter((text) => text.startsWith("Unregistering")), [])
    yield* appendAll(other.events)
    yield* pass(1_000)
    assert.deepStrictEqual(yield* TxRef.get(counts), times(3))
    assert.isTrue((silent.of("BatchCommitted").at(-1)?.position ?? 0n) > 32n)
  }))

it.effect("a worker replaced under its id fails with WorkerReplaced and does not register again", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const failing = { now: false }
    const settings = { workerId: "pod-0" }
    const old = yield* start(world, [counting(counts)], { settings, membership: failingHeartbeats(failing) })
    yield* appendAll(old.events)
    yield* pass(500)
    failing.now = true
    yield* pass(31_000, 500)
    const successor = yield* start(world, [counting(counts)], { settings })
    yield* appendAll(old.events)
    yield* pass(500)
    assert.isFalse(hasEnded(successor.fiber))
    failing.now = false
    yield* pass(5_000, 250)
    const error = failureOf(old.fiber)
    assert.strictEqual(error?._tag, "WorkerReplaced")
    for (const part of ["\"pod-0\"", "\"main\"", "different ids"]) assert.include(error!.message, part)
    yield* appendAll(old.events)
    yield* pass(500)
    assert.deepStrictEqual(yield* TxRef.get(counts), times(3))
    assert.isFalse(hasEnded(successor.fiber))
  }))

it.effect("a worker suspends its projections before its unrenewed heartbeat is stale, and resumes once renewed", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const failing = { now: false }
    const worker = yield* start(world, [counting(counts)], { membership: failingHeartbeats(failing) })
    yield* pass(5_500)
    failing.now = true
    // The last heartbeat was at 5 s; 80 % of staleWorkerTimeout (30 s) later is 29 s.
    yield* pass(23_000, 500)
    yield* appendAll(worker.events)
    yield* pass(400)
    assert.strictEqual(worker.of("Suspended").length, 0)
    assert.deepStrictEqual(yield* TxRef.get(counts), times(1))
    yield* pass(2_000)
    assert.strictEqual(worker.of("Suspended").length, 1)
    assert.strictEqual(worker.of("RangeStopped").length, 1)
    yield* appendAll(worker.events)
    yield* pass(500)
    assert.deepStrictEqual(yield* TxRef.get(counts), times(1), "no event is handled while suspended")
    failing.now = false
    yield* pass(2_000)
    assert.strictEqual(worker.of("Resumed").length, 1)
    assert.deepStrictEqual(yield* TxRef.get(counts), times(2))
    assert.strictEqual(worker.of("WorkerEvicted").length, 0)
  }))

it.effect("when a process dies, its neighbour claims its ranges without waiting for the heartbeat timeout", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const first = yield* start(world, [counting(counts)])
    const second = yield* start(world, [counting(counts)])
    yield* pass(500)
    yield* second.handle.cut
    yield* appendAll(first.events)
    yield* pass(500)
    assert.deepStrictEqual(yield* TxRef.get(counts), times(1))
    assert.strictEqual(first.of("GenerationChanged").at(-1)?.generation.members.length, 1)
    yield* endOf(second)
  }))

it.effect("a halted range does not affect other ranges and projections", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const [counts, others] = [yield* noCounts, yield* noCounts]
    const broken = () => [
      counting(counts, {
        before: (event) => event.aggregateId === upper ? Effect.fail(new Broken({ message: "broken" })) : Effect.void
      }),
      counting(others, { name: "others" })
    ]
    const workers = [yield* start(world, broken()), yield* start(world, broken())]
    yield* pass(500)
    const { checkpoints, events } = yield* enter(world)
    yield* events.append([event(upper)])
    yield* pass(500)
    yield* events.append([event(upper), event(upper)])
    yield* events.append([event(lower), event(lower)])
    yield* pass(2_000)
    assert.deepStrictEqual(yield* TxRef.get(counts), { [lower]: 2 })
    assert.deepStrictEqual(yield* TxRef.get(others), { [lower]: 2, [upper]: 3 })
    const rows = yield* checkpoints.rows("counts")
    assert.deepStrictEqual(rows.map(({ halt, position }) => [halt?.position, position]), [[undefined, 5n], [1n, 0n]])
    assert.isTrue(HashRange.tiles(rows.map(({ range }) => range)))
    assert.deepStrictEqual(workers.map(({ fiber }) => hasEnded(fiber)), [false, false])
    // Merging ranges at the same position must not restart the halted range.
    yield* pass(12_000, 250)
    const errors = workers.flatMap(({ lines }) => lines.filter(({ level }) => level === "Error"))
    assert.strictEqual(errors.length, 1)
    const { generation, projection, range, worker } = errors[0]!.annotations
    assert.deepStrictEqual([projection, generation], ["counts", "1"])
    assert.isString(worker)
    assert.isString(range)
    // A new subscriber receives the halt.
    const present = yield* Effect.forEach(workers, ({ orchestrator }) =>
      orchestrator.activity.pipe(
        Stream.takeUntil(({ _tag }) => _tag === "RangeHalted"),
        Stream.runCollect,
        Effect.timeoutOption("1 second"),
        Effect.forkChild
      ))
    yield* pass(2_000)
    const halts = yield* Effect.forEach(present, (fiber) => Fiber.join(fiber))
    assert.strictEqual(
      halts.filter(({ _tag }) => _tag === "Some").length,
      1
    )
  }))

it.effect("a worker retries while events cannot be read, and continues afterwards", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const failing = { now: false }
    const worker = yield* start(world, [counting(counts)], {
      events: (real) => ({
        read: (options) => Effect.suspend(() => failing.now ? Effect.fail(unavailable) : real.read(options))
      })
    })
    yield* pass(500)
    failing.now = true
    yield* appendAll(worker.events)
    yield* pass(10_000, 250)
    assert.deepStrictEqual(yield* TxRef.get(counts), {})
    failing.now = false
    yield* pass(6_000, 250)
    assert.deepStrictEqual(yield* TxRef.get(counts), times(1))
    assert.isFalse(hasEnded(worker.fiber))
  }))

it.effect("metrics have the Go original's names and correct values", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const counts = yield* noCounts
    const names = (
      "generations_total workers_registered_total partition_assignments_total reconfiguration_total " +
      "stale_workers_cleaned_total events_processed_total projection_errors_total active_workers " +
      "current_generation_partitions worker_state coordination_duration_seconds event_processing_duration_seconds " +
      "heartbeat_latency_seconds"
    ).split(" ")
    const first = yield* start(world, [
      counting(counts),
      counting(yield* noCounts, { name: "broken", before: () => Effect.fail(new Broken({ message: "broken" })) })
    ])
    yield* pass(500)
    const second = yield* start(world, [counting(counts)])
    yield* pass(500)
    yield* appendAll(first.events)
    yield* pass(6_000, 250)
    yield* second.handle.cut
    yield* pass(1_000)

    const snapshot = yield* Metric.snapshot
    const found = (name: string, attributes: Readonly<Record<string, string>> = {}) =>
      snapshot.filter((metric) =>
        metric.id === `pupsourcing_orchestrator_${name}` &&
        Object.entries(attributes).every(([key, value]) => metric.attributes?.[key] === value)
      )
    const sum = (name: string, attributes: Readonly<Record<string, string>> = {}) =>
      found(name, attributes).reduce((total, metric) =>
        total +
        Number("count" in metric.state ? metric.state.count : "value" in metric.state ? metric.state.value : NaN), 0)
    for (const name of names) {
      assert.isAbove(found(name).length, 0, name)
    }
    for (const { attributes, id } of snapshot) {
      if (id.startsWith("pupsourcing_")) assert.strictEqual(attributes?.["replica_set"], "main", id)
    }
    assert.strictEqual(sum("generations_total"), 3)
    assert.strictEqual(sum("workers_registered_total"), 2)
    // One for each member of each of the three generations: 1 + 2 + 1.
    assert.strictEqual(sum("reconfiguration_total"), 4)
    assert.strictEqual(sum("stale_workers_cleaned_total"), 1)
    assert.strictEqual(sum("events_processed_total", { projection: "counts" }), 16)
    assert.strictEqual(sum("projection_errors_total", { projection: "broken", halted: "true" }), 1)
    assert.strictEqual(sum("active_workers"), 1)
    assert.strictEqual(sum("current_generation_partitions"), 1)
    assert.strictEqual(sum("worker_state", { state: "running" }), 1)
    assert.strictEqual(sum("worker_state"), 1)
    assert.isAtLeast(sum("partition_assignments_total", { projection: "counts" }), 3)
    assert.isAtLeast(sum("heartbeat_latency_seconds"), 2)
    assert.isAtLeast(sum("event_processing_duration_seconds", { projection: "counts" }), 2)
    assert.strictEqual(sum("coordination_duration_seconds"), 4)
    yield* endOf(second)
  }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))

it.effect.each<readonly [string, Partial<Settings.Input>, RegExp]>([
  ["an empty replica set", { replicaSet: " " }, /"replicaSet".*must not be empty/],
  ["a negative duration", { pollInterval: "-1 seconds" }, /"pollInterval".*not negative/],
  [
    "a duration that is not a number",
    { drainTimeout: Number.NaN },
    /"drainTimeout".*not a valid duration.*"5 seconds"/
  ],
  ["an endless duration", { pollInterval: Duration.infinity }, /"pollInterval".*finite/],
  ["a duration of zero", { heartbeatInterval: 0 }, /"heartbeatInterval".*greater than zero/],
  ["too few heartbeats", { heartbeatInterval: "20 seconds" }, /"staleWorkerTimeout".*three heartbeats/],
  ["a drain longer than the switch", { drainTimeout: "2 minutes" }, /"drainTimeout".*coordinationTimeout/],
  ["half an event", { batchSize: 0.5 }, /"batchSize".*whole number/],
  ["an empty worker id", { workerId: "" }, /"workerId".*must not be empty/]
])("%s is refused when the orchestrator is built", ([, input, message]) =>
  Effect.gen(function*() {
    const projections = [counting(yield* noCounts)]
    const error = yield* Effect.flip(Orchestrator.make({ replicaSet: "main", projections, ...input }))
    assert.strictEqual(error._tag, "InvalidSettings")
    assert.match(error.message, message)
  }).pipe(Effect.provide(MemoryStores.layer)))

it.effect("rejects no projections, an empty name, duplicate names and a filter that matches nothing", () =>
  Effect.gen(function*() {
    const named = (name: string, options: Partial<Projection.Options<never, never>> = {}) =>
      Projection.make(name, { handle: () => Effect.void, ...options })
    const refused = (projections: ReadonlyArray<Projection.Projection>) =>
      Effect.flip(Orchestrator.make({ replicaSet: "main", projections }))
    const expected: ReadonlyArray<readonly [ReadonlyArray<Projection.Projection>, string, RegExp]> = [
      [[], "InvalidSettings", /at least one Projection\.make/],
      [[named("")], "InvalidSettings", /name must not be empty/],
      [[named(" ")], "InvalidSettings", /name must not be empty/],
      [[named("a"), named("b"), named("a")], "DuplicateProjection", /"a".*each projection its own/],
      [[named("a", { startFrom: -1n })], "InvalidSettings", /startFrom of "a"/],
      [[named("a", { eventTypes: [] })], "InvalidSettings", /eventTypes of "a" is empty/]
    ]
    for (const [projections, tag, message] of expected) {
      const error = yield* refused(projections)
      assert.strictEqual(error._tag, tag)
      assert.match(error.message, message)
    }
  }).pipe(Effect.provide(MemoryStores.layer)))

it.effect("settings from Config are validated like plain ones", () =>
  Effect.gen(function*() {
    const counts = yield* noCounts
    const live = Orchestrator.layerConfig({
      replicaSet: Config.String("replicaSet"),
      batchSize: Config.Int("batchSize"),
      pollInterval: "1 second",
      projections: [counting(counts)]
    }).pipe(Layer.provideMerge(MemoryStores.layer))
    const given = (values: Record<string, unknown>) =>
      Layer.provide(live, ConfigProvider.layer(ConfigProvider.fromUnknown(values)))
    const built = (values: Record<string, unknown>) => Effect.flip(Effect.scoped(Layer.build(given(values))))
    assert.strictEqual((yield* built({ replicaSet: "main" }))._tag, "ConfigError")
    const invalid = yield* built({ replicaSet: "main", batchSize: 0 })
    assert.strictEqual(invalid._tag, "InvalidSettings")
    assert.match(invalid.message, /"batchSize".*at least 1/)
    yield* Effect.gen(function*() {
      const events = yield* EventStore
      yield* appendAll(events)
      const fiber = yield* Effect.forkChild(Orchestrator.catchUp)
      yield* pass(500)
      yield* Fiber.join(fiber)
    }).pipe(Effect.provide(Layer.merge(given({ replicaSet: "main", batchSize: 3 }), logs().layer)))
    assert.deepStrictEqual(yield* TxRef.get(counts), times(1))
  }))
