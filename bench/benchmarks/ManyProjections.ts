/**
 * How long a hand-over takes with up to 1,000 projections in the replica set, and with up to 10 million handled events behind it.
 *
 * Two workers in processes of their own; one of them leaves and joins again. No events arrive meanwhile, because one event would be
 * handled by each of the projections. Pauses are measured as in `HandOver.ts`.
 */
import { Console, Effect, type Redacted } from "effect"
import * as Benchmark from "../Benchmark.ts"
import * as Events from "../Events.ts"
import * as Fleet from "../hosts/Fleet.ts"
import * as Hosts from "../hosts/Hosts.ts"
import { type Entry, now } from "../hosts/Messages.ts"
import * as Timeline from "../hosts/Timeline.ts"
import { atMost, median, medianRatio, percentile, round, shown } from "../Measure.ts"
import * as Rounds from "../Rounds.ts"
import * as Server from "../Server.ts"

const backlogs = [10_000, 10_000_000] as const
const counts = [1, 100, 1000]
const workers = 2
/** In each round, with each backlog. */
const handOvers = 3

/** The hand-overs of one round. */
type Sample = Effect.Success<ReturnType<typeof Fleet.joinAndLeave>>

interface Phase {
  readonly events: number
  readonly projections: number
  readonly samples: ReadonlyArray<Sample>
  readonly pauses: ReadonlyArray<number>
}

/** The pauses of all ranges that have moved. */
const pausesOf = (entries: ReadonlyArray<Entry>, since: number): ReadonlyArray<number> => {
  const byProjection = new Map<string, Array<Entry>>()
  for (const entry of entries) {
    if (entry.projection === undefined) continue
    const of = byProjection.get(entry.projection)
    if (of === undefined) byProjection.set(entry.projection, [entry])
    else of.push(entry)
  }
  return [...byProjection].flatMap(([projection, entries]) =>
    Timeline.gaps(entries, projection, since)
      .filter(({ after, before }) => after !== before)
      .map(({ pause }) => pause)
  )
}

/** The workers of one database, whose events they count as handled. */
const startFleet = Effect.fnUntraced(function*(url: Redacted.Redacted, projections: number) {
  const replicaSet = `set_${projections}`
  const fleet = yield* Fleet.start(Hosts.make(url), replicaSet, workers, {
    projections: Array.from({ length: projections }, (_, index) => `${replicaSet}_${index}`),
    startFrom: "now"
  })
  yield* Fleet.growTo(fleet, workers)
  // What the start has moved does not count.
  return { fleet, since: now() }
})

/** Alternates between the databases. Returns a phase for each of them. */
const measureCount = Effect.fnUntraced(function*(urls: ReadonlyArray<Redacted.Redacted>, projections: number) {
  yield* Console.error(`  ${named(projections)} …`)
  const { rounds } = yield* Benchmark.Target
  const fleets = yield* Effect.forEach(urls, (url) => startFleet(url, projections))
  const samples = yield* Rounds.alternate(
    rounds,
    fleets.map(({ fleet }) => () => Fleet.joinAndLeave(fleet, workers, handOvers))
  )
  return yield* Effect.forEach(fleets, ({ fleet, since }, index) => {
    const pauses = pausesOf(fleet.hosts.entries, since)
    // In each hand-over, a half of each projection moves, and moves back.
    const moves = projections * (rounds + 1) * handOvers * 2
    const phase: Phase = { events: backlogs[index]!, projections, samples: samples[index]!, pauses }
    return pauses.length === moves
      ? Effect.succeed(phase)
      : Effect.die(new Error(`${pauses.length} of ${moves} moves were reported`))
  })
}, Effect.scoped)

const measure = Effect.gen(function*() {
  const { url } = yield* Benchmark.Target
  const few = yield* Server.database(url, `bench_few_events_${process.pid}`)
  yield* Events.fillMany(backlogs[0]).pipe(Effect.provide(Server.client(few)))
  yield* Events.fillMany(backlogs[1])
  return yield* Effect.forEach(counts, (projections) => measureCount([few, url], projections))
})

/** A leave and a join in each round, in milliseconds. */
const durations = ({ samples }: Phase) => samples.map(({ joins, leaves }) => median(leaves) + median(joins))

const named = (projections: number) => projections === 1 ? "1 projection" : `${projections} projections`

const row = ({ events, pauses, projections, samples }: Phase) => [
  events,
  projections,
  round(median(samples.flatMap(({ joins }) => joins))),
  round(median(samples.flatMap(({ leaves }) => leaves))),
  pauses.length,
  ...[0.5, 0.99, 1].map((part) => round(percentile(pauses, part)))
]

const evaluate = (phases: ReadonlyArray<ReadonlyArray<Phase>>): Benchmark.Result => {
  const few = phases.map((both) => both[0]!)
  const many = phases.map((both) => both[1]!)
  return {
    text:
      `${workers} workers in as many processes for each of two databases, one with ${
        backlogs[0]
      } events, the other with ${backlogs[1]}; all ` +
      `events are handled. In each round, one worker leaves and joins again, ${handOvers} times in each database. A hand-over is a leave and ` +
      "a join: the sum of their medians in a round. Medians of alternating rounds.",
    measures: [
      ...counts.map((count, index) =>
        atMost(
          `hand-over of ${named(count)} with ${backlogs[1]} events, relative to ${backlogs[0]}`,
          medianRatio(durations(many[index]!), durations(few[index]!)),
          "ratio",
          1.25
        )
      ),
      ...many.map((phase) => shown(`hand-over of ${named(phase.projections)}`, median(durations(phase)), "ms"))
    ],
    tables: [{
      title: "Hand-overs",
      text:
        "Milliseconds. A join lasts from the command to start the worker, a leave from the command to stop it, until every worker works " +
        "on all of its new assignment. A pause is that of a range that moves.",
      header: ["events", "projections", "join p50", "leave p50", "pauses", "pause p50", "pause p99", "pause max"],
      rows: phases.flat().map(row)
    }],
    plot: {
      kind: "bars",
      title: "Hand-over with many projections",
      unit: "ms for a leave and a join",
      axis: "projections",
      labels: counts.map(String),
      series: [few, many].map((phases, index) => ({
        name: `${backlogs[index]} events`,
        values: phases.map((phase) => median(durations(phase)))
      }))
    }
  }
}

export const manyProjections = Benchmark.make({
  name: "many-projections",
  title: "Hand-over with many projections",
  summary:
    "How long a worker needs to leave and to join with up to 1,000 projections, and with up to 10 million handled events behind.",
  isLong: true,
  run: Effect.map(measure, evaluate)
})
