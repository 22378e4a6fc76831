/**
 * Runs a scenario in an environment: workers, writers and faults as drawn. Then all faults stop; within a bound every event
 * has to be handled and the assignment has to become stable. Then all workers leave.
 *
 * The run has no access to time or stores. Where it has to wait it yields the condition, and the environment lets time
 * pass.
 */
import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type { Event } from "../../src/schema/Event.ts"
import * as Generation from "../../src/schema/Generation.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import type * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import { reasonOf } from "../support/StoreErrors.ts"
import type { Checkers } from "./Checkers.ts"
import type { Coverage } from "./Coverage.ts"
import { type Run, type Start, type Subject, Worker } from "./Run.ts"
import type { Fault, Write } from "./Scenario.ts"

/** The environment in which a scenario runs. */
export interface Environment<R> {
  /** Runs a function later, even if workers are frozen. */
  readonly after: (millis: number, run: () => void) => void
  readonly write: (write: Write) => void
  /** The number of writers that have drawn positions and not ended. */
  readonly openWriters: () => number
  /** Applies one event's effects in the batch's transaction. */
  readonly handle: (subject: Subject, event: Event) => Effect.Effect<void, unknown, R>
  readonly start: (
    worker: Worker,
    options: Orchestrator.Options<ReadonlyArray<Projection.Projection<unknown, R>>>,
    ended: (exit: Exit.Exit<unknown, unknown>) => void
  ) => void
  /** Interrupts the worker. */
  readonly stop: (worker: Worker) => void
  /** Ends the worker's sessions as a crash does; nothing that it still does has any effect. */
  readonly cut: (worker: Worker) => void
  /** Stops the worker completely; it does not even end its sessions. */
  readonly halt: (worker: Worker) => void
  readonly freeze: (worker: Worker) => void
  readonly thaw: (worker: Worker) => void
  /** Makes the stores unreachable for a worker until `ailments.awayUntil`, or for all until `run.awayUntil`. */
  readonly disconnect: (worker: Worker | undefined) => void
  /** Makes the stores reachable again. */
  readonly reconnect: (worker: Worker | undefined) => void
  /** How often workers were delayed for reasons outside of the scenario. */
  readonly stalls: () => number
  /** Ends the worker's presence for this long, or until it reconnects. Returns whether it had any. */
  readonly endPresence: (worker: Worker, millis: number | undefined) => boolean
}

/** Lets time pass until the condition holds or the deadline is reached. */
export interface Wait {
  readonly done: () => boolean
  readonly deadline: number
}

export interface Outcome {
  readonly seed: number
  readonly violations: ReadonlyArray<string>
  readonly trace: ReadonlyArray<string>
  readonly coverage: Coverage
  /** Milliseconds from the end of the faults until every event was handled and the assignment was stable. */
  readonly recoveredAfter: number | undefined
  readonly events: number
  readonly faults: number
}

class SimulatedFailure extends Data.TaggedError("SimulatedFailure") {}

const eventsAtLeast = 200
const faultsAtLeast = 3
/** A scenario that needs more steps than this is broken. */
const stepsAtMost = 400

const place = <A>(items: ReadonlyArray<A>, at: number): A | undefined => items[Math.floor(at * items.length)]

export class ScenarioRun<R> {
  private readonly run: Run
  private readonly environment: Environment<R>
  private readonly checkers: Checkers
  private readonly names: ReadonlyArray<string>
  private faults = 0
  private ids = 0
  /** Faults have stopped. */
  private isCalm = false
  /** No more workers are started. */
  private isStopping = false
  private recoveredAfter: number | undefined
  /** The event at which handlers of a projection block their process: the first one that reaches a handler. */
  private unbearable: { readonly projection: string; readonly millis: number; position: bigint | undefined } | undefined

  constructor(run: Run, environment: Environment<R>, checkers: Checkers) {
    this.run = run
    this.environment = environment
    this.checkers = checkers
    this.names = [...run.subjects.keys()]
  }

  get outcome(): Outcome {
    const { coverage, events, scenario, trace, violations } = this.run
    return {
      seed: scenario.seed,
      violations,
      trace,
      coverage,
      recoveredAfter: this.recoveredAfter,
      events: events.committed,
      faults: this.faults
    }
  }

  *steps(): Generator<Wait, void, boolean> {
    yield* this.disturb()
    if (!this.isRed()) yield* this.recover()
    if (!this.isRed()) yield* this.rest()
    this.checkers.checkAll()
    if (!this.isRed()) yield* this.leaveAll()
    this.run.coverage.count("numbers", "events", this.run.events.committed)
  }

  private readonly isRed = (): boolean => this.run.violations.length > 0

  private *pass(millis: number): Generator<Wait, void, boolean> {
    if (!this.isRed()) yield { done: this.isRed, deadline: this.run.now() + millis }
  }

  /** The part of the run with faults. */
  private *disturb(): Generator<Wait, void, boolean> {
    const { events, scenario } = this.run
    for (let first = scenario.workersAtFirst; first > 0; first--) this.join(this.names)
    let index = 0
    for (const step of scenario.steps()) {
      const isEnough = index >= scenario.pace.steps && events.committed >= eventsAtLeast && this.faults >= faultsAtLeast
      if (this.isRed() || isEnough || index > stepsAtMost) return
      index++
      for (const write of step.writes) this.environment.write(write)
      if (step.fault !== undefined && this.inject(step.fault)) this.faults++
      yield* this.pass(step.lasts)
    }
  }

  private running(replicaSet = "main"): ReadonlyArray<Worker> {
    return this.run.workers.filter((worker) => worker.isRunning && worker.replicaSet === replicaSet)
  }

  private start(start: Start): Worker {
    const { coverage, say, scenario, subjects, workers } = this.run
    const worker = new Worker(`w${workers.length + 1}`, start)
    workers.push(worker)
    if (start.carries.length < this.names.length) coverage.count("faults", "workers with different projections")
    say(worker.name, `starts as ${worker.replicaSet}/${worker.workerId} with ${start.carries.join(",")}`)
    const projections = start.carries.map((name) => {
      const subject = subjects.get(name)!
      return Projection.make(name, {
        ...subject.filter,
        ...(start.otherFilter === true ? { boundedContexts: ["app"] } : {}),
        startFrom: scenario.startFrom,
        handle: this.handler(subject, worker)
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

  private handler(subject: Subject, worker: Worker) {
    const { ailments } = worker
    const { chance, coverage, now, takesLong } = this.run
    const handle = this.environment.handle
    const blocked = (event: Event) => this.blocked(subject, worker, event)
    return Effect.fnUntraced(function*(event: Event): Effect.fn.Return<void, unknown, R> {
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
      if (now() < ailments.handlerFailsUntil && chance.bool(0.1)) {
        coverage.count("faults", "handler fails")
        return yield* new SimulatedFailure()
      }
      yield* handle(subject, event)
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
      case "ProjectionInOtherReplicaSet":
        coverage.count("errors", tag)
        break
      case "ProjectionHalted":
        if (!worker.catchesUp) violation(`P6: ${worker.name} failed with ${tag}`)
        coverage.count("errors", tag)
        return
      case "DatabaseUnavailable":
        // `catchUp` reads the head first, and fails when it cannot.
        if (worker.registrations > 0 && !worker.catchesUp) {
          violation(`P5: ${worker.name} gave up for a database that went away for a while`)
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
    for (const name of worker.start.carries) {
      const lacking = missing(subjects.get(name)!, end)
      if (lacking !== undefined) {
        violation(`P3: ${worker.name} caught up with ${end}, but not with ${name}/${lacking}`)
      }
    }
  }

  /** Restarts a failed worker as a supervisor does, unless it is superfluous. */
  private startAgain(worker: Worker, failure: string): void {
    const isSuperfluous = failure === "WorkerIdInUse" || failure === "WorkerReplaced"
    const isGuest = worker.start.otherFilter === true || worker.replicaSet !== "main" || worker.catchesUp
    if (worker.leaving || isGuest || isSuperfluous) return
    this.environment.after(this.run.chance.int(50, 500), () => {
      if (!this.isStopping && this.running().length < this.run.scenario.workersAtMost) this.start(worker.start)
    })
  }

  private join(carries: ReadonlyArray<string>): Worker {
    return this.start({ workerId: `id${++this.ids}`, carries })
  }

  private leave(worker: Worker): void {
    this.run.say("scenario", `stops ${worker.name}`)
    worker.leaving = true
    this.environment.stop(worker)
  }

  private kill(worker: Worker, { harsh, isHalfOpen }: Pick<Fault, "harsh" | "isHalfOpen">): void {
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

  private freeze(worker: Worker, millis: number): void {
    if (worker.isFrozen) return
    this.run.say("scenario", `freezes ${worker.name} for ${millis} ms`)
    this.run.coverage.count("faults", "freeze")
    worker.isFrozen = true
    this.environment.freeze(worker)
    this.environment.after(millis, () => this.thaw(worker))
  }

  private thaw(worker: Worker): void {
    if (!worker.isFrozen || worker.isCut) return
    this.run.say("scenario", `wakes ${worker.name}`)
    worker.isFrozen = false
    // A call that was slow when the worker froze is still slow.
    this.cutsOff(worker, this.run.now() + 2 * this.slowest)
    this.environment.thaw(worker)
  }

  /** Freezes a worker; half of the time in the middle of a batch. */
  private freezeAtWork(worker: Worker, fault: Fault): void {
    if (!fault.harsh) return this.freeze(worker, fault.lasts)
    this.run.say("scenario", `${worker.name}: handler slow, and events`)
    worker.ailments.handlerSlowUntil = Math.max(worker.ailments.handlerSlowUntil, this.run.now() + 100)
    this.keepBusy(fault)
    this.environment.after(fault.strikes, () => {
      if (!this.isCalm && worker.isRunning) this.freeze(worker, fault.lasts)
    })
  }

  private keepBusy({ writes }: Fault): void {
    for (const write of writes) this.environment.write(write)
  }

  private get slowest(): number {
    return Math.max(...this.run.scenario.pace.slow)
  }

  private cutsOff(worker: Worker, until: number): void {
    worker.ailments.cutOffUntil = Math.max(worker.ailments.cutOffUntil, until)
  }

  private later(millis: number, start: Start): void {
    this.environment.after(millis, () => {
      if (!this.isStopping) this.start(start)
    })
  }

  /** Injects a fault. Returns whether it was possible. */
  private inject(fault: Fault): boolean {
    const { coverage, now, say, scenario } = this.run
    const alive = this.running()
    if (fault.name === "join" && alive.length >= scenario.workersAtMost) return false
    const victim = place(alive.filter((worker) => !worker.isFrozen), fault.victim)
    if (fault.name === "join" || victim === undefined) {
      // If all workers are frozen, another one has to start.
      if (alive.length >= scenario.workersAtMost + 2) return false
      this.join(fault.carries)
      return true
    }
    const { ailments } = victim
    const until = now() + fault.lasts
    const ails = (what: string): true => {
      say("scenario", `${victim.name}: ${what} until ${until}`)
      return true
    }
    switch (fault.name) {
      case "leave":
        this.leave(victim)
        return true
      case "kill":
        this.kill(victim, { harsh: false, isHalfOpen: false })
        return true
      case "vanish":
        this.kill(victim, { harsh: true, isHalfOpen: fault.isHalfOpen })
        return true
      case "restart":
        this.kill(victim, fault)
        coverage.count("faults", "id of a dead worker reused")
        this.later(fault.follows, { workerId: victim.workerId, carries: victim.start.carries })
        return true
      case "freeze":
        this.freezeAtWork(victim, fault)
        return true
      case "take over":
        this.freezeAtWork(victim, fault)
        coverage.count("faults", "id of a frozen worker taken over")
        this.later(fault.follows, { workerId: victim.workerId, carries: victim.start.carries })
        return true
      case "twin":
        coverage.count("faults", "id of a live worker")
        this.start({ workerId: victim.workerId, carries: victim.start.carries })
        return true
      case "away":
        coverage.count("faults", "stores unreachable for one worker")
        ailments.awayUntil = until
        this.cutsOff(victim, until)
        this.environment.disconnect(victim)
        this.environment.after(fault.lasts, () => this.environment.reconnect(victim))
        return ails("stores away")
      case "away for all":
        coverage.count("faults", "stores unreachable for all")
        this.run.awayUntil = Math.max(this.run.awayUntil, until)
        this.environment.disconnect(undefined)
        this.environment.after(fault.lasts, () => this.environment.reconnect(undefined))
        return ails("stores unreachable for all")
      case "failing":
        ailments.failingUntil = until
        this.keepBusy(fault)
        this.cutsOff(victim, until)
        return ails("stores failing")
      case "lossy":
        ailments.lossyUntil = until
        this.keepBusy(fault)
        this.cutsOff(victim, until)
        return ails("answers lost")
      case "slow":
        ailments.slowUntil = until
        ailments.slowMillis = fault.slow
        this.cutsOff(victim, until + 2 * this.slowest)
        return ails("stores slow")
      case "presence":
      case "presence for a moment": {
        const isBrief = fault.name === "presence for a moment"
        if (!this.environment.endPresence(victim, isBrief ? fault.lasts : undefined)) return false
        coverage.count("faults", isBrief ? "presence lost for a moment" : "presence lost")
        say("scenario", `${victim.name}: presence lost`)
        return true
      }
      case "deaf":
        this.run.deafUntil = until
        return ails("notifications lost and late for all")
      case "slow handler":
        ailments.handlerSlowUntil = until
        this.keepBusy(fault)
        return ails("handler slow")
      case "failing handler":
        ailments.handlerFailsUntil = until
        this.keepBusy(fault)
        return ails("handler fails")
      case "stuck handler":
        ailments.handlerStuckUntil = until
        this.keepBusy(fault)
        return ails("handler does not stop")
      case "blocking handler": {
        if (this.unbearable !== undefined) return false
        const { projection } = fault
        this.unbearable = { projection, millis: scenario.settings.staleWorkerTimeout * 1.2, position: undefined }
        this.keepBusy(fault)
        say("scenario", `the next event of ${projection} is unbearable`)
        return true
      }
      case "other replica set": {
        if (this.running("other").length >= 4) return false
        coverage.count("faults", "worker of another replica set")
        const guest = this.start({
          workerId: `x${++this.ids}`,
          carries: [fault.projection],
          replicaSet: "other"
        })
        this.environment.after(fault.follows, () => {
          if (guest.isRunning) this.leave(guest)
        })
        return true
      }
      case "changed filter":
        if (this.checkers.rowsOf(fault.projection).length === 0) return false
        coverage.count("faults", "filter changed")
        this.start({ workerId: `f${++this.ids}`, carries: [fault.projection], otherFilter: true })
        return true
      case "catch up":
        if (alive.length >= scenario.workersAtMost) return false
        this.start({ workerId: `c${++this.ids}`, carries: fault.carries, catchesUp: true })
        return true
    }
  }

  /** Ends all faults. */
  private calm(): void {
    this.isCalm = true
    this.unbearable = undefined
    this.run.say("scenario", "faults stop")
    this.run.awayUntil = this.run.deafUntil = 0
    for (const worker of this.run.workers) {
      Object.assign(worker.ailments, {
        awayUntil: 0,
        failingUntil: 0,
        lossyUntil: 0,
        slowUntil: 0,
        handlerSlowUntil: 0,
        handlerFailsUntil: 0
      })
    }
    // This comes first: a worker that reaches the stores after an outage uses a new session.
    this.environment.reconnect(undefined)
    for (const worker of this.run.workers) {
      this.thaw(worker)
      if (worker.isRunning && worker.replicaSet !== "main") this.leave(worker)
    }
    this.carryAll()
  }

  private carryAll(): void {
    const isCarried = (name: string) =>
      this.running().some((worker) => !worker.catchesUp && worker.start.carries.includes(name))
    if (!this.names.every(isCarried)) this.join(this.names)
  }

  /** Deploys fixed handlers: halted ranges are retried by workers that start after the halt. */
  private readonly deploy = (): void => {
    if (this.isStopping || this.isRed()) return
    this.carryAll()
    if (this.names.some((name) => this.checkers.rowsOf(name).some((row) => row.halt !== undefined))) {
      for (const worker of this.running()) {
        this.leave(worker)
        this.join(worker.start.carries)
      }
    }
    this.environment.after(this.run.scenario.pace.deploys, this.deploy)
  }

  private *recover(): Generator<Wait, void, boolean> {
    const { bound, deploys } = this.run.scenario.pace
    this.calm()
    const since = this.run.now()
    this.environment.after(deploys, this.deploy)
    const isDone = () => this.isRed() || this.unsettled().length === 0
    if (!(yield { done: isDone, deadline: since + bound })) {
      this.run.violation(`P5: ${bound} ms after the faults stopped ${this.unsettled().join("; ")}`)
    }
    if (this.isRed()) return
    this.recoveredAfter = this.run.now() - since
    // By the end of this wait, calls that were slow when the faults stopped have ended.
    const slowEnded = since + 2 * this.slowest + 500
    yield { done: () => this.run.now() >= slowEnded && isDone(), deadline: since + bound }
  }

  /** Checks that nothing changes any more. */
  private *rest(): Generator<Wait, void, boolean> {
    const { bound, quiet } = this.run.scenario.pace
    const newest = () => this.checkers.generations.get("main")?.generationId
    this.isStopping = true
    while (!this.isRed()) {
      const stalls = this.environment.stalls()
      const settled = newest()
      yield* this.pass(quiet)
      const unsettled = this.unsettled()
      if (this.isRed() || (newest() === settled && unsettled.length === 0)) return
      if (this.environment.stalls() === stalls) {
        return this.run.violation(
          `P5: the plan does not stay: generation ${newest()} follows ${settled}; ${unsettled.join("; ")}`
        )
      }
      yield { done: () => this.isRed() || this.unsettled().length === 0, deadline: this.run.now() + bound }
    }
  }

  private *leaveAll(): Generator<Wait, void, boolean> {
    const leaving = this.running()
    for (const worker of leaving) this.leave(worker)
    const areOut = () => leaving.every((worker) => worker.exit !== undefined)
    if (!(yield { done: () => this.isRed() || areOut(), deadline: this.run.now() + 30_000 })) {
      const names = leaving.filter((worker) => worker.exit === undefined).map((worker) => worker.name)
      this.run.violation(`P5: ${names.join(" ")} did not stop`)
    }
    for (const name of this.names) {
      for (const row of this.checkers.rowsOf(name)) {
        // A worker that was evicted before it left had no ranges left to release.
        if (!this.isRed() && row.fence !== undefined && !this.checkers.dead.has(row.fence.incarnation)) {
          this.run.violation(`P4: ${name}@${row.range.start} is still held by ${row.fence.workerId}`)
        }
      }
    }
    this.checkers.checkAll()
  }

  /** Returns the conditions that do not hold yet. */
  private unsettled(): ReadonlyArray<string> {
    const generation = this.checkers.generations.get("main")
    const alive = this.running()
    const reasons: Array<string> = []
    if (this.environment.openWriters() > 0) reasons.push(`${this.environment.openWriters()} writers are open`)
    for (const worker of alive) if (worker.catchesUp) reasons.push(`${worker.name} is still catching up`)
    const members = generation?.members ?? []
    const isMember = (worker: Worker) =>
      members.some((member) => member.incarnation === worker.registration?.incarnation)
    if (members.length !== alive.length || !alive.every(isMember)) {
      const ids = (workers: ReadonlyArray<{ readonly workerId: string }>) =>
        workers.map((worker) => worker.workerId).join(" ")
      reasons.push(`the newest generation has ${ids(members)}, but ${ids(alive)} live`)
    }
    for (const name of this.names) reasons.push(...this.unsettledRows(name, generation, alive))
    for (const { generationId, replicaSet, state, stoppedAt, workerId } of this.checkers.workers.values()) {
      if (stoppedAt !== undefined || replicaSet !== "main") continue
      if (state === "running" && generationId === generation?.generationId) continue
      reasons.push(`people read of ${workerId} that it is ${state} in generation ${generationId}`)
    }
    if (this.checkers.active.get("main") !== generation?.generationId) {
      reasons.push(`people read that generation ${generation?.generationId} is not active`)
    }
    return reasons
  }

  private unsettledRows(
    name: string,
    generation: Generation.Generation | undefined,
    alive: ReadonlyArray<Worker>
  ): ReadonlyArray<string> {
    const rows = this.checkers.rowsOf(name)
    if (rows.length === 0) return [`${name} has no rows`]
    const { end } = this.run.events
    return rows.flatMap((row) => {
      const where = `${name}@${row.range.start}`
      const reasons: Array<string> = []
      if (row.position < BigInt(end)) reasons.push(`${where} is at ${row.position} of ${end}`)
      if (row.halt !== undefined) reasons.push(`${where} is halted`)
      const { fence } = row
      if (fence === undefined) return [...reasons, `${where} has no owner`]
      const share = generation === undefined ? undefined : Generation.share(generation, name, fence)
      if (!alive.some((worker) => worker.registration?.incarnation === fence.incarnation)) {
        reasons.push(`${where} is held by a worker that is gone`)
      } else if (share === undefined || !HashRange.contains(share, row.range)) {
        reasons.push(`${where} is held by ${fence.workerId}, whose share it is not`)
      }
      return reasons
    })
  }
}
