/**
 * Runs a scenario in real time against PostgreSQL. Faults are injected at the seam where statements are sent, by
 * `pg_terminate_backend`, and on the connections.
 *
 * The seed determines the scenario but not its course: real time, the server and other load on the machine determine
 * which statement a fault hits. A seed that failed may pass when it runs again.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FiberSet from "effect/FiberSet"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Redacted from "effect/Redacted"
import * as SqlClient from "effect/sql/SqlClient"
import * as Migrations from "../../../src/layers/postgres/Migrations.ts"
import * as PostgresTest from "../../../src/testing/PostgresTest.ts"
import { Checkers } from "../Checkers.ts"
import * as Coverage from "../Coverage.ts"
import type { Environment } from "../Environment.ts"
import * as Pace from "../Pace.ts"
import { Run, type Worker } from "../Run.ts"
import * as Scenario from "../Scenario.ts"
import { type Outcome, ScenarioRun } from "../ScenarioRun.ts"
import * as Audit from "./Audit.ts"
import { Mirror } from "./Mirror.ts"
import { type Rewrite, SimulatedWorker } from "./SimulatedWorker.ts"
import * as Writers from "./Writers.ts"

export interface Options {
  /** The name of the template that {@link prepare} created. */
  readonly template: string
  /** The run's own server if absent. */
  readonly serverUrl?: string | undefined
  /** Removes a mechanism from the library's statements on their way. */
  readonly rewrite?: Rewrite | undefined
}

/** Milliseconds between two reads of the audit. */
const breathMillis = 30

/** A session that ended this long ago has been replaced. */
const sessionMillis = 10_000

/** How long workers that were cut off or stopped may take to end. */
const endMillis = 20_000

/** Creates the template of the databases of the runs; it exists as long as the scope. */
export const prepare = Effect.fnUntraced(function*(serverUrl?: string) {
  const { name, url } = yield* PostgresTest.make({ serverUrl })
  yield* PostgresTest.withConnection(
    url,
    Effect.andThen(Migrations.up, Effect.flatMap(SqlClient.SqlClient, Audit.install))
  )
  return name
})

const handle: Environment<SqlClient.SqlClient>["handle"] = Effect.fnUntraced(function*(subject, event) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`
    INSERT INTO models (projection, key, count, position, ordered)
    VALUES (${subject.name}, ${subject.keys.of(event)}, 1, ${event.globalPosition}, true)
    ON CONFLICT (projection, key) DO UPDATE SET count = models.count + 1, position = excluded.position,
      ordered = models.ordered AND excluded.position > models.position`
})

const handleShared: typeof handle = Effect.fnUntraced(function*(subject, event) {
  yield* handle(subject, event)
  const sql = yield* SqlClient.SqlClient
  yield* sql`
    INSERT INTO totals (projection, count) VALUES (${subject.name}, 1)
    ON CONFLICT (projection) DO UPDATE SET count = totals.count + 1`
})

/** Runs a seed's scenario; the database is dropped afterwards. */
export const simulate = (seed: number, options: Options) =>
  Effect.scoped(simulateOn(Scenario.draw(seed, Pace.real), options))

const simulateOn = Effect.fnUntraced(function*(scenario: Scenario.Scenario, options: Options) {
  const { url } = yield* PostgresTest.make(options)
  const sql = yield* Effect.provide(PgClient.makeClient({ url: Redacted.make(url) }), Reactivity.layer)
  const fork = yield* FiberSet.makeRuntime<never>()
  const [start] = yield* sql<{ readonly millis: number }>`
    SELECT (extract(epoch FROM clock_timestamp()) * 1000)::float8 AS millis`
  const startedAt = Date.now()

  const coverage = new Coverage.Coverage(Coverage.postgres)
  const mirror = new Mirror()
  const run = new Run({ scenario, coverage, now: () => Date.now() - startedAt, events: mirror, model: mirror })
  const checkers = new Checkers(run)
  const writers = yield* Writers.make(url, run)
  const simulatedWorkers = new Map<Worker, SimulatedWorker>()
  const of = (worker: Worker): SimulatedWorker => simulatedWorkers.get(worker)!

  const forkAction = (action: Effect.Effect<unknown, unknown>): void => {
    fork(Effect.catchCause(action, (cause) =>
      Effect.sync(() => {
        if (!Cause.hasInterrupts(cause)) run.violation(`the scenario broke: ${Cause.pretty(cause)}`)
      })))
  }

  /** Terminates one of a worker's sessions on the server: the one that holds its presence, or any. */
  const terminate = (worker: Worker, which: string) =>
    forkAction(sql`
      SELECT pg_terminate_backend(pid) FROM pg_stat_activity
      WHERE datname = current_database() AND client_port = ANY(${of(worker).wire.ports}::int4[])
        AND application_name LIKE ${which} LIMIT 1`)

  const affected = (worker: Worker | undefined) => worker === undefined ? [...simulatedWorkers.values()] : [of(worker)]

  /** What is checked after the next read of the audit. */
  const checks: Array<() => void> = []
  const environment: Environment<SqlClient.SqlClient> = {
    check: (check) => checks.push(check),
    after: (millis, action) => forkAction(Effect.andThen(Effect.sleep(millis), Effect.sync(action))),
    write: (write) => forkAction(writers.write(write)),
    openWriters: writers.open,
    handle: scenario.sharesRows ? handleShared : handle,
    start: (worker, orchestrator, ended) => {
      const simulated = new SimulatedWorker(
        run,
        worker,
        url,
        (held) => checks.push(() => checkers.fenced(worker, held))
      )
      simulatedWorkers.set(worker, simulated)
      // In real time, any delay may keep a worker from its heartbeats.
      worker.ailments.cutOffUntil = Infinity
      if (run.now() < run.awayUntil) simulated.wire.refuse()
      simulated.fiber = fork(simulated.program(orchestrator, options.rewrite))
      simulated.fiber.addObserver(ended)
    },
    stop: (worker) => of(worker).fiber?.interruptUnsafe(),
    cut: (worker) => of(worker).wire.refuse(),
    halt: (worker) => {
      of(worker).wire.hold()
      of(worker).fiber?.interruptUnsafe()
    },
    freeze: () => {},
    thaw: (worker) => of(worker).parking.leave(),
    disconnect: (worker) => {
      for (const { wire } of affected(worker)) wire.refuse()
    },
    reconnect: (worker) => {
      for (const [one, { wire }] of simulatedWorkers) {
        const isBack = run.now() >= Math.max(one.ailments.awayUntil, run.awayUntil)
        if ((worker === undefined || worker === one) && !one.isCut && isBack) wire.accept()
      }
    },
    requestParked: (projection, request, selection) => {
      const { length } = run.withheld.parked(projection)
      if (length === 0) return 0
      run.say("scenario", `requests to ${request} parked events of ${projection}`)
      forkAction(writers.parkedEvents.request(projection, { request, selection }))
      return length
    },
    requestOnHalt: (projection, eventId, request) =>
      forkAction(Effect.map(writers.parkedEvents.requestOnHalt(projection, { eventId, request }), (isAccepted) => {
        run.say("scenario", `${isAccepted ? "requests" : "cannot request"} to ${request} ${eventId} of ${projection}`)
        if (!isAccepted) coverage.count("steps", "request about an event without a halt refused")
      })),
    // Once all faults have stopped, only the machine can have kept a worker from its heartbeats.
    stalls: () =>
      coverage.of("steps", "suspended by itself") + coverage.of("steps", "evicted: heartbeats missed") +
      coverage.of("errors", "CoordinationTimeout"),
    endPresence: (worker, millis) => {
      if (worker.registration === undefined) return false
      terminate(worker, millis === undefined ? "%listener" : "%")
      return true
    }
  }

  let snapshot = Audit.nothing
  const outside = {
    run,
    checkers,
    began: start!.millis,
    absentSince: (worker: Worker, at: number) => {
      const lost = simulatedWorkers.get(worker)?.wire.lostSince(startedAt + at - sessionMillis)
      return lost === undefined ? undefined : lost - startedAt
    }
  }
  /** Passes everything that was committed before this began to the checkers. */
  const look = Effect.gen(function*() {
    const due = checks.splice(0)
    const seen = yield* Audit.read(sql, snapshot)
    snapshot = seen.snapshot
    for (const transaction of seen.transactions) mirror.apply(transaction, outside)
    for (const check of due) check()
  })

  const scenarioRun = new ScenarioRun(run, environment, checkers)
  const steps = scenarioRun.steps()
  let wait = steps.next()
  while (wait.done !== true) {
    yield* Effect.sleep(breathMillis)
    yield* look
    if (wait.value.done()) wait = steps.next(true)
    else if (run.now() >= wait.value.deadline) wait = steps.next(false)
  }
  yield* look
  yield* end(run, simulatedWorkers)
  coverage.count("numbers", "seconds", Math.round(run.now() / 1000))
  return scenarioRun.outcome satisfies Outcome
})

/** Stops all workers, including those that were cut off. */
const end = Effect.fnUntraced(function*(run: Run, simulatedWorkers: ReadonlyMap<Worker, SimulatedWorker>) {
  for (const [worker, { fiber, parking, wire }] of simulatedWorkers) {
    worker.isCut = true
    worker.isFrozen = false
    parking.leave()
    wire.refuse()
    fiber?.interruptUnsafe()
  }
  const fibers = [...simulatedWorkers.values()].flatMap(({ fiber }) => fiber ?? [])
  const ended = yield* Effect.timeoutOption(Fiber.awaitAll(fibers), endMillis)
  if (ended._tag === "None") {
    const names = [...simulatedWorkers.keys()].filter(({ exit }) => exit === undefined).map(({ name }) => name)
    run.violation(`P5: ${names.join(" ")} did not stop after being cut off`)
  }
})
