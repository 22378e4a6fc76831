/**
 * One run: a seed draws settings, workers, writers and faults; faults stop; then everything has to be handled and the
 * plan to settle within a bound; then all workers leave.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Logger from "effect/Logger"
import * as Random from "effect/Random"
import * as References from "effect/References"
import * as Scheduler from "effect/Scheduler"
import * as TxRef from "effect/TxRef"
import * as MemoryWorld from "../../src/layers/memory/MemoryWorld.ts"
import type { Event } from "../../src/schema/Event.ts"
import * as Generation from "../../src/schema/Generation.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import type * as Settings from "../../src/schema/Settings.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import { Checkers, ObservedRows } from "./Checkers.ts"
import { Coverage } from "./Coverage.ts"
import { Chance, CurrentProcess, Engine, Process } from "./Engine.ts"
import { EventLog } from "./EventLog.ts"
import * as Faults from "./Faults.ts"
import { type Mutation, none } from "./Mutations.ts"
import { isRunning, type Run, Subject, type Worker } from "./Run.ts"

export interface Outcome {
  readonly seed: number
  readonly violations: ReadonlyArray<string>
  readonly trace: ReadonlyArray<string>
  readonly coverage: Coverage
  /** Virtual milliseconds from the end of the faults until all was handled and settled. */
  readonly recoveredAfter: number | undefined
  readonly events: number
  readonly faults: number
}

class SimulatedFailure extends Data.TaggedError("SimulatedFailure") {}

const eventsAtLeast = 200
const faultsAtLeast = 3
/** A slow call takes so long at most, before and after it is done. */
const slowestMillis = 1000

const actions = [
  "join",
  "leave",
  "kill",
  "vanish",
  "restart",
  "freeze",
  "take over",
  "take over",
  "twin",
  "away",
  "away for all",
  "failing",
  "lossy",
  "slow",
  "presence",
  "presence for a moment",
  "deaf",
  "slow handler",
  "failing handler",
  "stuck handler",
  "other replica set",
  "changed filter",
  "catch up"
] as const
type Action = typeof actions[number]

const randomOf = (seed: number): typeof Random.Random["Service"] => {
  const chance = new Chance(seed, 3)
  return {
    nextIntUnsafe: () => chance.int(Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER),
    nextDoubleUnsafe: () => chance.next()
  }
}

export const simulate = (seed: number, mutation: Mutation = none): Outcome => {
  const chance = new Chance(seed, 2)
  const coverage = new Coverage()
  const trace: Array<string> = []
  const violations: Array<string> = []
  const engine = new Engine(seed, chance.pick([0, 0, 0.002, 0.02]), chance.pick([0, 0.2, 1]))
  const say = (who: string, what: string) => {
    trace.push(`${String(engine.now).padStart(7)} ${who.padEnd(9)} ${what}`)
  }
  const violation = (text: string) => {
    say("!", text)
    violations.push(`${text} (at ${engine.now} ms)`)
  }

  // What this seed is about.
  const names = ["p0", "p1", "p2"].slice(0, chance.pick([1, 1, 2, 2, 3]))
  const subjects = new Map(names.map((name, index) => [
    name,
    new Subject(
      name,
      index === 0 ? {} : index === 1 ? { aggregateTypes: ["A"] } : { aggregateTypes: ["A", "B"], eventTypes: ["Odd"] }
    )
  ]))
  const heartbeat = chance.pick([200, 400, 1000])
  const stale = heartbeat * chance.pick([3, 4, 6])
  const drain = chance.pick([20, 100, 500])
  const settings: Settings.Input = {
    replicaSet: "main",
    heartbeatInterval: heartbeat,
    staleWorkerTimeout: stale,
    // Long enough for a silent worker to be given up for dead by one that has just started: two heartbeats until it may
    // judge, and the timeout. With less, newcomers fail one after the other and none of them evicts it.
    coordinationTimeout: Math.max(drain + chance.pick([400, 1500, 4000]), stale / 2 + heartbeat + 500),
    drainTimeout: drain,
    pollInterval: chance.pick([200, 500, 1000]),
    registrationWindow: chance.pick([0, 25, 100]),
    batchSize: chance.pick([2, 5, 20, 50])
  }
  const most = chance.pick([1, 2, 3, 3, 4, 4, 5, 6, 8, 12, 16])
  const sharesRows = chance.bool(0.3)
  const startsNow = chance.bool(0.15)
  const aggregates = Array.from({ length: chance.pick([3, 12, 24]) }, (_, index) => ({
    id: `a${index}`,
    type: index % 3 === 0 ? "C" : index % 3 === 1 ? "A" : "B"
  }))
  const enabled = actions.filter((action) => action === "join" || action === "leave" || chance.bool(0.5))

  const driver = new Process(engine, "scenario", false)
  const driverContext = Context.make(Scheduler.Scheduler, driver.scheduler).pipe(
    Context.add(Clock.Clock, driver.clock),
    Context.add(CurrentProcess, driver)
  )
  const inDriver = <A, E>(effect: Effect.Effect<A, E>): A => {
    const exit = Effect.runForkWith(driverContext)(effect).pollUnsafe()
    if (exit === undefined || Exit.isFailure(exit)) throw new Error("the scenario's own step did not end at once")
    return exit.value
  }
  const rows = new ObservedRows()
  const world: MemoryWorld.MemoryWorld = { ...inDriver(MemoryWorld.make), rows }
  const log = new EventLog(engine, () => Faults.delivery(run))
  const run: Run = {
    seed,
    engine,
    chance,
    world,
    log,
    coverage,
    subjects,
    workers: [],
    owners: new Map(),
    trace,
    violations,
    awayUntil: 0,
    deafUntil: 0,
    heartbeatMillis: heartbeat,
    staleMillis: stale,
    sharesRows,
    latency: chance.pick([0, 0, 2, 10]),
    say,
    violation
  }
  const checkers = new Checkers(run, rows)
  engine.afterTask = checkers.check
  const random = randomOf(seed)

  /** Problems that the library reports in no other way. */
  const logger = Logger.make(({ cause, fiber, message }) => {
    const text = (Array.isArray(message) ? message : [message]).map(String).join(" ")
    const who = fiber.getRef(CurrentProcess)?.name ?? "?"
    if (text.includes(" died")) violation(`P6: ${who} says: ${text} ${Cause.pretty(cause)}`)
    if (text.includes("could not renew its heartbeat")) {
      coverage.count("steps", "suspended by itself")
      say(who, "suspends itself")
    }
  })

  // Workers.
  let faults = 0
  let started = 0
  /** Faults have stopped. */
  let calm = false
  const running = (replicaSet = "main") =>
    run.workers.filter((worker) => isRunning(worker) && worker.replicaSet === replicaSet)

  const handler = (subject: Subject, worker: Worker) =>
    Effect.fnUntraced(function*(event: Event) {
      const { ailments, process } = worker
      if (engine.now < ailments.handlerStuckUntil && !process.ended) {
        coverage.count("faults", "handler does not stop")
        yield* Effect.uninterruptible(Effect.sleep(ailments.handlerStuckUntil - engine.now))
      }
      if (engine.now < ailments.handlerSlowUntil) {
        coverage.count("faults", "handler slow")
        yield* Effect.sleep(chance.int(1, 60))
      }
      const ref = subject.effects(event.aggregateId)
      const seen = yield* TxRef.get(ref)
      if (engine.now < ailments.handlerFailsUntil && chance.bool(0.1)) {
        coverage.count("faults", "handler fails")
        return yield* new SimulatedFailure()
      }
      yield* TxRef.set(ref, {
        count: seen.count + 1,
        version: event.aggregateVersion,
        ordered: seen.ordered && event.aggregateVersion > seen.version
      })
      if (sharesRows) yield* TxRef.update(subject.total, (total) => total + 1)
    })

  const spawn = (options: {
    readonly workerId: string
    readonly carries: ReadonlyArray<string>
    readonly replicaSet?: string
    readonly otherFilter?: boolean
    /** It leaves when it has handled what there is. */
    readonly catchesUp?: boolean
  }): Worker => {
    const name = `w${++started}`
    const process = new Process(engine, name, true)
    const worker: Worker = {
      name,
      workerId: options.workerId,
      replicaSet: options.replicaSet ?? "main",
      carries: options.carries,
      catchesUp: options.catchesUp === true,
      process,
      ailments: {
        awayUntil: 0,
        failingUntil: 0,
        lossyUntil: 0,
        slowUntil: 0,
        slowMillis: 1,
        cutOffUntil: 0,
        handlerSlowUntil: 0,
        handlerFailsUntil: 0,
        handlerStuckUntil: 0
      },
      unanswered: new Set(),
      fiber: undefined,
      cut: Effect.void,
      isCut: false,
      leaving: false,
      registration: undefined,
      registrations: 0,
      sessionOpenedAt: engine.now,
      exit: undefined
    }
    if (chance.bool(0.1)) {
      process.skew = chance.int(-3_600_000, 3_600_000)
      coverage.count("faults", "worker's clock wrong")
    }
    run.workers.push(worker)
    if (options.carries.length < names.length) coverage.count("faults", "workers with different projections")
    say(name, `starts as ${worker.replicaSet}/${worker.workerId} with ${options.carries.join(",")}`)
    const projections = options.carries.map((carried) => {
      const subject = subjects.get(carried)!
      return Projection.make(carried, {
        ...subject.filter,
        ...(options.otherFilter === true ? { boundedContexts: ["app"] } : {}),
        startFrom: startsNow ? "now" : "beginning",
        handle: handler(subject, worker)
      })
    })
    const program = Effect.scoped(Effect.gen(function*() {
      const opened = yield* MemoryWorld.open(world)
      worker.cut = opened.cut
      const handle: MemoryWorld.Handle = {
        ...opened,
        get openedAt() {
          return worker.sessionOpenedAt
        }
      }
      const stores = Faults.make(run, worker, handle, checkers, mutation)
      const orchestrator = yield* Orchestrator.make({
        ...settings,
        replicaSet: worker.replicaSet,
        workerId: worker.workerId,
        projections
      }).pipe(Effect.provideContext(stores))
      return yield* options.catchesUp === true ? orchestrator.catchUp : orchestrator.run
    }))
    const { head } = log
    const context = Context.make(Scheduler.Scheduler, process.scheduler).pipe(
      Context.add(Clock.Clock, process.clock),
      Context.add(CurrentProcess, process),
      Context.add(Random.Random, random),
      Context.add(References.CurrentLoggers, new Set([logger])),
      Context.add(References.MinimumLogLevel, "Warn")
    )
    const fiber = Effect.runForkWith(context)(program)
    worker.fiber = fiber
    fiber.addObserver((exit) => ended(worker, exit, options, head))
    return worker
  }

  const ended = (
    worker: Worker,
    exit: Exit.Exit<unknown, unknown>,
    options: Parameters<typeof spawn>[0],
    head: number
  ): void => {
    worker.exit = exit
    if (Exit.isSuccess(exit)) {
      if (options.catchesUp !== true) return violation(`P6: ${worker.name} ended by itself`)
      coverage.count("steps", "caught up and left")
      say(worker.name, "has caught up")
      for (const name of worker.carries) {
        const missing = subjects.get(name)!.missing(head)
        if (missing !== undefined) {
          violation(`P3: ${worker.name} caught up with ${head}, but not with ${name}/${missing}`)
        }
      }
      return
    }
    const failure = exit.cause.reasons.find(Cause.isFailReason)
    const tag = failure === undefined
      ? undefined
      : (failure.error as { readonly _tag?: string })._tag ?? String(failure.error)
    say(worker.name, tag === undefined ? "has stopped" : `fails with ${tag}`)
    if (exit.cause.reasons.some(Cause.isDieReason)) violation(`P6: ${worker.name} died: ${Cause.pretty(exit.cause)}`)
    switch (tag) {
      case undefined:
        if (!worker.leaving && !worker.isCut) violation(`P6: ${worker.name} stopped without being asked`)
        return
      case "WorkerIdInUse":
      case "WorkerReplaced":
      case "CoordinationTimeout":
      case "FilterChanged":
      case "ProjectionInOtherReplicaSet":
        coverage.count("errors", tag)
        break
      case "ProjectionHalted":
        if (options.catchesUp !== true) violation(`P6: ${worker.name} failed with ${tag}`)
        coverage.count("errors", tag)
        return
      case "DatabaseUnavailable":
        // Whoever catches up asks for the head first, and says so when it cannot.
        if (worker.registrations > 0 && !worker.catchesUp) {
          violation(`P5: ${worker.name} gave up for a database that went away for a while`)
        }
        break
      default:
        violation(`P6: ${worker.name} failed with ${tag}`)
    }
    // Whoever looks after the processes starts it again, unless it is one too many.
    if (
      worker.isCut || worker.leaving || options.otherFilter === true || worker.replicaSet !== "main" ||
      options.catchesUp === true || tag === "WorkerIdInUse" || tag === "WorkerReplaced"
    ) return
    engine.after(driver, chance.int(50, 500), () => {
      if (!stopping && running().length < most) spawn(options)
    })
  }
  let stopping = false

  let ids = 0
  const carries = (): ReadonlyArray<string> => {
    const some = names.filter(() => chance.bool(0.7))
    return some.length === 0 || chance.bool(0.5) ? names : some
  }
  const join = () => spawn({ workerId: `id${++ids}`, carries: carries() })

  const leave = (worker: Worker) => {
    say("scenario", `stops ${worker.name}`)
    worker.leaving = true
    worker.fiber!.interruptUnsafe()
  }

  const cut = (worker: Worker) => {
    worker.isCut = true
    inDriver(worker.cut)
  }

  const kill = (worker: Worker) => {
    say("scenario", `kills ${worker.name}`)
    coverage.count("faults", "kill: cut, then interrupted")
    cut(worker)
    worker.fiber!.interruptUnsafe()
  }

  const vanish = (worker: Worker) => {
    say("scenario", `kills ${worker.name} at once`)
    worker.process.ended = true
    if (chance.bool(0.2)) {
      coverage.count("faults", "kill: session half open")
      worker.isCut = true
      return
    }
    coverage.count("faults", "kill: gone at once")
    cut(worker)
  }

  const cutsOff = (worker: Worker, until: number) => {
    worker.ailments.cutOffUntil = Math.max(worker.ailments.cutOffUntil, until)
  }

  const freeze = (worker: Worker, millis: number) => {
    if (worker.process.frozen) return
    say("scenario", `freezes ${worker.name} for ${millis} ms`)
    coverage.count("faults", "freeze")
    worker.process.frozen = true
    engine.after(driver, millis, () => {
      if (worker.process.frozen && !worker.process.ended) {
        say("scenario", `wakes ${worker.name}`)
        cutsOff(worker, engine.now + 2 * slowestMillis)
        worker.process.thaw()
      }
    })
  }

  /** Half of the time in the middle of a batch. */
  const freezeAtWork = (worker: Worker, millis: number) => {
    if (chance.bool(0.5)) return freeze(worker, millis)
    worker.ailments.handlerSlowUntil = Math.max(worker.ailments.handlerSlowUntil, engine.now + 100)
    for (let writers = 0; writers < 3; writers++) write()
    engine.after(driver, chance.int(3, 40), () => {
      if (!calm && isRunning(worker)) freeze(worker, millis)
    })
  }

  /** After an outage all sessions are new. */
  const reconnect = () => {
    for (const worker of run.workers) worker.sessionOpenedAt = engine.now
  }

  const act = (action: Action): boolean => {
    const alive = running()
    const awake = alive.filter((worker) => !worker.process.frozen)
    if (action === "join") {
      if (alive.length >= most) return false
      join()
      return true
    }
    const victim = awake.length === 0 ? undefined : chance.pick(awake)
    if (victim === undefined) {
      // All are frozen: somebody has to go on.
      if (alive.length >= most + 2) return false
      join()
      return true
    }
    const until = engine.now + chance.int(50, chance.bool(0.5) ? stale * 2 : 500)
    const ail = (what: string, change: () => void) => {
      say("scenario", `${victim.name}: ${what} until ${until}`)
      change()
      return true
    }
    switch (action) {
      case "leave":
        leave(victim)
        return true
      case "kill":
        kill(victim)
        return true
      case "vanish":
        vanish(victim)
        return true
      case "restart": {
        const { carries, workerId } = victim
        if (chance.bool(0.5)) kill(victim)
        else vanish(victim)
        coverage.count("faults", "id of a dead worker used again")
        engine.after(driver, chance.int(0, 500), () => {
          if (!stopping) spawn({ workerId, carries })
        })
        return true
      }
      case "freeze":
        freezeAtWork(victim, chance.bool(0.7) ? chance.int(stale, stale * 3) : chance.int(10, stale))
        return true
      case "take over": {
        const millis = stale * 3 + chance.int(0, 500)
        freezeAtWork(victim, millis)
        coverage.count("faults", "id of a frozen worker taken over")
        engine.after(driver, stale + chance.int(10, stale), () => {
          if (!stopping) spawn({ workerId: victim.workerId, carries: victim.carries })
        })
        return true
      }
      case "twin":
        coverage.count("faults", "id of a living worker")
        spawn({ workerId: victim.workerId, carries: victim.carries })
        return true
      case "away":
        coverage.count("faults", "stores away for one worker")
        return ail("stores away", () => {
          victim.ailments.awayUntil = until
          cutsOff(victim, until)
          engine.after(driver, until - engine.now, () => {
            victim.sessionOpenedAt = engine.now
          })
        })
      case "away for all":
        coverage.count("faults", "stores away for all")
        return ail("stores away for all", () => {
          run.awayUntil = Math.max(run.awayUntil, until)
          engine.after(driver, until - engine.now, reconnect)
        })
      case "failing":
        return ail("stores failing", () => {
          victim.ailments.failingUntil = until
          cutsOff(victim, until)
        })
      case "lossy":
        return ail("answers lost", () => {
          victim.ailments.lossyUntil = until
          cutsOff(victim, until)
        })
      case "slow":
        return ail("stores slow", () => {
          victim.ailments.slowUntil = until
          cutsOff(victim, until + 2 * slowestMillis)
          victim.ailments.slowMillis = chance.pick([20, 200, slowestMillis])
        })
      case "presence":
      case "presence for a moment": {
        const { registration } = victim
        if (registration === undefined) return false
        const brief = action === "presence for a moment"
        coverage.count("faults", brief ? "presence lost for a moment" : "presence lost")
        say("scenario", `${victim.name}: presence lost`)
        inDriver(MemoryWorld.endPresence(world, registration))
        if (brief) {
          engine.after(driver, chance.int(1, 80), () => {
            if (victim.isCut || victim.exit !== undefined) return
            inDriver(MemoryWorld.changeWorker(world, registration, (worker) => ({ ...worker, absentSince: undefined })))
          })
        }
        return true
      }
      case "deaf":
        return ail("notifications lost and late for all", () => {
          run.deafUntil = until
        })
      case "slow handler":
        return ail("handler slow", () => {
          victim.ailments.handlerSlowUntil = until
        })
      case "failing handler":
        return ail("handler fails", () => {
          victim.ailments.handlerFailsUntil = until
        })
      case "stuck handler": {
        const millis = chance.int(500, 12_000)
        say("scenario", `${victim.name}: handler does not stop for ${millis} ms`)
        victim.ailments.handlerStuckUntil = engine.now + millis
        return true
      }
      case "other replica set": {
        if (running("other").length >= 4) return false
        coverage.count("faults", "worker of another replica set")
        const other = spawn({ workerId: `x${++ids}`, carries: [chance.pick(names)], replicaSet: "other" })
        engine.after(driver, chance.int(500, 3000), () => {
          if (isRunning(other)) leave(other)
        })
        return true
      }
      case "changed filter": {
        const projection = chance.pick(names)
        if (MemoryWorld.committedRows(world, projection).length === 0) return false
        coverage.count("faults", "filter changed")
        spawn({ workerId: `f${++ids}`, carries: [projection], otherFilter: true })
        return true
      }
      case "catch up":
        if (alive.length >= most) return false
        spawn({ workerId: `c${++ids}`, carries: carries(), catchesUp: true })
        return true
    }
  }

  // Writers.
  let open = 0
  const write = () => {
    const free = aggregates.filter((aggregate) => !log.locked.has(aggregate.id))
    if (free.length === 0) return
    const aggregate = chance.pick(free)
    const writer = log.begin(
      aggregate.id,
      aggregate.type,
      Array.from({ length: chance.int(1, 4) }, () => chance.bool(0.5) ? "Odd" : "Even")
    )
    open++
    const close = () => {
      open--
      if (chance.bool(0.1)) {
        coverage.count("faults", "writer rolled back")
        log.rollBack(writer)
        return
      }
      if (log.head > writer.first) coverage.count("faults", "commits by writers out of order")
      for (const subject of subjects.values()) subject.committed(writer)
      log.commit(writer)
    }
    if (chance.bool(0.5)) return close()
    const late = chance.bool(0.05)
    if (late) coverage.count("faults", "commit by a writer late")
    engine.after(driver, late ? chance.int(500, 5000) : chance.int(1, 60), close)
  }

  const going = () => violations.length > 0
  const pass = (millis: number) => {
    if (!going()) engine.run(going, engine.now + millis)
  }

  try {
    // What is wrong while it is wrong.
    const span = chance.pick([50, 200, 600])
    for (let first = chance.int(1, Math.min(3, most)); first > 0; first--) join()
    for (let step = 0; !going() && (step < 30 || log.committed < eventsAtLeast || faults < faultsAtLeast); step++) {
      for (let writers = chance.int(0, 8); writers > 0; writers--) write()
      if (step > 400) break
      const action: Action = running().length === 0 ? "join" : chance.pick(enabled)
      if ((chance.bool(0.6) || step >= 30) && act(action)) faults++
      pass(chance.int(1, span))
    }

    // Everything that was wrong ends.
    calm = true
    say("scenario", "faults stop")
    const calmSince = engine.now
    run.awayUntil = run.deafUntil = 0
    reconnect()
    for (const worker of run.workers) {
      Object.assign(worker.ailments, {
        awayUntil: 0,
        failingUntil: 0,
        lossyUntil: 0,
        slowUntil: 0,
        handlerSlowUntil: 0,
        handlerFailsUntil: 0
      })
      if (worker.process.frozen && !worker.process.ended) {
        // A call that was slow when it froze goes on as slowly.
        cutsOff(worker, engine.now + 2 * slowestMillis)
        worker.process.thaw()
      }
      if (isRunning(worker) && worker.replicaSet !== "main") leave(worker)
    }
    const carried = () =>
      names.every((name) => running().some((worker) => !worker.catchesUp && worker.carries.includes(name)))
    if (!carried()) spawn({ workerId: `id${++ids}`, carries: names })
    const halted = () =>
      names.some((name) => MemoryWorld.committedRows(world, name).some((row) => row.halt !== undefined))
    const left = () => {
      const reasons: Array<string> = []
      const generation = world.generations.value.get("main")?.at(-1)
      const members = generation?.members ?? []
      const alive = running()
      if (open > 0) reasons.push(`${open} writers are open`)
      for (const worker of alive) if (worker.catchesUp) reasons.push(`${worker.name} is still catching up`)
      if (
        members.length !== alive.length ||
        !alive.every((worker) => members.some((member) => member.incarnation === worker.registration?.incarnation))
      ) {
        reasons.push(
          `the newest generation has ${members.map((member) => member.workerId).join(" ")}, but ${
            alive.map((worker) => worker.workerId).join(" ")
          } live`
        )
      }
      for (const name of names) {
        for (const row of MemoryWorld.committedRows(world, name)) {
          if (row.position < BigInt(log.settled)) {
            reasons.push(`${name}@${row.range.start} is at ${row.position} of ${log.settled}`)
          }
          if (row.fence === undefined) reasons.push(`${name}@${row.range.start} has no owner`)
          else if (!alive.some((worker) => worker.registration?.incarnation === row.fence?.incarnation)) {
            reasons.push(`${name}@${row.range.start} is held by a worker that is gone`)
          } else {
            const share = generation === undefined ? undefined : Generation.share(generation, name, row.fence)
            if (share === undefined || !HashRange.contains(share, row.range)) {
              reasons.push(`${name}@${row.range.start} is held by ${row.fence.workerId}, whose share it is not`)
            }
          }
          if (row.halt !== undefined) reasons.push(`${name}@${row.range.start} is halted`)
        }
        if (MemoryWorld.committedRows(world, name).length === 0) reasons.push(`${name} has no rows`)
      }
      return reasons
    }
    const bound = 60_000
    // A deploy of the mended handlers: whatever stands still is taken up by workers that start after it did.
    const deploy = () => {
      if (stopping || going()) return
      if (!carried()) spawn({ workerId: `id${++ids}`, carries: names })
      if (halted()) {
        for (const worker of running()) {
          leave(worker)
          spawn({ workerId: `id${++ids}`, carries: worker.carries })
        }
      }
      engine.after(driver, 5000, deploy)
    }
    engine.after(driver, 5000, deploy)
    let recoveredAfter: number | undefined
    if (!going()) {
      if (engine.run(() => going() || left().length === 0, calmSince + bound)) recoveredAfter = engine.now - calmSince
      else if (!going()) violation(`P5: ${bound} ms after the faults stopped ${left().join("; ")}`)
    }

    // Calls that were slow when the faults stopped have ended by then.
    if (!going()) {
      const ended = calmSince + 2 * slowestMillis + 500
      engine.run(() => going() || (engine.now >= ended && left().length === 0), calmSince + bound)
    }

    // Nothing more changes by itself.
    const generations = () => world.generations.value.get("main")?.at(-1)?.generationId
    const settled = generations()
    stopping = true
    pass(2000)
    if (!going()) {
      if (generations() !== settled) violation(`P5: generation ${generations()} follows ${settled} without a reason`)
      if (left().length > 0) violation(`P5: the plan does not stay: ${left().join("; ")}`)
    }
    checkers.checkAll()

    // Everyone leaves.
    if (!going()) {
      const leaving = running()
      for (const worker of leaving) leave(worker)
      if (!engine.run(() => going() || leaving.every((worker) => worker.exit !== undefined), engine.now + 30_000)) {
        violation(
          `P5: ${
            leaving.filter((worker) => worker.exit === undefined).map((worker) => worker.name).join(" ")
          } did not stop`
        )
      }
      for (const name of names) {
        for (const row of MemoryWorld.committedRows(world, name)) {
          if (!going() && row.fence !== undefined) {
            violation(`P4: ${name}@${row.range.start} is still held by ${row.fence.workerId}`)
          }
        }
      }
      checkers.checkAll()
    }
    coverage.count("numbers", "events", log.committed)
    coverage.count("numbers", "virtual seconds", Math.round(engine.now / 1000))
    coverage.count("numbers", "tasks", engine.steps)
    return { seed, violations, trace, coverage, recoveredAfter, events: log.committed, faults }
  } catch (error) {
    violation(`the simulation broke: ${error instanceof Error ? error.stack ?? error.message : String(error)}`)
    return { seed, violations, trace, coverage, recoveredAfter: undefined, events: log.committed, faults }
  }
}
