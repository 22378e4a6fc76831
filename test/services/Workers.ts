/** Workers that share an in-memory world: each runs the whole orchestrator in a process of its own. */
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Metric from "effect/Metric"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TxRef from "effect/TxRef"
import * as MemoryStores from "../../src/layers/memory/MemoryStores.ts"
import * as MemoryWorld from "../../src/layers/memory/MemoryWorld.ts"
import type { Activity } from "../../src/schema/Activity.ts"
import type { Event } from "../../src/schema/Event.ts"
import type * as Settings from "../../src/schema/Settings.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import { Membership } from "../../src/services/Membership.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import { Projections } from "../../src/services/Projections.ts"
import { breathe, Broken, enter, event, logs, pass, unavailable } from "./World.ts"

type Counts = Readonly<Record<string, number>>

/** How a projection differs from `counts`. */
export interface CountingOptions extends Projection.CommonOptions {
  readonly name?: string
  readonly before?: (event: Event) => Effect.Effect<unknown, unknown>
}

/** How a worker differs from one of replica set `main` with the projection `counts`. */
export interface StartOptions extends Partial<Settings.Input> {
  readonly projections?: ReadonlyArray<Projection.Projection<unknown, never>>
  readonly membership?: (real: Membership) => Partial<Membership>
  readonly events?: (real: EventStore["Service"]) => Partial<EventStore["Service"]>
  readonly status?: (real: Projections["Service"]["status"]) => Projections["Service"]["status"]
  readonly how?: "run" | "catchUp"
}

export const aggregates = Array.from({ length: 16 }, (_, index) => `user-${index}`)

/** The counts after `appendAll` has run `n` times. */
export const times = (n: number): Counts => Object.fromEntries(aggregates.map((id) => [id, n]))

/** An aggregate in the upper half of the hash space, which the second of two workers owns, and one in the lower. */
export const upper = aggregates.find((id) => MemoryWorld.hash(id) >= 2 ** 31)!
export const lower = aggregates.find((id) => MemoryWorld.hash(id) < 2 ** 31)!

/** A world, its read models, and a process that appends and reads. */
export const make = Effect.gen(function*() {
  const world = yield* MemoryStores.makeWorld
  const { checkpoints, events } = yield* enter(world)
  const models = new Map<string, TxRef.TxRef<Counts>>()
  const model = (name: string): TxRef.TxRef<Counts> => {
    const known = models.get(name) ?? TxRef.makeUnsafe<Counts>({})
    models.set(name, known)
    return known
  }

  /** Counts the events of each aggregate in the transaction and fails on any version but the next. */
  const counting = ({ before, name = "counts", ...options }: CountingOptions = {}) =>
    Projection.make(name, {
      ...options,
      handle: Effect.fnUntraced(function*(event) {
        if (before !== undefined) yield* before(event)
        const count = (yield* TxRef.get(model(name)))[event.aggregateId] ?? 0
        if (BigInt(count) + 1n !== event.aggregateVersion) {
          return yield* Effect.die(new Error(`${event.aggregateId}: ${event.aggregateVersion} after ${count}`))
        }
        yield* TxRef.update(model(name), (all) => ({ ...all, [event.aggregateId]: count + 1 }))
      })
    })

  /** Starts a worker in its own process; stopped when the test ends. */
  const start = Effect.fnUntraced(function*(options: StartOptions = {}) {
    const { events, how = "run", membership, projections = [counting()], status, ...settings } = options
    const process = yield* enter(world)
    const { layer, lines } = logs()
    const activity: Array<Activity> = []
    const orchestrator = yield* Effect.provideContext(
      Orchestrator.make({ replicaSet: "main", projections, ...settings }),
      process.stores.pipe(
        Context.add(Membership, { ...process.membership, ...membership?.(process.membership) }),
        Context.add(EventStore, { ...process.events, ...events?.(process.events) }),
        Context.add(Projections, {
          ...process.status,
          ...(status === undefined ? {} : { status: status(process.status.status) })
        })
      )
    )
    yield* orchestrator.activity.pipe(
      Stream.runForEach((entry) => Effect.sync(() => activity.push(entry))),
      Effect.forkScoped({ startImmediately: true })
    )
    const fiber = yield* Effect.forkChild(Effect.provide(orchestrator[how], layer))
    yield* breathe
    const of = <T extends Activity["_tag"]>(tag: T): ReadonlyArray<Extract<Activity, { readonly _tag: T }>> =>
      activity.filter((entry): entry is Extract<Activity, { readonly _tag: T }> => entry._tag === tag)
    const said = (level: string) => lines.filter((line) => line.level === level).map(({ text }) => text)
    const tags = () => activity.map(({ _tag }) => _tag)
    const hasEnded = () => fiber.pollUnsafe() !== undefined
    const hasSucceeded = () => {
      const exit = fiber.pollUnsafe()
      return exit !== undefined && Exit.isSuccess(exit)
    }
    /** Interrupts the worker as a signal does; await its exit with `Fiber.await`. */
    const stop = Effect.forkChild(Fiber.interrupt(fiber), { startImmediately: true })
    /** Stops a process without a connection, which eventually stops waiting for the database. */
    const stopCut = Effect.andThen(stop, pass(30_000, 500))
    return { ...process, fiber, hasEnded, hasSucceeded, lines, of, orchestrator, said, stop, stopCut, tags }
  })

  return {
    world,
    checkpoints,
    events,
    /** One event of each aggregate. */
    appendAll: Effect.forEach(aggregates, (id) => events.append([event(id)]), { discard: true }),
    counting,
    /** The committed read model. */
    counts: (name = "counts") => TxRef.get(model(name)),
    start
  }
})

/** A test with its own world and its own metrics. */
export const test = (
  name: string,
  body: (world: Effect.Success<typeof make>) => Generator<Effect.Effect<unknown, unknown, Scope.Scope>, void, never>
) =>
  it.effect(name, () =>
    Effect.flatMap(make, (world) => Effect.gen(() => body(world))).pipe(
      // Otherwise a failed test would never end: its workers are interrupted, and leave within limits of virtual time.
      Effect.onError(() => Effect.forkDetach(pass(60_000, 500))),
      Effect.provideService(Metric.MetricRegistry, new Map())
    ))

/** Asserts that the worker has failed with this error, whose message contains these parts. */
export const assertFailed = <E extends { readonly _tag: string; readonly message: string }>(
  { fiber }: { readonly fiber: Fiber.Fiber<unknown, E> },
  tag: E["_tag"],
  parts: ReadonlyArray<string> = []
): E => {
  const exit = fiber.pollUnsafe()
  assert(exit !== undefined && Exit.isFailure(exit), "the worker has not failed")
  const error = exit.cause.reasons.find(Cause.isFailReason)?.error
  assert.strictEqual(error?._tag, tag)
  for (const part of parts) assert.include(error!.message, part)
  return error!
}

/** A place at which handlers wait until the test opens it. */
export const makeGate = Effect.gen(function*() {
  const [reached, opened] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
  /** Reports the gate as reached, then runs `next` instead of waiting. */
  const reach = <A>(next: Effect.Effect<A>) => Effect.andThen(Deferred.succeed(reached, undefined), next)
  return {
    reach,
    wait: reach(Deferred.await(opened)),
    open: Deferred.succeed(opened, undefined),
    /** Advances the clock until a handler has reached the gate. */
    reached: pass(20).pipe(Effect.repeat({ until: () => Deferred.isDoneUnsafe(reached), times: 200 }))
  }
})

/** Heartbeats that fail while `failing.now`. */
export const failingHeartbeats = (failing: { now: boolean }) => (real: Membership) => ({
  heartbeat: (...args: Parameters<Membership["heartbeat"]>) =>
    Effect.suspend(() => failing.now ? Effect.fail(unavailable) : real.heartbeat(...args))
})

/** Fails as a handler does. */
export const fail = (message = "broken") => Effect.fail(new Broken({ message }))
