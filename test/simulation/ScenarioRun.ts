/**
 * Runs a scenario in an environment: workers, writers and faults as drawn. Then all faults stop; within a bound every event
 * has to be handled and the assignment has to become stable. Then all workers leave.
 *
 * The run has no access to time or stores. Where it has to wait it yields the condition, and the environment lets time
 * pass.
 */
import type { Checkers } from "./Checkers.ts"
import type { Coverage } from "./Coverage.ts"
import type { Environment } from "./Environment.ts"
import { Fleet } from "./Fleet.ts"
import { inject } from "./Injection.ts"
import type { Run, Worker } from "./Run.ts"
import { unsettled } from "./Settling.ts"

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

const eventsAtLeast = 200
const faultsAtLeast = 3
/** A scenario that needs more steps than this is broken. */
const stepsAtMost = 400

export class ScenarioRun<R> {
  private readonly run: Run
  private readonly environment: Environment<R>
  private readonly checkers: Checkers
  private readonly fleet: Fleet<R>
  private faults = 0
  private recoveredAfter: number | undefined

  constructor(run: Run, environment: Environment<R>, checkers: Checkers) {
    this.run = run
    this.environment = environment
    this.checkers = checkers
    this.fleet = new Fleet(run, environment)
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

  private unsettled(): ReadonlyArray<string> {
    return unsettled(this.fleet, this.checkers)
  }

  private readonly isRed = (): boolean => this.run.violations.length > 0

  private *pass(millis: number): Generator<Wait, void, boolean> {
    if (!this.isRed()) yield { done: this.isRed, deadline: this.run.now() + millis }
  }

  /** The part of the run with faults. */
  private *disturb(): Generator<Wait, void, boolean> {
    const { events, scenario } = this.run
    for (let first = scenario.workersAtFirst; first > 0; first--) this.fleet.join(this.fleet.names)
    let index = 0
    for (const step of scenario.steps()) {
      const isEnough = index >= scenario.pace.steps && events.committed >= eventsAtLeast && this.faults >= faultsAtLeast
      if (this.isRed() || isEnough || index > stepsAtMost) return
      index++
      if (index === scenario.newVersionAt) this.fleet.newVersion(events.end)
      for (const write of step.writes) this.environment.write(write)
      if (step.fault !== undefined && inject(this.fleet, this.checkers, step.fault)) this.faults++
      yield* this.pass(step.lasts)
    }
  }

  /** Ends all faults. */
  private calm(): void {
    this.fleet.isCalm = true
    this.fleet.unbearable = this.fleet.freezeInRetry = undefined
    this.run.say("scenario", "faults stop")
    this.run.awayUntil = this.run.deafUntil = this.run.handlersFailUntil = 0
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
      this.fleet.thaw(worker)
      if (worker.isRunning && worker.replicaSet !== "main") this.fleet.leave(worker)
    }
    this.replace((worker) => this.fleet.isOutdated(worker))
    this.fleet.carryAll()
    this.retryParked()
  }

  private retryParked(): void {
    for (const name of this.fleet.names) this.environment.requestParked(name, "retry", "all")
  }

  /** Deploys fixed handlers: halted ranges are retried by workers that start after the halt. */
  private readonly deploy = (): void => {
    if (this.fleet.isStopping || this.isRed()) return
    this.fleet.carryAll()
    if (this.fleet.names.some((name) => this.checkers.rowsOf(name).some((row) => row.halt !== undefined))) {
      this.replace(() => true)
    }
    this.retryParked()
    this.environment.after(this.run.scenario.pace.deploys, this.deploy)
  }

  /** Replaces workers by others of the newest version. */
  private replace(isReplaced: (worker: Worker) => boolean): void {
    for (const worker of this.fleet.running().filter(isReplaced)) {
      this.fleet.leave(worker)
      this.fleet.join(worker.start.carries)
    }
  }

  private *recover(): Generator<Wait, void, boolean> {
    const { bound, deploys, isExtended } = this.run.scenario.pace
    this.calm()
    const since = this.run.now()
    this.environment.after(deploys, this.deploy)
    const isDone = () => this.isRed() || this.unsettled().length === 0
    const positions = () =>
      this.fleet.names.flatMap((name) => this.checkers.rowsOf(name).map(({ position }) => position)).join()
    while (true) {
      const before = positions()
      if (yield { done: isDone, deadline: this.run.now() + bound }) break
      if (isExtended && positions() !== before) continue
      const after = Math.round(this.run.now() - since)
      return this.run.violation(`P5: ${after} ms after the faults stopped ${this.unsettled().join("; ")}`)
    }
    if (this.isRed()) return
    this.recoveredAfter = this.run.now() - since
    // By the end of this wait, calls that were slow when the faults stopped have ended.
    const slowEnded = since + 2 * this.fleet.slowest + 500
    yield { done: () => this.run.now() >= slowEnded && isDone(), deadline: this.run.now() + bound }
  }

  /** Checks that nothing changes any more. */
  private *rest(): Generator<Wait, void, boolean> {
    const { bound, quiet } = this.run.scenario.pace
    const newest = () => this.checkers.generations.get("main")?.generationId
    this.fleet.isStopping = true
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
    const leaving = this.fleet.running()
    for (const worker of leaving) this.fleet.leave(worker)
    const areOut = () => leaving.every((worker) => worker.exit !== undefined)
    if (!(yield { done: () => this.isRed() || areOut(), deadline: this.run.now() + 30_000 })) {
      const names = leaving.filter((worker) => worker.exit === undefined).map((worker) => worker.name)
      this.run.violation(`P5: ${names.join(" ")} did not stop`)
    }
    for (const name of this.fleet.names) {
      for (const row of this.checkers.rowsOf(name)) {
        // A worker that was evicted before it left had no ranges left to release.
        if (!this.isRed() && row.fence !== undefined && !this.checkers.dead.has(row.fence.incarnation)) {
          this.run.violation(`P4: ${name}@${row.range.start} is still held by ${row.fence.workerId}`)
        }
      }
    }
    this.checkers.checkAll()
  }
}
