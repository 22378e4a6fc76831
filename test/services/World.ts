/**
 * An in-memory world for tests of the services above the stores: its processes, their log lines, and stores with
 * scripted failures.
 */
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import { TestClock } from "effect/testing"
import * as TxRef from "effect/TxRef"
import * as MemoryStores from "../../src/layers/memory/MemoryStores.ts"
import * as MemoryWorld from "../../src/layers/memory/MemoryWorld.ts"
import type { Activity } from "../../src/schema/Activity.ts"
import type { Checkpoint, Held } from "../../src/schema/Checkpoint.ts"
import type { NewEvent } from "../../src/schema/Event.ts"
import * as Settings from "../../src/schema/Settings.ts"
import { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import { CoordinationStore } from "../../src/services/CoordinationStore.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import { Membership } from "../../src/services/Membership.ts"
import { ParkedEvents } from "../../src/services/ParkedEvents.ts"
import * as Projection from "../../src/services/Projection.ts"
import { Projections } from "../../src/services/Projections.ts"
import * as RetryLog from "../../src/services/telemetry/RetryLog.ts"
import * as Telemetry from "../../src/services/telemetry/Telemetry.ts"
import * as RangeRunner from "../../src/services/worker/RangeRunner.ts"
import * as RangeState from "../../src/services/worker/RangeState.ts"
import * as Startup from "../../src/services/worker/Startup.ts"
import * as StoreErrors from "../support/StoreErrors.ts"

export const rules = { heartbeatIntervalMillis: 5_000, staleWorkerTimeoutMillis: 30_000, presenceGraceMillis: 100 }

/** One line that a process logged. */
export interface Line {
  readonly level: string
  readonly text: string
  readonly annotations: Readonly<Record<string, unknown>>
}

/** A logger layer that records every line, and the recorded lines, oldest first. */
export const logs = (): { readonly lines: Array<Line>; readonly layer: Layer.Layer<never> } => {
  const lines: Array<Line> = []
  const logger = Logger.make(({ fiber, logLevel, message }) => {
    lines.push({
      level: logLevel,
      text: (Array.isArray(message) ? message : [message]).map(String).join(" "),
      annotations: { ...fiber.getRef(References.CurrentLogAnnotations) }
    })
  })
  return {
    lines,
    layer: Layer.merge(Logger.layer([logger]), Layer.succeed(References.MinimumLogLevel, "All"))
  }
}

/** The failure of the handlers in these tests. */
export class Broken extends Data.TaggedError("Broken")<{ readonly message: string }> {}

/** The failure of the stores while their database is unreachable. */
export const unavailable = StoreErrors.unavailable("connection lost")

export const event = (id: string, rest: Partial<NewEvent> = {}) => ({
  boundedContext: "app",
  aggregateType: "User",
  aggregateId: id,
  eventType: "UserCreated",
  payload: { secret: "payloads stay out of logs" },
  ...rest
})

/** Adds a process to the world. */
export const enter = Effect.fnUntraced(function*(world: MemoryWorld.MemoryWorld) {
  const handle = yield* MemoryWorld.open(world)
  const stores = MemoryStores.make(handle)
  return {
    handle,
    stores,
    events: Context.get(stores, EventStore),
    checkpoints: Context.get(stores, CheckpointStore),
    parkedEvents: Context.get(stores, ParkedEvents),
    membership: Context.get(stores, Membership),
    coordination: Context.get(stores, CoordinationStore),
    status: Context.get(stores, Projections)
  }
})

/** Lets fibers run until they wait for the clock, without advancing it. */
export const breathe: Effect.Effect<void> = Effect.yieldNow.pipe(Effect.repeat({ times: 60 }), Effect.asVoid)

/** Advances the clock in small steps, so that fibers run in between as they do in real time. */
export const pass = (millis: number, step = 50): Effect.Effect<void> =>
  TestClock.adjust(Math.min(step, millis)).pipe(
    Effect.andThen(breathe),
    Effect.repeat({ times: Math.max(0, Math.ceil(millis / step) - 1) }),
    Effect.asVoid
  )

export interface RunnerOptions {
  readonly settings?: Partial<Settings.Input> | undefined
  readonly captured?: Context.Context<unknown> | undefined
  readonly checkpoints?: ((real: CheckpointStore) => Partial<CheckpointStore>) | undefined
  readonly events?: ((real: EventStore["Service"]) => Partial<EventStore["Service"]>) | undefined
  /** A runner whose process this one shares. */
  readonly beside?: { readonly service: RangeRunner.RangeRunner["Service"] } | undefined
}

/**
 * A runner for the single range of a projection, not started yet. Several can be created one after another in the same
 * world: each is a new worker and needs the range that the one before it has released.
 */
export const runner = Effect.fnUntraced(function*(
  world: MemoryWorld.MemoryWorld,
  projection: Projection.Any,
  options: RunnerOptions = {}
) {
  const process = yield* enter(world)
  const settings = yield* Effect.fromResult(Settings.make({ replicaSet: "main", ...options.settings }))
  const workerId = `worker-${process.handle.process}`
  const registration = yield* process.membership.join({
    replicaSet: "main",
    workerId,
    projections: [projection.name],
    rules
  })
  const request = {
    registration,
    projections: [{
      name: projection.name,
      filter: Projection.filterText(projection),
      startPosition: 0n
    }],
    activeKeys: new Set<string>(),
    leaving: false,
    rules
  }
  const decision = yield* process.coordination.apply(request)
  const held = decision.ownedRows[0]
  if (held === undefined) return yield* Effect.die(new Error("the worker got no range"))
  const activity: Array<Activity> = []
  let state = RangeState.make(held, 0n)
  const draining = Latch.makeUnsafe(false)
  const { layer, lines } = logs()
  const retryLog = RetryLog.make()
  const service = options.beside?.service ?? (yield* RangeRunner.make(Startup.make(retryLog), retryLog).pipe(
    Effect.provideService(CheckpointStore, {
      ...process.checkpoints,
      ...options.checkpoints?.(process.checkpoints)
    }),
    Effect.provideService(ParkedEvents, process.parkedEvents),
    Effect.provideService(EventStore, { ...process.events, ...options.events?.(process.events) })
  ))
  const runOn = (row: Held) =>
    Effect.suspend(() => {
      state = RangeState.make(row, 0n)
      return service.run({
        projection,
        registration,
        hasNoParked: false,
        captured: options.captured ?? (Context.empty() as Context.Context<unknown>),
        state,
        settings,
        draining,
        caughtUp: Latch.makeUnsafe(false),
        record: (entry) => Effect.andThen(Telemetry.emit("main", entry), Effect.sync(() => activity.push(entry))),
        giveUp: Effect.die
      })
    }).pipe(Effect.provide(layer))
  const run = runOn(held)
  /** The committed row. */
  const row = Effect.map(process.checkpoints.rows(projection.name), (rows) => rows[0]!)
  const tags = (): ReadonlyArray<string> => activity.map(({ _tag }) => _tag)
  const of = <T extends Activity["_tag"]>(tag: T): ReadonlyArray<Extract<Activity, { readonly _tag: T }>> =>
    activity.filter((entry): entry is Extract<Activity, { readonly _tag: T }> => entry._tag === tag)
  const drain = (fiber: Fiber.Fiber<RangeRunner.RunnerResult, unknown>) =>
    Effect.andThen(draining.open, Effect.orDie(Fiber.join(fiber)))
  const leave = process.coordination.apply({ ...request, leaving: true })
  return {
    ...process,
    activity,
    drain,
    draining,
    held,
    leave,
    lines,
    of,
    registration,
    row,
    run,
    runOn,
    service,
    state: () => state,
    tags
  }
})

/**
 * Returns an effect that restores the world's server to its state at the time of the call, in a new epoch: later
 * commits are lost.
 */
export const restorePoint = (
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

/** A handler that cannot be interrupted. */
export const stubborn = Projection.make("stubborn", { handle: () => Effect.uninterruptible(Effect.never) })
