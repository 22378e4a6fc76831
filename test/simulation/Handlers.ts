/** The handlers of a run: they handle events, take time, fail, block their process and do not stop, as faults require. */
import type * as Array from "effect/Array"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { EventVersionTooNew } from "../../src/schema/Errors.ts"
import type { Event } from "../../src/schema/Event.ts"
import * as Projection from "../../src/services/Projection.ts"
import type { Fleet } from "./Fleet.ts"
import type { Worker } from "./Run.ts"
import type { Subject } from "./Subject.ts"

class SimulatedFailure extends Data.TaggedError("SimulatedFailure") {}

/** One call of a handler. */
interface Call<R> {
  /** Applies one event's effects. */
  readonly handle: (event: Event) => Effect.Effect<void, unknown, R>
  /** The call has ended without a failure. */
  readonly end: Effect.Effect<void>
}

export class Handlers<R> {
  private readonly fleet: Fleet<R>

  constructor(fleet: Fleet<R>) {
    this.fleet = fleet
  }

  /** The options of the projection that define its handler. */
  of(subject: Subject, worker: Worker) {
    return subject.isWhole
      ? { handleBatch: this.handlerOfBatches(subject, worker), batchWindow: subject.window }
      : { handle: this.handler(subject, worker) }
  }

  /** Returns how a call begins; `last` is the last of its events. */
  private beginner(subject: Subject, worker: Worker) {
    const { environment, run } = this.fleet
    const inTransaction: Call<R> = { handle: (event) => environment.handle(subject, event), end: Effect.void }
    return Effect.fnUntraced(function*(last: Event): Effect.fn.Return<Call<R>, never, Projection.Delivery> {
      if (!subject.isAtLeastOnce) return inTransaction
      const delivery = yield* Projection.Delivery
      if (delivery.position !== last.globalPosition) {
        run.violation(`P1: a handler got position ${delivery.position} instead of ${last.globalPosition}`)
      }
      const call = run.deliveries.begin(subject, worker, delivery)
      return { handle: (event) => Effect.sync(() => call.handle(event)), end: Effect.sync(() => call.end()) }
    })
  }

  private handler(subject: Subject, worker: Worker) {
    const { chance, coverage, fails } = this.fleet.run
    const failureAt = this.failureAt(subject, worker, () => chance.bool(0.1))
    const begin = this.beginner(subject, worker)
    return Effect.fnUntraced(function*(event: Event): Effect.fn.Return<void, unknown, R | Projection.Delivery> {
      const call = yield* begin(event)
      const failure = yield* failureAt(event)
      if (failure === undefined) return yield* Effect.andThen(call.handle(event), call.end)
      if (failure._tag === "SimulatedFailure") {
        coverage.count("faults", "handler fails")
        fails(subject, event.globalPosition)
      }
      return yield* failure
    })
  }

  /** Some events fail in each attempt, so that they have to be found; others once. */
  private handlerOfBatches(subject: Subject, worker: Worker) {
    const { chance, coverage, fails } = this.fleet.run
    const failureAt = this.failureAt(
      subject,
      worker,
      ({ globalPosition }) => globalPosition % 8n === 0n || chance.bool(0.02)
    )
    const begin = this.beginner(subject, worker)
    return Effect.fnUntraced(function*(
      events: Array.NonEmptyReadonlyArray<Event>
    ): Effect.fn.Return<void, unknown, R | Projection.Delivery> {
      const call = yield* begin(events[events.length - 1]!)
      if (events.length > 1) coverage.count("steps", "several events in one call")
      for (const event of events) {
        const failure = yield* failureAt(event)
        if (failure === undefined) {
          yield* call.handle(event)
          continue
        }
        const isNamed = chance.bool(0.3)
        if (failure._tag === "SimulatedFailure") {
          coverage.count("faults", isNamed ? "batch handler fails and names the event" : "batch handler fails")
          if (isNamed || events.length === 1) fails(subject, event.globalPosition)
        }
        return yield* isNamed ? Projection.failAt(event, failure) : failure
      }
      yield* call.end
    })
  }

  /**
   * Returns what a handler does before it handles an event: it takes its time, and returns the failure with which it ends,
   * if any. `fails` selects the events at which it fails while the worker's handlers fail.
   */
  private failureAt(subject: Subject, worker: Worker, fails: (event: Event) => boolean) {
    const { ailments } = worker
    const { run, run: { chance, now } } = this.fleet
    const isPoison = (event: Event) => this.isPoison(subject, event)
    const delayed = this.delayed(subject, worker)
    const tooNew = (event: Event) => this.tooNew(worker, event)
    return Effect.fnUntraced(function*(event: Event) {
      const newer = tooNew(event)
      if (newer !== undefined) return newer
      yield* delayed(event)
      const isFailing = isPoison(event) || (now() < run.handlersFailUntil && chance.bool(0.3)) ||
        (now() < ailments.handlerFailsUntil && fails(event))
      return isFailing ? new SimulatedFailure() : undefined
    })
  }

  /** Some events of a projection that parks or skips them cannot be handled until the faults stop; a retry may succeed. */
  private isPoison({ name, onFailure }: Subject, { globalPosition }: Event): boolean {
    if (onFailure === "halt" || this.fleet.isCalm || globalPosition % 12n !== 5n) return false
    const { chance, coverage, withheld } = this.fleet.run
    if (!withheld.isParked(name, globalPosition)) return true
    if (chance.bool(0.5)) return false
    coverage.count("faults", "parked event fails again")
    return true
  }

  /** Blocks the process, does not stop or takes time, if the worker's handlers do so at the moment. */
  private delayed(subject: Subject, worker: Worker) {
    const { ailments } = worker
    const { chance, coverage, now, takesLong } = this.fleet.run
    const blocked = (event: Event) => this.blocked(subject, worker, event)
    const frozen = (event: Event) => this.frozenInRetry(subject, worker, event)
    return Effect.fnUntraced(function*(event: Event) {
      if (frozen(event)) yield* Effect.sleep(0)
      if (blocked(event)) {
        coverage.count("faults", "handler blocks the event loop")
        takesLong(subject, event.globalPosition)
        // The process is frozen from here on.
        yield* Effect.sleep(0)
      }
      if (now() < ailments.handlerStuckUntil && !worker.isCut) {
        coverage.count("faults", "handler does not stop")
        takesLong(subject, event.globalPosition)
        yield* Effect.uninterruptible(Effect.sleep(ailments.handlerStuckUntil - now()))
      }
      if (now() < ailments.handlerSlowUntil) {
        coverage.count("faults", "handler slow")
        yield* Effect.sleep(chance.int(1, 60))
      }
    })
  }

  /** Freezes the process if it retries a parked event and that is due. Returns whether it did. */
  private frozenInRetry({ name }: Subject, worker: Worker, { globalPosition }: Event): boolean {
    const millis = this.fleet.freezeInRetry
    if (millis === undefined || worker.isCut || !this.fleet.run.withheld.isParked(name, globalPosition)) return false
    this.fleet.freezeInRetry = undefined
    this.fleet.run.coverage.count("faults", "freeze in a retry")
    this.fleet.freeze(worker, millis)
    return true
  }

  /** Freezes the process if the handler blocks at this event. Returns whether it did. */
  private blocked(subject: Subject, worker: Worker, { globalPosition }: Event): boolean {
    const event = this.fleet.unbearable
    if (event?.projection !== subject.name || worker.isCut) return false
    event.position ??= globalPosition
    if (event.position !== globalPosition) return false
    this.fleet.freeze(worker, event.millis)
    return true
  }

  /** The failure of decoding the event, if the worker's version does not declare that of the event. */
  private tooNew(worker: Worker, { eventId, eventType, globalPosition }: Event): EventVersionTooNew | undefined {
    const { newSince } = this.fleet
    if (!this.fleet.isOutdated(worker) || newSince === undefined || globalPosition <= newSince) return undefined
    this.fleet.run.coverage.count("faults", "event of a newer version")
    return new EventVersionTooNew({ eventId, eventType, eventVersion: 2, newest: 1 })
  }
}
