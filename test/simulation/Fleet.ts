/** The workers of a run: how they start and end, and how they are killed, frozen and restarted. */
import * as Cause from "effect/Cause"
import * as Exit from "effect/Exit"
import * as Projection from "../../src/services/Projection.ts"
import { reasonOf } from "../support/StoreErrors.ts"
import type { Environment } from "./Environment.ts"
import { Handlers } from "./Handlers.ts"
import { otherKey } from "./Keys.ts"
import { type Run, type Start, Worker } from "./Run.ts"
import type { Fault } from "./Scenario.ts"

export class Fleet<R> {
  readonly names: ReadonlyArray<string>
  /** Faults have stopped. */
  isCalm = false
  /** No more workers are started. */
  isStopping = false
  /** The event at which handlers of a projection block their process: the first one that reaches a handler. */
  unbearable: { readonly projection: string; readonly millis: number; position: bigint | undefined } | undefined
  /** For how many milliseconds the next worker that retries a parked event is frozen in the middle. */
  freezeInRetry: number | undefined
  /** The newest version of the application. */
  private version = 1
  /** Events above this position are of version 2. */
  newSince: bigint | undefined
  readonly run: Run
  readonly environment: Environment<R>
  private readonly handlers: Handlers<R>
  private ids = 0

  constructor(run: Run, environment: Environment<R>) {
    this.run = run
    this.environment = environment
    this.names = [...run.subjects.keys()]
    this.handlers = new Handlers(this)
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
        onFailure: subject.onFailure,
        delivery: subject.delivery,
        ...this.handlers.of(subject, worker)
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

  /** Whether the worker is of an older version of the application. */
  isOutdated({ start }: Worker): boolean {
    return start.version !== this.version
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

  /** Appends events, and requests that parked ones are handled. */
  keepBusy({ projection, writes }: Fault): void {
    for (const write of writes) this.environment.write(write)
    this.environment.requestParked(projection, "retry", "all")
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
