/**
 * The harness of the fault tests: real worker processes on their own database, signals, and a watch on the rows.
 *
 * Nothing here sleeps to let something happen. `waitUntil` reads the rows repeatedly, asserts each time the invariants
 * that must always hold, and reports the rows when they have stopped changing. (After Effect's own cluster integration
 * harness; comparing a read model with the fold of the events is Marten's oracle.)
 */
import { PgClient } from "@effect/sql-pg"
import { Clock, Console, Context, Effect, Layer, type Scope } from "effect"
import { SqlClient } from "effect/sql"
import * as Crypto from "node:crypto"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as PostgresStores from "../../src/layers/postgres/PostgresStores.ts"
import * as Operations from "../../src/services/Projections.ts"
import * as Invariants from "../../src/testing/Invariants.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import * as WorkerProcess from "../../src/testing/WorkerProcess.ts"
import * as Appends from "./Appends.ts"
import type { Instructions } from "./Instructions.ts"
import type { Misbehaviour } from "./Misbehaviour.ts"
import * as Projections from "./Projections.ts"

const root = Path.resolve(import.meta.dirname, "../..")

/** Default settings of a worker. A healthy worker must not be evicted because the machine is slow. */
export const defaultSettings: Instructions["settings"] = {
  heartbeatInterval: TimeLimits.scaledMillis(200),
  staleWorkerTimeout: TimeLimits.scaledMillis(1000),
  coordinationTimeout: TimeLimits.scaledMillis(20_000),
  drainTimeout: 5_000,
  pollInterval: 500,
  batchSize: 100
}

/** Prints how long each `waitUntil` took. */
const trace = process.env["FAULTS_TRACE"] !== undefined

const defaultReplicaSet = "faults"
const defaultProjections = ["per_aggregate", "shared_totals"]
const pollMillis = 20

/** How a worker differs from the default one. */
export interface WorkerOptions {
  readonly projections?: ReadonlyArray<string>
  readonly replicaSets?: Instructions["replicaSets"]
  readonly presence?: boolean
  readonly listen?: boolean
  /** Connections of its pool. Default 6. */
  readonly poolSize?: number
  readonly prepare?: boolean
  readonly settings?: Partial<Instructions["settings"]>
  readonly delayMillis?: number
  readonly filter?: Instructions["filter"]
  readonly typed?: Instructions["typed"]
  readonly misbehaviour?: Misbehaviour
  readonly options?: Instructions["options"]
  /** Registers under this id instead of the worker's name in the test. */
  readonly workerId?: string
  /** Reaches the database through another URL than the harness. */
  readonly url?: string
  readonly directUrl?: string
  /** The program that starts Node.js, and its arguments: `ip netns exec …`. */
  readonly through?: ReadonlyArray<string>
  readonly nodeArguments?: ReadonlyArray<string>
  readonly env?: Readonly<Record<string, string>>
  /** The test expects the process to exit without a signal. */
  readonly mayEnd?: boolean
}

/** The coordination rows at one moment, and what the handlers refused. */
export interface Rows extends Invariants.Rows {
  /** Refusals that `late` marks as harmless. */
  readonly refusals: ReadonlyArray<{ readonly late: boolean; readonly text: string }>
  /** The parked events, in position order. */
  readonly parked: ReadonlyArray<{
    readonly projection: string
    readonly event: string
    readonly attempts: number
    readonly request: string | null
  }>
}

/** The rows together with the read models, which takes a scan of all events. */
export interface State extends Rows {
  readonly events: number
  /** Events in the read model, by projection. */
  readonly applied: Readonly<Record<string, number>>
  /**
   * Aggregates with a higher version in a read model than was appended, or with a count that differs from their
   * version.
   */
  readonly impossible: number
}

/** Rows as PostgreSQL returns them. */
type Found<A extends Rows> = Invariants.Json & Omit<A, keyof Invariants.Rows>

/** A single statement, so that all values come from the same moment. */
const query = (parts: string): string => `SELECT json_build_object(${parts}) AS found`

const rowsParts = `${Invariants.parts},
    'refusals', (SELECT coalesce(json_agg(json_build_object('late', late,
        'text', concat_ws(' ', worker, projection, aggregate_id, version, position)) ORDER BY at), '[]') FROM refusals),
    'parked', (SELECT coalesce(json_agg(json_build_object('projection', projection_name,
        'event', aggregate_id || ' ' || aggregate_version, 'attempts', attempts, 'request', request)
        ORDER BY projection_name, position), '[]') FROM orchestrator_parked_events)`

const modelParts = `
    'events', (SELECT count(*) FROM events),
    'applied', (SELECT coalesce(json_object_agg(projection, events), '{}') FROM (
        SELECT projection, sum(events) AS events FROM per_aggregate GROUP BY projection
        UNION ALL SELECT projection, sum(events) FROM shared_totals GROUP BY projection
        UNION ALL SELECT projection, sum(events) FROM per_customer GROUP BY projection) AS a),
    'impossible', (SELECT count(*) FROM per_aggregate p LEFT JOIN (
        SELECT aggregate_id, max(aggregate_version) AS version FROM events GROUP BY aggregate_id) e USING (aggregate_id)
      WHERE p.events <> p.version OR p.version > coalesce(e.version, 0))`

/** The found values, with the rows as they are elsewhere. */
const fromJson = <Found extends Invariants.Json>(found: Found) => ({ ...found, ...Invariants.fromJson(found) })

/** The newest generation of a replica set. */
export const newest = (state: Rows, replicaSet = defaultReplicaSet) => Invariants.newest(state, replicaSet)

/** The current registration of a worker id. */
export const registered = (state: Rows, workerId: string, replicaSet = defaultReplicaSet) =>
  Invariants.registered(state, workerId, replicaSet)

/** See {@link Invariants.isSharedBy}. */
export const sharedBy = (workerIds: ReadonlyArray<string>, replicaSet = defaultReplicaSet) => (state: Rows): boolean =>
  Invariants.isSharedBy(state, workerIds, replicaSet)

/** Returns the violated invariants of the rows. */
export const violations = (
  before: Rows | undefined,
  state: Rows,
  options: { readonly mayHalt?: boolean } = {}
): ReadonlyArray<string> => [
  ...Invariants.violations(before, state, options),
  ...state.refusals.flatMap(({ late, text }) => late ? [] : [`refused: ${text}`])
]

/** Returns the violated invariants of the read models. */
const modelViolations = (state: State): ReadonlyArray<string> => [
  ...Object.entries(state.applied).flatMap(([projection, events]) =>
    events > state.events ? [`${projection} contains ${events} events of ${state.events}`] : []
  ),
  ...(state.impossible > 0 ? [`${state.impossible} aggregates of the read model cannot come from the events`] : [])
]

export const describe = (state: Rows): string =>
  [
    Invariants.describe(state),
    `refusals: ${state.refusals.length}`,
    ...state.refusals.slice(0, 10).map(({ late, text }) => `  ${late ? "late: " : ""}${text}`),
    `parked events: ${state.parked.length}`,
    ...state.parked.slice(0, 10).map(({ attempts, event, projection, request }) =>
      `  ${projection} ${event}, ${attempts} attempts, request ${request}`
    )
  ].join("\n")

/** What changes while the workers approach a condition. */
const progress = (state: State): string =>
  JSON.stringify([
    state.applied,
    state.parked.length,
    state.workers.map(({ generationId, incarnation, state }) => [String(incarnation), state, String(generationId)]),
    state.checkpoints.map(({ halted, incarnation, position }) => [String(incarnation), String(position), halted])
  ])

const pgClientOf = Effect.map(
  SqlClient.SqlClient,
  // The test database provides a PgClient; the type of the shared helper only mentions SqlClient.
  (sql) => sql as PgClient.PgClient
)

const prepare = Effect.gen(function*() {
  const pg = yield* pgClientOf
  yield* Migrations.up.pipe(Effect.provideService(PgClient.PgClient, pg))
  for (const table of Projections.tables) yield* pg.unsafe(table)
})

const templateName = (): string => {
  const hash = Crypto.createHash("sha256").update(Projections.tables.join())
  const migrations = Path.join(root, "migrations")
  const files = Fs.readdirSync(migrations).filter((name) => name.endsWith(".sql")).sort()
  for (const file of files) hash.update(Fs.readFileSync(Path.join(migrations, file)))
  return `faults_${hash.digest("hex").slice(0, 16)}`
}

const make = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const { append, load } = yield* Appends.make
  const operations = yield* Operations.Projections
  const database = yield* PostgresTest.TestDatabase
  const workers: Array<WorkerProcess.WorkerProcess> = []
  let before: State | undefined
  let mayHalt = false

  /** Reads only the rows, which is cheap enough to do many times a second. */
  const look = Effect.map(
    sql.unsafe<{ readonly found: Found<Rows> }>(query(rowsParts)),
    ([row]): Rows => fromJson(row!.found)
  )

  /** Reads the rows and read models, and checks their invariants. */
  const observe = Effect.gen(function*() {
    const [row] = yield* sql.unsafe<{ readonly found: Found<State> }>(query(`${rowsParts}, ${modelParts}`))
    const state: State = fromJson(row!.found)
    const found = [...violations(before, state, { mayHalt }), ...modelViolations(state)]
    before = state
    if (found.length > 0) return yield* fail(`Safety is broken: ${found.join("; ")}`, state)
    return state
  })

  const fail = (message: string, state: State | undefined) =>
    Effect.die(
      new Error([
        message,
        ...(state === undefined
          ? []
          : [describe(state), `${state.events} events, applied ${JSON.stringify(state.applied)}`]),
        ...workers.map((worker) =>
          `output of ${worker.id} (${worker.pid}):\n${WorkerProcess.lastLines(worker.output(), 40)}`
        )
      ].join("\n"))
    )

  /** Waits for a condition as long as anything changes that could lead to it. */
  const waitUntil = Effect.fnUntraced(function*(what: string, holds: (state: State) => boolean) {
    const startedAt = yield* Clock.monotonicTimeNanos
    const elapsed = Effect.map(Clock.monotonicTimeNanos, (now) => Number(now - startedAt) / 1e6)
    const watch = yield* TimeLimits.stallWatch
    while (true) {
      const lookedAt = yield* elapsed
      const state = yield* observe
      const millis = yield* elapsed
      if (holds(state)) {
        if (trace) yield* Console.log(`${Math.round(millis)} ms until ${what}`)
        return { state, millis }
      }
      for (const worker of workers) {
        const problem = worker.problem()
        if (problem !== undefined) return yield* fail(`While waiting until ${what}: ${problem}`, state)
      }
      const stalled = yield* watch.check(progress(state))
      if (stalled !== undefined) return yield* fail(`${stalled} while waiting until ${what}`, state)
      // Reading takes server time too; leave at least half of the time to the workers.
      yield* Effect.sleep(Math.max(pollMillis, millis - lookedAt))
    }
  })

  /** Waits until the process has printed `text` at least `count` times. */
  const waitForOutput = Effect.fnUntraced(function*(worker: WorkerProcess.WorkerProcess, text: string, count = 1) {
    yield* waitUntil(`${worker.id} prints "${text}"`, () => worker.output().split(text).length > count)
  })

  const start = Effect.fnUntraced(function*(
    id: string,
    options: WorkerOptions = {}
  ): Effect.fn.Return<WorkerProcess.WorkerProcess, never, Scope.Scope> {
    const instructions: Instructions = {
      url: options.url ?? database.url,
      application: `faults ${id}`,
      workerId: options.workerId ?? id,
      replicaSets: options.replicaSets ??
        [{ name: defaultReplicaSet, projections: options.projections ?? defaultProjections }],
      poolSize: options.poolSize ?? 6,
      prepare: options.prepare ?? true,
      ...(options.directUrl === undefined ? {} : { directUrl: options.directUrl }),
      presence: options.presence ?? true,
      listen: options.listen ?? true,
      settings: { ...defaultSettings, ...options.settings },
      delayMillis: options.delayMillis ?? 0,
      ...(options.filter === undefined ? {} : { filter: options.filter }),
      ...(options.typed === undefined ? {} : { typed: options.typed }),
      ...(options.misbehaviour === undefined ? {} : { misbehaviour: options.misbehaviour }),
      ...(options.options === undefined ? {} : { options: options.options })
    }
    const worker = yield* WorkerProcess.spawn({
      id,
      script: Path.join(import.meta.dirname, "worker.ts"),
      env: { ...options.env, FAULTS_WORKER: JSON.stringify(instructions) },
      through: options.through,
      nodeArguments: options.nodeArguments,
      mayEnd: options.mayEnd ?? false
    })
    workers.push(worker)
    return worker
  })

  const differences = Effect.fnUntraced(function*(projections: ReadonlyArray<string>) {
    const found: Array<string> = []
    for (const name of projections) {
      const rows = yield* sql.unsafe<{ readonly what: string; readonly fold: string; readonly found: string }>(
        Projections.difference(name)
      )
      found.push(
        ...rows.map((row) => `${name} ${row.what}: ${row.found || "nothing"} instead of ${row.fold || "nothing"}`)
      )
    }
    return found
  })

  /** Waits until each read model contains all events and none is parked, and fails with the differences from their fold. */
  const quiesce = Effect.fnUntraced(function*(projections: ReadonlyArray<string> = defaultProjections) {
    const { state } = yield* waitUntil(
      "every event is in every read model",
      (state) =>
        state.parked.length === 0 && projections.every((name) =>
          Projections.isCounted(name)
            ? (state.applied[name] ?? 0) >= state.events
            : state.checkpoints.every(({ position, projection }) => projection !== name || position >= state.head)
        )
    )
    const found = yield* differences(projections)
    if (found.length > 0) {
      return yield* fail(`The read models are not the fold of the events:\n${found.slice(0, 20).join("\n")}`, state)
    }
    return state
  })

  const openGate = (gate: string) => sql`INSERT INTO open_gates (gate) VALUES (${gate})`

  /** Requests that all parked events of a projection are handled again. */
  const retryParked = (projection: string) => Effect.orDie(operations.retryParked(projection, "all"))

  /** From now on a halted range is not a violation. */
  const expectHalts = Effect.sync(() => {
    mayHalt = true
  })

  return {
    url: database.url,
    expectHalts,
    start,
    openGate,
    retryParked,
    append,
    load,
    look,
    observe,
    waitUntil,
    waitForOutput,
    quiesce,
    differences
  }
})

/** A test database and the processes that run on it. */
export class Harness extends Context.Service<Harness, Effect.Success<typeof make>>()(
  "pupsourcing-orchestrator/test/faults/Harness"
) {}

/**
 * A harness on the run's own server, or on another one. Provide it outside of `Effect.scoped`, so that the processes
 * end before their database is dropped.
 */
export const layerWith = (options: { readonly serverUrl?: string | undefined }) =>
  Layer.effect(Harness)(make).pipe(
    Layer.provide(PostgresStores.layerWith({ presence: false })),
    Layer.provideMerge(Layer.unwrap(Effect.map(
      PostgresTest.template(templateName(), prepare, options.serverUrl),
      (template) =>
        PostgresTest.layerWith({
          template,
          serverUrl: options.serverUrl,
          client: { applicationName: "faults harness", maxConnections: 10 }
        })
    )))
  )

/** A harness on the run's own server. */
export const layer = layerWith({})
