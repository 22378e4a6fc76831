/** Runs a scenario on the memory layers: everything in one process, with virtual time and a seeded scheduler. */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Random from "effect/Random"
import * as References from "effect/References"
import * as Scheduler from "effect/Scheduler"
import * as Scope from "effect/Scope"
import * as TxRef from "effect/TxRef"
import * as MemoryWorld from "../../src/layers/memory/MemoryWorld.ts"
import * as ParkedEventsMemory from "../../src/layers/memory/ParkedEventsMemory.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import { Chance } from "./Chance.ts"
import { Checkers } from "./Checkers.ts"
import * as Coverage from "./Coverage.ts"
import { CurrentProcess, Engine, Process } from "./Engine.ts"
import type { Environment } from "./Environment.ts"
import { EventLog } from "./EventLog.ts"
import * as Faults from "./Faults.ts"
import * as Logs from "./Logs.ts"
import { type Mutation, none } from "./Mutations.ts"
import * as Observers from "./Observers.ts"
import * as Pace from "./Pace.ts"
import { type ReadModel, Run, type Worker } from "./Run.ts"
import * as Scenario from "./Scenario.ts"
import { type Outcome, ScenarioRun } from "./ScenarioRun.ts"
import { type Effects, effectsAfter, noEffects } from "./Subject.ts"

/** The last position that a projection has handled, and whether the positions have only increased. */
interface Sequence {
  readonly last: bigint
  readonly ordered: boolean
}

/** The read models, which commit with the batches. */
class Model implements ReadModel {
  private readonly refs = new Map<string, TxRef.TxRef<Effects>>()
  private readonly totals = new Map<string, TxRef.TxRef<number>>()
  private readonly sequences = new Map<string, TxRef.TxRef<Sequence>>()

  private static refIn<A>(refs: Map<string, TxRef.TxRef<A>>, key: string, initial: A): TxRef.TxRef<A> {
    let ref = refs.get(key)
    if (ref === undefined) {
      ref = TxRef.makeUnsafe(initial)
      refs.set(key, ref)
    }
    return ref
  }

  effectsRef(projection: string, key: string): TxRef.TxRef<Effects> {
    return Model.refIn(this.refs, `${projection}/${key}`, noEffects)
  }

  totalRef(projection: string): TxRef.TxRef<number> {
    return Model.refIn(this.totals, projection, 0)
  }

  sequenceRef(projection: string): TxRef.TxRef<Sequence> {
    return Model.refIn(this.sequences, projection, { last: 0n, ordered: true })
  }

  isInPositionOrder(projection: string): boolean {
    return this.sequenceRef(projection).value.ordered
  }

  effects(projection: string, key: string): Effects {
    return this.effectsRef(projection, key).value
  }

  total(projection: string): number {
    return this.totalRef(projection).value
  }
}

/** A process, and the handles of the worker in it. */
interface SimulatedWorker {
  readonly process: Process
  fiber: Fiber.Fiber<unknown, unknown> | undefined
  /** Ends its session as a crash does. */
  cut: Effect.Effect<void>
  sessionOpenedAt: number
}

const randomOf = (seed: number): typeof Random.Random["Service"] => {
  const chance = new Chance(seed, 3)
  return {
    nextIntUnsafe: () => chance.int(Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER),
    nextDoubleUnsafe: () => chance.next()
  }
}

const environmentOf = (engine: Engine, driver: Process, mutation: Mutation, scenario: Scenario.Scenario) => {
  const driverContext = Context.make(Scheduler.Scheduler, driver.scheduler).pipe(
    Context.add(Clock.Clock, driver.clock),
    Context.add(CurrentProcess, driver)
  )
  const inDriver = <A, E>(effect: Effect.Effect<A, E>): A => {
    const exit = Effect.runForkWith(driverContext)(effect).pollUnsafe()
    if (exit === undefined || Exit.isFailure(exit)) throw new Error("the scenario's own step did not end at once")
    return exit.value
  }

  const coverage = new Coverage.Coverage(Coverage.virtual)
  const log: EventLog = new EventLog(engine, {
    epoch: () => world.epoch,
    delivery: () => run.delivery(),
    committed: (event) => run.committed(event)
  })
  const model = new Model()
  const run: Run = new Run({ scenario, coverage, now: () => engine.now, events: log, model })
  const checkers = new Checkers(run)
  const world = {
    ...inDriver(MemoryWorld.make),
    rows: new Observers.ObservedRows(),
    parked: new Observers.ObservedParked()
  }
  Observers.attach(world, run, checkers)
  engine.afterTask = checkers.check

  const handleOfOperator = inDriver(
    Effect.provideService(MemoryWorld.open(world), Scope.Scope, Scope.makeUnsafe())
  )
  const parkedEvents = ParkedEventsMemory.make(handleOfOperator)
  const operator = mutation.parked?.(parkedEvents, handleOfOperator) ?? parkedEvents
  const requestParked: Environment<never>["requestParked"] = (projection, request, selection) => {
    const requested = inDriver(operator.request(projection, { request, selection })).length
    if (requested > 0) run.say("scenario", `requests to ${request} ${requested} parked events of ${projection}`)
    return requested
  }

  const requestOnHalt: Environment<never>["requestOnHalt"] = (projection, eventId, request) => {
    const isAccepted = inDriver(operator.requestOnHalt(projection, { eventId, request }))
    run.say("scenario", `${isAccepted ? "requests" : "cannot request"} to ${request} ${eventId} of ${projection}`)
    if (!isAccepted) coverage.count("steps", "request about an event without a halt refused")
  }

  const random = randomOf(scenario.seed)
  const logger = Logs.logger(run, (fiber) => fiber.getRef(CurrentProcess)?.name ?? "?")
  const simulatedWorkers = new Map<Worker, SimulatedWorker>()
  const of = (worker: Worker): SimulatedWorker => simulatedWorkers.get(worker)!
  let open = 0

  const after: Environment<never>["after"] = (millis, action) => {
    engine.after(driver, millis, action)
  }

  const write: Environment<never>["write"] = ({ aggregate: place, eventTypes, isLate, lasts, rollsBack }) => {
    const free = scenario.aggregates.filter((aggregate) => !log.locked.has(aggregate.id))
    const aggregate = free[Math.floor(place * free.length)]
    if (aggregate === undefined) return
    const writer = log.begin(aggregate, eventTypes)
    open++
    const close = () => {
      open--
      if (rollsBack) {
        coverage.count("faults", "writer rolled back")
        log.rollBack(writer)
        return
      }
      if (log.head > writer.first) coverage.count("faults", "commits by writers out of order")
      log.commit(writer)
    }
    if (isLate) coverage.count("faults", "commit by a writer late")
    if (lasts === 0) close()
    else after(lasts, close)
  }

  const handle: Environment<never>["handle"] = Effect.fnUntraced(function*(subject, event) {
    yield* TxRef.update(
      model.effectsRef(subject.name, subject.keys.of(event)),
      (effects) => effectsAfter(effects, event.globalPosition)
    )
    if (subject.ordering === "global") {
      yield* TxRef.update(model.sequenceRef(subject.name), ({ last, ordered }) => ({
        last: event.globalPosition,
        ordered: ordered && event.globalPosition > last
      }))
    }
    if (scenario.sharesRows) yield* TxRef.update(model.totalRef(subject.name), (total) => total + 1)
  })

  const start: Environment<never>["start"] = (worker, options, ended) => {
    const process = new Process(engine, worker.name, true)
    const simulated: SimulatedWorker = { process, fiber: undefined, cut: Effect.void, sessionOpenedAt: engine.now }
    simulatedWorkers.set(worker, simulated)
    if (run.chance.bool(0.1)) {
      process.skew = run.chance.int(-3_600_000, 3_600_000)
      coverage.count("faults", "worker's clock wrong")
    }
    const program = Effect.scoped(Effect.gen(function*() {
      const opened = yield* MemoryWorld.open(world)
      simulated.cut = opened.cut
      const handle: MemoryWorld.Handle = {
        ...opened,
        get openedAt() {
          return simulated.sessionOpenedAt
        }
      }
      const stores = Faults.make({ run, worker, process, handle, log, checkers, mutation })
      const projections = options.projections.map((projection) => mutation.projection?.(projection) ?? projection)
      const orchestrator = yield* Effect.provideContext(Orchestrator.make({ ...options, projections }), stores)
      return yield* worker.catchesUp ? orchestrator.catchUp : orchestrator.run
    }))
    const context = Context.make(Scheduler.Scheduler, process.scheduler).pipe(
      Context.add(Clock.Clock, process.clock),
      Context.add(CurrentProcess, process),
      Context.add(Random.Random, random),
      Context.add(References.CurrentLoggers, new Set([logger])),
      Context.add(References.MinimumLogLevel, "Warn")
    )
    simulated.fiber = Effect.runForkWith(context)(program)
    simulated.fiber.addObserver(ended)
  }

  const enterAgain = ({ exit, isCut, registration }: Worker): void => {
    if (registration === undefined || isCut || exit !== undefined) return
    inDriver(MemoryWorld.changeWorker(world, registration, (record) => ({ ...record, absentSince: undefined })))
  }

  const endPresence: Environment<never>["endPresence"] = (worker, millis) => {
    if (worker.registration === undefined) return false
    inDriver(MemoryWorld.endPresence(world, worker.registration))
    if (millis !== undefined) after(millis, () => enterAgain(worker))
    return true
  }

  /** After an outage the worker has a new session with presence. */
  const reconnect: Environment<never>["reconnect"] = (worker) => {
    for (const back of worker === undefined ? run.workers : [worker]) {
      of(back).sessionOpenedAt = engine.now
      enterAgain(back)
    }
  }

  const environment: Environment<never> = {
    check: (check) => check(),
    after,
    write,
    openWriters: () => open,
    handle,
    start,
    stop: (worker) => of(worker).fiber?.interruptUnsafe(),
    cut: (worker) => inDriver(of(worker).cut),
    halt: (worker) => {
      of(worker).process.ended = true
    },
    freeze: (worker) => {
      of(worker).process.frozen = true
    },
    thaw: (worker) => of(worker).process.thaw(),
    // The injected faults check `awayUntil` themselves. An outage for all workers starts a new server epoch, so nothing
    // that was read before can be written.
    disconnect: (worker) => {
      if (worker === undefined) world.epoch = `${BigInt(world.epoch) + 1n}`
    },
    reconnect,
    stalls: () => 0,
    requestParked,
    requestOnHalt,
    endPresence
  }
  return { run, checkers, environment }
}

export const simulate = (seed: number, mutation: Mutation = none): Outcome => {
  const chance = new Chance(seed, 6)
  const engine = new Engine(seed, chance.pick([0, 0, 0.002, 0.02]), chance.pick([0, 0.2, 1]))
  const driver = new Process(engine, "scenario", false)
  const { checkers, run, environment } = environmentOf(
    engine,
    driver,
    mutation,
    Scenario.draw(seed, Pace.virtual, mutation.faults)
  )
  const scenarioRun = new ScenarioRun(run, environment, checkers)
  try {
    const steps = scenarioRun.steps()
    let wait = steps.next()
    while (wait.done !== true) wait = steps.next(engine.run(wait.value.done, wait.value.deadline))
  } catch (error) {
    run.violation(`the simulation broke: ${error instanceof Error ? error.stack ?? error.message : String(error)}`)
  }
  run.coverage.count("numbers", "virtual seconds", Math.round(engine.now / 1000))
  run.coverage.count("numbers", "tasks", engine.steps)
  return scenarioRun.outcome
}
