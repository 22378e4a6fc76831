/** What a projection of a rare event type costs that has to pass over millions of other events, with and without an index on the type. */
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import * as Benchmark from "../Benchmark.ts"
import * as Contender from "../Contender.ts"
import * as Events from "../Events.ts"
import * as Database from "../hosts/Database.ts"
import { atMost, median, medianRatio, shown } from "../Measure.ts"
import * as Rounds from "../Rounds.ts"

const events = 10_000_000
const rarity = 10_000
/** No statement may run longer, because all ranges of a process read on one connection. */
const longestMillis = 1000

/** The index that the migrations create. */
const index = "idx_events_event_type"
const definition = "(event_type, global_position)"

interface Sample {
  readonly seconds: number
  readonly longest: Effect.Success<typeof Database.longestStatement>
}

/** Catches up with a new projection, after a checkpoint, so that writing the index and the events is not part of it. */
const catchUp = Effect.fnUntraced(function*(worker: Contender.Contender, replicaSet: string) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`CHECKPOINT`
  yield* Database.resetStatements
  const { seconds } = yield* worker.call("catchUp", { replicaSet, handler: "upsertBatch", eventTypes: ["Rare"] })
  const sample: Sample = { seconds, longest: yield* Database.longestStatement }
  yield* Events.checkCounts(replicaSet, events / rarity)
  return sample
})

const measure = Effect.gen(function*() {
  const { rounds } = yield* Benchmark.Target
  const sql = yield* SqlClient.SqlClient
  yield* Database.countStatements
  yield* Events.createCounts
  yield* Events.fillMany(events, { rarity })
  const worker = yield* Contender.start("contenders/worker.ts")
  const [indexed, without] = yield* Rounds.alternate(rounds, [
    (round) =>
      sql.unsafe(`CREATE INDEX IF NOT EXISTS ${index} ON events ${definition}`).pipe(
        Effect.andThen(catchUp(worker, `indexed_${round}`))
      ),
    (round) => Effect.andThen(sql`DROP INDEX ${sql(index)}`, catchUp(worker, `without_${round}`))
  ])
  return { indexed: indexed!, without: without! }
})

type Samples = ReadonlyArray<Sample>

const durations = (samples: Samples) => samples.map(({ seconds }) => seconds)

const longest = (samples: Samples) =>
  samples.map(({ longest }) => longest).reduce((a, b) => b.millis > a.millis ? b : a)

const row = (name: string, samples: Samples) => {
  const seconds = median(durations(samples))
  const { millis, text } = longest(samples)
  const start = text.replaceAll(/\s+/g, " ").trim().slice(0, 40)
  return [name, seconds.toFixed(2), Math.round(events / seconds), millis.toFixed(0), `\`${start}\``]
}

const evaluate = ({ indexed, without }: Effect.Success<typeof measure>): Benchmark.Result => ({
  text:
    `One worker catches up with a projection of a type that one in ${rarity} of ${events} events has. Each round has a new projection, ` +
    `and checks that it has handled every event of the type. Medians of alternating rounds. The index is \`${index}\` on ` +
    `\`${definition}\`, which the migrations create; it is dropped and created again for each round. The longest statement is that of all ` +
    "rounds, from `pg_stat_statements`, which the server must have preloaded.",
  measures: [
    atMost("longest statement with the index", longest(indexed).millis, "ms", longestMillis),
    atMost("longest statement without the index", longest(without).millis, "ms", longestMillis),
    shown("duration with the index, relative to without", medianRatio(durations(indexed), durations(without)), "ratio"),
    shown("duration without the index", median(durations(without)), "s")
  ],
  tables: [{
    title: "Catch-up",
    text: "Events per second include the events of other types, which the worker passes over.",
    header: ["", "seconds", "events/s", "longest statement in ms", "which begins with"],
    rows: [row("with the index", indexed), row("without the index", without)]
  }]
})

export const rareType = Benchmark.make({
  name: "rare-type",
  title: "A rare event type",
  summary:
    "How long a projection of one in 10,000 of 10 million events takes to catch up, with and without an index on the type, and its longest statement.",
  isLong: true,
  run: Effect.map(measure, evaluate)
})
