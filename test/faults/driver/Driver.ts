/**
 * The fault driver: writers append, worker processes handle events, and faults on workers, network and database are
 * drawn at random. At the end the read models are compared with the events, one by one. (After Jepsen: the faults are
 * its nemesis, the fold of the events its model.)
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import * as Cause from "effect/Cause"
import * as Console from "effect/Console"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import { SqlClient } from "effect/sql"
import type * as EmbeddedPostgres from "../../../src/testing/EmbeddedPostgres.ts"
import { measure } from "../../support/Calibration.ts"
import * as Harness from "../Harness.ts"
import type { Fault } from "./Fault.ts"
import * as Fleet from "./Fleet.ts"
import * as Journal from "./Journal.ts"
import * as Network from "./Network.ts"
import { type Measured, median, type Outcome } from "./Report.ts"
import * as Watch from "./Watch.ts"
import * as Writers from "./Writers.ts"

/** What a fault works on. */
export class Driver extends Context.Service<Driver, {
  readonly harness: Harness.Harness["Service"]
  readonly fleet: Fleet.Fleet
  readonly network: Network.Network
  readonly watch: Watch.Watch
  /** The planned length of the run. */
  readonly minutes: number
  /** The server of this run, which a fault may stop and start. */
  readonly server: EmbeddedPostgres.Options
  /** A superuser connection that bypasses the network between workers and server. */
  readonly admin: PgClient.PgClient
  readonly settings: typeof settings
  /** Writes a line to the run's log. */
  readonly say: (text: string) => Effect.Effect<void>
  /**
   * Waits until the condition holds; returns the rows and how long it took. Returns undefined and records a violation
   * if it does not hold in time.
   */
  readonly awaitRows: (
    what: string,
    withinMillis: number,
    holds: (rows: Harness.Rows) => boolean
  ) => Effect.Effect<{ readonly rows: Harness.Rows; readonly millis: number } | undefined>
}>()("pupsourcing-orchestrator/test/faults/driver/Driver") {}

/** Settings of the workers: short enough for many faults a minute, and long enough for two busy cores. */
export const settings = {
  heartbeatInterval: 500,
  staleWorkerTimeout: 2_500,
  coordinationTimeout: 20_000,
  drainTimeout: 2_000,
  pollInterval: 500,
  batchSize: 50
} as const

export const projections = ["journal", "per_aggregate", "shared_totals"] as const

const places = 6
const fewest = 3

const recoversWithin = 30_000
/** The part of the run without faults, for comparison. */
const calmShare = 0.1
const calmAtMostMillis = 15_000
/** The probability that a turn injects two faults at once. */
const together = 0.2
const lookMillis = 20
const answerMillis = 2_000

export interface Options {
  readonly minutes: number
  readonly seed: number
  readonly faults: ReadonlyArray<Fault>
  readonly server: EmbeddedPostgres.Options
}

const mayCoincide = (one: Fault, other: Fault): boolean =>
  one.alone !== true && other.alone !== true && (one.on === undefined || one.on !== other.on)

/** With fewer values than this, a median is not meaningful. */
const fewestValues = 3

/** Faults whose median takeover time was too long. A single value depends on the machine as much as on the library. */
const slow = (
  faults: ReadonlyArray<Fault>,
  measured: ReadonlyArray<Measured>,
  slowness: number
): ReadonlyArray<string> =>
  faults.flatMap(({ kind, takenWithin: onReference }) => {
    const takenWithin = onReference === undefined ? undefined : onReference * slowness
    const values = measured.filter((one) => one.kind === kind && one.alone).map(({ taken }) => taken)
    const typical = median(values)
    return takenWithin === undefined || typical === undefined || values.length < fewestValues || typical <= takenWithin
      ? []
      : [`P5: after ${kind} the living held all after ${Math.round(typical)} ms, not within ${takenWithin}`]
  })

export const run = Effect.fnUntraced(function*(options: Options) {
  const harness = yield* Harness.Harness
  const admin = (yield* SqlClient.SqlClient) as PgClient.PgClient
  const watch = yield* Watch.start(harness)
  const network = yield* Network.make(harness.url)
  const fleet = yield* Fleet.make({
    harness,
    places: Array.from({ length: places }, (_, index) => ({
      projections,
      settings,
      ...network.ways[index % network.ways.length]?.options
    }))
  })
  const slowness = yield* measure(harness.url)
  const begun = yield* watch.millis
  const measured: Array<Measured> = []
  const say = (text: string) =>
    Effect.flatMap(watch.millis, (now) => Console.log(`${((now - begun) / 1000).toFixed(1).padStart(7)} s  ${text}`))

  /** Repeats the query until it returns an answer; an unreachable server returns none. */
  const awaitAnswer = Effect.fnUntraced(function*<A>(
    what: string,
    withinOnReference: number,
    ask: Effect.Effect<Option.Option<A>, unknown>
  ) {
    const within = withinOnReference * slowness
    const from = yield* watch.millis
    while (true) {
      const answer = yield* ask.pipe(Effect.timeout(answerMillis), Effect.orElseSucceed(Option.none))
      const millis = (yield* watch.millis) - from
      if (Option.isSome(answer)) return { answer: answer.value, millis }
      if (millis > within) {
        watch.violate(`P5: not within ${within} ms: ${what}`)
        yield* explain(what)
        return undefined
      }
      yield* Effect.sleep(lookMillis)
    }
  })

  const explain = Effect.fnUntraced(function*(what: string) {
    const rows = Option.getOrUndefined(yield* watch.look)
    yield* say(
      [
        `not in time: ${what}`,
        rows === undefined ? "the server does not answer" : Harness.describe(rows),
        ...fleet.members().map(({ worker, workerId }) =>
          `${workerId} (${worker.pid}) printed last:\n${worker.output().trimEnd().split("\n").slice(-25).join("\n")}`
        )
      ].join("\n")
    )
  })

  const awaitRows = (what: string, within: number, holds: (rows: Harness.Rows) => boolean) =>
    Effect.map(
      awaitAnswer(what, within, Effect.map(watch.look, Option.filter(holds))),
      (found) => found === undefined ? undefined : { rows: found.answer, millis: found.millis }
    )

  const driver = Driver.of({
    harness,
    fleet,
    network,
    watch,
    minutes: options.minutes,
    server: options.server,
    admin,
    settings,
    say,
    awaitRows
  })

  const ids = () => fleet.members().map(({ workerId }) => workerId)
  const heldByTheLiving = (rows: Harness.Rows) =>
    rows.checkpoints.every(({ workerId }) => workerId !== null && ids().includes(workerId))
  const settled = (rows: Harness.Rows) => Harness.sharedBy(ids())(rows)
  const calm = Effect.gen(function*() {
    yield* fleet.restore
    return yield* awaitRows("the workers share the work", recoversWithin * 2, settled)
  })

  /** Injects the faults, and waits until everything has recovered. */
  const turn = Effect.fnUntraced(function*(faults: ReadonlyArray<Fault>, before: Harness.Rows) {
    const name = faults.map(({ kind }) => kind).join(" + ")
    yield* say(name)
    const newest = yield* Journal.newest
    const exits = yield* Effect.forEach(faults, (fault) => Effect.exit(Effect.scoped(fault.inject)), {
      concurrency: "unbounded"
    })
    for (const [index, exit] of exits.entries()) {
      if (Exit.isFailure(exit)) watch.violate(`${faults[index]?.kind} failed: ${Cause.pretty(exit.cause)}`)
    }
    if (fleet.members().length === 0) yield* fleet.restore
    const bound = Math.max(...faults.map((fault) => fault.recoversWithin ?? recoversWithin))
    const taken = yield* awaitRows(`after ${name} the living hold all`, bound, heldByTheLiving)
    if (taken === undefined) return undefined
    const positions = { after: Watch.handled(before) ?? 0n, upTo: taken.rows.head }
    const recovered = yield* awaitAnswer(
      `after ${name} all is handled`,
      bound,
      Effect.map(
        Effect.provideService(Journal.isComplete(positions), SqlClient.SqlClient, admin),
        (complete) => complete ? Option.some(true) : Option.none()
      )
    )
    if (recovered === undefined) return undefined
    const wait = yield* Journal.longestWait(newest)
    for (const { kind } of faults) {
      measured.push({
        kind,
        alone: faults.length === 1,
        taken: taken.millis,
        recovered: taken.millis + recovered.millis,
        wait
      })
    }
    const after = yield* calm
    if (after === undefined) return undefined
    if (faults.length === 1) {
      for (const fault of faults) {
        for (const text of fault.judge?.({ before, after: after.rows }) ?? []) {
          watch.violate(`${fault.kind}: ${text}`)
        }
      }
    }
    return after.rows
  })

  /** The number of events handled so far. */
  const mark = Effect.all({ events: Journal.lines, at: watch.millis })

  return yield* Effect.gen(function*() {
    const unavailable: Record<string, string> = {}
    const possible: Array<Fault> = []
    for (const fault of options.faults) {
      const why = fault.unavailable === undefined ? undefined : yield* fault.unavailable
      if (why === undefined) possible.push(fault)
      else unavailable[fault.kind] = why
    }

    yield* fleet.restore
    yield* Writers.start(harness)
    let rows = (yield* calm)?.rows
    const calmMillis = Math.min(calmAtMostMillis, options.minutes * 60_000 * calmShare)
    const calmFrom = yield* mark
    yield* Effect.sleep(calmMillis)
    const faultsFrom = yield* mark

    let deck: Array<Fault> = []
    const until = calmFrom.at + options.minutes * 60_000
    while (rows !== undefined && watch.violations.length === 0 && (yield* watch.millis) < until) {
      if (deck.length === 0) deck = yield* Random.shuffle(possible)
      fleet.resize(yield* Random.nextIntBetween(fewest, places))
      const drawn = [deck.pop()!]
      const other = deck.at(-1)
      if (other !== undefined && mayCoincide(drawn[0]!, other) && (yield* Random.next) < together) {
        drawn.push(deck.pop()!)
      }
      rows = yield* turn(drawn, rows)
    }
    const faultsUntil = yield* mark
    yield* say("no more faults; writers stop")
    const rate = (from: typeof calmFrom, to: typeof calmFrom) => (to.events - from.events) / ((to.at - from.at) / 1000)
    return {
      unavailable,
      missed: possible.filter(({ kind }) => !measured.some((one) => one.kind === kind)).map(({ kind }) => kind),
      before: rate(calmFrom, faultsFrom),
      under: rate(faultsFrom, faultsUntil)
    }
  }).pipe(
    // Writers end here.
    Effect.scoped,
    Effect.provideService(Driver, driver),
    Effect.flatMap(Effect.fnUntraced(function*(course) {
      yield* Effect.repeat(Writers.tidy, Schedule.spaced("1 second")).pipe(Effect.forkScoped)
      // How long a slow projection needs for its backlog depends on the machine, so only progress is required.
      let furthest = 0n
      let end: { readonly rows: Harness.Rows } | undefined
      do {
        const before = furthest
        end = yield* awaitRows(
          "all that was appended is handled, or some of it",
          60_000,
          (rows) => {
            furthest = rows.checkpoints.reduce(
              (sum, { position, range: { end, start } }) => sum + position * BigInt(end - start),
              0n
            )
            return furthest > before || (Watch.handled(rows) ?? 0n) >= rows.head
          }
        )
      } while (end !== undefined && (Watch.handled(end.rows) ?? 0n) < end.rows.head)
      const differences = yield* harness.differences([
        // Deployments may have added projections.
        ...new Set([...projections, ...end?.rows.checkpoints.map(({ projection }) => projection) ?? []])
      ])
      for (const difference of differences.slice(0, 20)) watch.violate(difference)
      const count = (what: string) => differences.filter((text) => text.startsWith(`journal ${what}`)).length
      for (const text of yield* fleet.stopAll) watch.violate(text)
      for (const text of slow(options.faults, measured, slowness)) watch.violate(text)
      for (const text of fleet.ended) watch.violate(`P5: ${text}`)
      const [numbers] = yield* admin<{ readonly events: bigint; readonly generations: bigint }>`
        SELECT (SELECT count(*) FROM events) AS events,
          (SELECT max(generation_id) FROM orchestrator_generations) AS generations`
      const outcome: Outcome = {
        seed: options.seed,
        minutes: options.minutes,
        ...course,
        violations: watch.violations,
        measured,
        workersStarted: fleet.started(),
        generations: Number(numbers?.generations ?? 0),
        events: end === undefined ? 0 : Number(numbers?.events ?? 0),
        lost: count("lost"),
        doubled: count("doubled"),
        reordered: count("reordered")
      }
      return outcome
    })),
    Effect.scoped,
    Random.withSeed(options.seed)
  )
})
