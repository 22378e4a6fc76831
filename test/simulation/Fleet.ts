/** The workers of a run: how they start and end, and how they are killed, frozen and restarted. */
import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { EventVersionTooNew } from "../../src/schema/Errors.ts"
import type { Event } from "../../src/schema/Event.ts"
import * as Projection from "../../src/services/Projection.ts"
import { reasonOf } from "../support/StoreErrors.ts"
import type { Environment } from "./Environment.ts"
import { type Run, type Start, type Subject, Worker } from "./Run.ts"
import { type Fault, otherKey } from "./Scenario.ts"

class SimulatedFailure extends Data.TaggedError("SimulatedFailure") {}

export class Fleet<R> {
  readonly names: ReadonlyArray<string>
  /** Faults have stopped. */
  isCalm = false
  /** No more workers are started. */
  isStopping = false
  /** The event at which handlers of a projection block their process: the first one that reaches a handler. */
  unbearable: { readonly projection: string; readonly millis: number; position: bigint | undefined } | undefined
  /** The newest version of the application. */
  private version = 1
  /** Events above this position are of version 2. */
  private newSince: bigint | undefined
  readonly run: Run
  readonly environment: Environment<R>
  private ids = 0

  constructor(run: Run, environment: Environment<R>) {
    this.run = run
    this.environment = environment
    this.names = [...run.subjects.keys()]
  }

  running(replicaSet = "main"): ReadonlyArray<Worker> {
    return this.run.workers.filter((worker) => worker.isRunning && worker.replicaSet === replicaSet)
  }

  start(given: Start): Worker {
    const { chance, coverage, say, scenario, subjects, workers } = this.run
    const concurrency = chance.pick(scenario.concurrencies)
    const start: Start = { version: this.versionToStart(), ...given, concurrency }
    const worker = new Worker(`w${workers.length + 1}`, start)
    workers.push(worker)
    if (start.carries.length < this.names.length) coverage.count("faults", "workers with different projections")
    if (start.carries.some((name) => subjects.get(name)!.ordering === "global")) coverage.count("steps", "global order")
    if (start.carries.some((name) => subjects.get(name)!.window !== undefined)) coverage.count("steps", "batch window")
    if (concurrency > 1) coverage.count("steps", "several ranges per share")
    say(
      worker.name,
      `starts as ${worker.replicaSet}/${worker.workerId} with ${start.carries.join(",")} ×${concurrency}`
    )
    const projections = start.carries.map((name) => {
      const subject = subjects.get(name)!
      return Projection.make(name, {
        ...subject.filter,
        ...(start.otherFilter === true ? { boundedContexts: ["app"] } : {}),
        partitionBy: start.otherKey === true ? otherKey(subject.keys) : subject.keys.partitionBy,
        replacesFilter: start.otherKey === true ? subject.filter : [],
        startFrom: scenario.startFrom,
        ...(subject.ordering === "global" ? { ordering: "global" } : { concurrency }),
        ...(subject.parks ? { onFailure: "park" as const } : {}),
        ...(subject.isWhole
          ? { handleBatch: this.handlerOfBatches(subject, worker), batchWindow: subject.window }
          : { handle: this.handler(subject, worker) })
      })
    })
    const { end } = this.run.events
    this.environment.start(
      worker,
      { ...scenario.settings, replicaSet: worker.replicaSet, workerId: worker.workerId, projections },
      (exit) => this.ended(worker, exit, end)
    )
    return worker
  }

  /**
   * Deploys a newer version of the application, which appends events of a version that the workers of the older one do
   * not declare. From now on, some of the workers that start are still of the older version, until the faults stop.
   */
  newVersion(end: number): void {
    this.run.say("scenario", "a newer version is deployed")
    this.version = 2
    this.newSince = BigInt(end)
    this.start({ workerId: this.newId(), carries: this.names, version: 2 })
  }

  private versionToStart(): number {
    return this.version === 2 && !this.isCalm && this.run.chance.bool(0.3) ? 1 : this.version
  }

  isOutdated({ start }: Worker): boolean {
    return start.version !== this.version
  }

  /** The failure of decoding the event, if the worker's version does not declare that of the event. */
  private tooNew(worker: Worker, { eventId, eventType, globalPosition }: Event): EventVersionTooNew | undefined {
    if (!this.isOutdated(worker) || this.newSince === undefined || globalPosition <= this.newSince) return undefined
    this.run.coverage.count("faults", "event of a newer version")
    return new EventVersionTooNew({ eventId, eventType, eventVersion: 2, newest: 1 })
  }

  private handler(subject: Subject, worker: Worker) {
    const { chance, coverage, fails } = this.run
    const { handle } = this.environment
    const failureAt = this.failureAt(subject, worker, () => chance.bool(0.1))
    return Effect.fnUntraced(function*(event: Event): Effect.fn.Return<void, unknown, R> {
      const failure = yield* failureAt(event)
      if (failure === undefined) return yield* handle(subject, event)
      if (failure._tag === "SimulatedFailure") {
        coverage.count("faults", "handler fails")
        fails(subject, event.globalPosition)
      }
      return yield* failure
    })
  }

  /** Some events fail in each attempt, so that they have to be found; others once. */
  private handlerOfBatches(subject: Subject, worker: Worker) {
    const { chance, coverage, fails } = this.run
    const { handle } = this.environment
    const failureAt = this.failureAt(
      subject,
      worker,
      ({ globalPosition }) => globalPosition % 8n === 0n || chance.bool(0.02)
    )
    return Effect.fnUntraced(function*(events: ReadonlyArray<Event>): Effect.fn.Return<void, unknown, R> {
      if (events.length > 1) coverage.count("steps", "several events in one call")
      for (const event of events) {
        const failure = yield* failureAt(event)
        if (failure === undefined) {
          yield* handle(subject, event)
          continue
        }
        const isNamed = chance.bool(0.3)
        if (failure._tag === "SimulatedFailure") {
          coverage.count("faults", isNamed ? "batch handler fails and names the event" : "batch handler fails")
          if (isNamed || events.length === 1) fails(subject, event.globalPosition)
        }
        return yield* isNamed ? Projection.failAt(event, failure) : failure
      }
    })
  }

  /**
   * Returns what a handler does before it handles an event: it takes its time, and returns the failure with which it ends,
   * if any. `fails` selects the events at which it fails while the worker's handlers fail.
   */
  private failureAt(subject: Subject, worker: Worker, fails: (event: Event) => boolean) {
    const { ailments } = worker
    const { now } = this.run
    const isPoison = (event: Event) => this.isPoison(subject, event)
    const delayed = this.delayed(subject, worker)
    const tooNew = (event: Event) => this.tooNew(worker, event)
    return Effect.fnUntraced(function*(event: Event) {
      const newer = tooNew(event)
      if (newer !== undefined) return newer
      yield* delayed(event)
      const isFailing = isPoison(event) || (now() < ailments.handlerFailsUntil && fails(event))
      return isFailing ? new SimulatedFailure() : undefined
    })
  }

  /** Some events of a projection that parks cannot be handled until the faults stop. */
  private isPoison({ name, parks }: Subject, { globalPosition }: Event): boolean {
    if (!parks || this.isCalm || globalPosition % 12n !== 5n) return false
    const isParked = this.run.parked(name).some(({ position }) => position === globalPosition)
    if (isParked) this.run.coverage.count("faults", "parked event fails again")
    return true
  }

  /** Blocks the process, does not stop or takes time, if the worker's handlers do so at the moment. */
  private delayed(subject: Subject, worker: Worker) {
    const { ailments } = worker
    const { chance, coverage, now, takesLong } = this.run
    const blocked = (event: Event) => this.blocked(subject, worker, event)
    return Effect.fnUntraced(function*(event: Event) {
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

  /** Freezes the process if the handler blocks at this event. Returns whether it did. */
  private blocked(subject: Subject, worker: Worker, { globalPosition }: Event): boolean {
    const event = this.unbearable
    if (event?.projection !== subject.name || worker.isCut) return false
    event.position ??= globalPosition
    if (event.position !== globalPosition) return false
    this.freeze(worker, event.millis)
    return true
  }

  private ended(worker: Worker, exit: Exit.Exit<unknown, unknown>, end: number): void {
    const { coverage, say, violation } = this.run
    worker.exit = exit
    if (Exit.isSuccess(exit)) {
      if (worker.catchesUp) this.caughtUp(worker, end)
      else violation(`P6: ${worker.name} ended by itself`)
      return
    }
    const error = reasonOf(exit.cause.reasons.find(Cause.isFailReason)?.error) as
      | { readonly _tag?: string; readonly message?: string }
      | undefined
    const tag = error === undefined ? undefined : error._tag ?? String(error)
    say(worker.name, tag === undefined ? "has stopped" : `fails with ${tag}`)
    if (exit.cause.reasons.some(Cause.isDieReason)) violation(`P6: ${worker.name} died: ${Cause.pretty(exit.cause)}`)
    // The failures of a worker that was cut off are irrelevant.
    if (worker.isCut) return
    switch (tag) {
      case undefined:
        if (!worker.leaving) violation(`P6: ${worker.name} stopped without being asked`)
        return
      case "WorkerIdInUse":
      case "WorkerReplaced":
      case "CoordinationTimeout":
      case "FilterChanged":
      case "PartitionKeyChanged":
      case "ProjectionInOtherReplicaSet":
        coverage.count("errors", tag)
        break
      case "EventVersionTooNew":
      case "ProjectionHalted":
        if (!worker.catchesUp) violation(`P6: ${worker.name} failed with ${tag}`)
        coverage.count("errors", tag)
        return
      case "DatabaseUnavailable":
        // `catchUp` reads the head first, and fails when it cannot.
        if (worker.registrations > 0 && !worker.catchesUp) {
          violation(`P5: ${worker.name} ended because of a temporary outage of the database`)
        }
        break
      default:
        violation(`P6: ${worker.name} failed with ${tag}: ${error?.message}`)
    }
    this.startAgain(worker, tag)
  }

  private caughtUp(worker: Worker, end: number): void {
    const { coverage, missing, say, subjects, violation } = this.run
    coverage.count("steps", "caught up and left")
    say(worker.name, "has caught up")
    this.environment.check(() => {
      for (const name of worker.start.carries) {
        const lacking = missing(subjects.get(name)!, end)
        if (lacking !== undefined) {
          violation(`P3: ${worker.name} caught up with ${end}, but not with ${name}/${lacking}`)
        }
      }
    })
  }

  /** Restarts a failed worker as a supervisor does, unless it is superfluous. */
  private startAgain(worker: Worker, failure: string): void {
    const isSuperfluous = failure === "WorkerIdInUse" || failure === "WorkerReplaced"
    const isGuest = worker.start.otherFilter === true || worker.start.otherKey === true ||
      worker.replicaSet !== "main" || worker.catchesUp
    if (worker.leaving || isGuest || isSuperfluous) return
    this.environment.after(this.run.chance.int(50, 500), () => {
      if (this.isStopping || this.running().length >= this.run.scenario.workersAtMost) return
      this.start(this.isCalm ? { ...worker.start, version: this.version } : worker.start)
    })
  }

  /** A worker id that no worker has had. */
  newId(prefix = "id"): string {
    return `${prefix}${++this.ids}`
  }

  join(carries: ReadonlyArray<string>): Worker {
    return this.start({ workerId: this.newId(), carries })
  }

  /** Makes sure that every projection is carried. */
  carryAll(): void {
    const isCarried = (name: string) =>
      this.running().some((worker) =>
        !worker.catchesUp && !this.isOutdated(worker) && worker.start.carries.includes(name)
      )
    if (!this.names.every(isCarried)) this.join(this.names)
  }

  leave(worker: Worker): void {
    this.run.say("scenario", `stops ${worker.name}`)
    worker.leaving = true
    this.environment.stop(worker)
  }

  kill(worker: Worker, { harsh, isHalfOpen }: Pick<Fault, "harsh" | "isHalfOpen">): void {
    this.run.say("scenario", `kills ${worker.name}${harsh ? " at once" : ""}`)
    worker.isCut = true
    if (harsh) this.environment.halt(worker)
    if (harsh && isHalfOpen) {
      this.run.coverage.count("faults", "kill: session half open")
      return
    }
    this.run.coverage.count("faults", harsh ? "kill: gone at once" : "kill: cut, then interrupted")
    this.environment.cut(worker)
    if (!harsh) this.environment.stop(worker)
  }

  freeze(worker: Worker, millis: number): void {
    if (worker.isFrozen) return
    this.run.say("scenario", `freezes ${worker.name} for ${millis} ms`)
    this.run.coverage.count("faults", "freeze")
    worker.isFrozen = true
    this.environment.freeze(worker)
    this.environment.after(millis, () => this.thaw(worker))
  }

  thaw(worker: Worker): void {
    if (!worker.isFrozen || worker.isCut) return
    this.run.say("scenario", `wakes ${worker.name}`)
    worker.isFrozen = false
    // A call that was slow when the worker froze is still slow.
    this.cutsOff(worker, this.run.now() + 2 * this.slowest)
    this.environment.thaw(worker)
  }

  /** Freezes a worker; half of the time in the middle of a batch. */
  freezeAtWork(worker: Worker, fault: Fault): void {
    if (!fault.harsh) return this.freeze(worker, fault.lasts)
    this.run.say("scenario", `${worker.name}: handler slow, and events`)
    worker.ailments.handlerSlowUntil = Math.max(worker.ailments.handlerSlowUntil, this.run.now() + 100)
    this.keepBusy(fault)
    this.environment.after(fault.strikes, () => {
      if (!this.isCalm && worker.isRunning) this.freeze(worker, fault.lasts)
    })
  }

  keepBusy({ writes }: Fault): void {
    for (const write of writes) this.environment.write(write)
  }

  get slowest(): number {
    return Math.max(...this.run.scenario.pace.slow)
  }

  cutsOff(worker: Worker, until: number): void {
    worker.ailments.cutOffUntil = Math.max(worker.ailments.cutOffUntil, until)
  }

  later(millis: number, start: Start): void {
    this.environment.after(millis, () => {
      if (!this.isStopping) this.start(start)
    })
  }
}
