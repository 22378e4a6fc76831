/**
 * Five chaos scenarios under a constant load: a time without a fault, the fault, and the time after it.
 *
 * The load is an open loop: appends that are due while the server is down are sent when it is up again.
 */
import { Console, Effect, Fiber, Redacted } from "effect"
import { SqlClient } from "effect/sql"
import * as EmbeddedPostgres from "../../src/testing/EmbeddedPostgres.ts"
import * as Benchmark from "../Benchmark.ts"
import * as Chaos from "../hosts/Chaos.ts"
import * as Database from "../hosts/Database.ts"
import * as Delays from "../hosts/Delays.ts"
import * as Hosts from "../hosts/Hosts.ts"
import { now } from "../hosts/Messages.ts"
import * as Recovery from "../hosts/Recovery.ts"
import { atLeast, atMost, type Measure, shown } from "../Measure.ts"
import * as Server from "../Server.ts"

const load = { rate: 200, writers: 8, aggregates: 1000 }
const workers = 4
const warmUp = 5
const baseline = 20
const recovery = 20

/** The events that the read model counts too often or too rarely. */
const wronglyHandled = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ readonly count: number }>`
    SELECT coalesce(sum(abs(coalesce(a.events, 0) - coalesce(r.events, 0))), 0)::int4 AS count
    FROM (SELECT aggregate_id AS id, count(*) AS events FROM events GROUP BY aggregate_id) AS a
    FULL JOIN (SELECT id, events FROM read_model WHERE projection = ${Chaos.set}) AS r USING (id)`
  return row!.count
})

const runScenario = Effect.fnUntraced(function*(scenario: Chaos.Scenario) {
  const { url } = yield* Benchmark.Target
  yield* Database.createReadModel
  const hosts = Hosts.make(url)
  const writers = yield* hosts.spawn({ connections: load.writers })
  const fleet = yield* Chaos.start(hosts, workers)
  const duration = warmUp + baseline + scenario.seconds + recovery
  const writing = yield* Effect.forkChild(writers.append({ ...load, seconds: duration }))
  yield* Effect.sleep(`${warmUp} seconds`)
  const before = now()
  yield* Effect.sleep(`${baseline} seconds`)
  const from = now()
  const { endedAt, what } = yield* scenario.inject(fleet)
  const injectedAt = now()
  const appended = yield* Fiber.join(writing)
  const until = now()
  yield* hosts.waitUntil("no worker has failed", () => true)
  const delays = yield* Delays.all(hosts, appended, Chaos.set)
  const appends = appended.due.map((due, index) => ({ due, millis: appended.answered[index]! - due }))
  // The fault delays the last events before it, too.
  const undisturbed = delays.filter(({ due }) => due >= before && due < from - 1000)
  const normal = Math.max(...undisturbed.map(({ millis }) => millis))
  return {
    name: scenario.name,
    what,
    normal,
    kept: Recovery.throughputKept(delays, from, until),
    keptDuring: Recovery.throughputKept(delays, from, injectedAt),
    recovery: Recovery.recoveryTime(delays, endedAt, normal),
    appendRecovery: Recovery.recoveryTime(appends, endedAt, normal),
    longest: Math.max(...delays.filter(({ due }) => due >= from).map(({ millis }) => millis)),
    events: delays.length,
    wrong: yield* wronglyHandled
  }
})

type Survived = Effect.Success<ReturnType<typeof runScenario>>

const measure = Effect.gen(function*() {
  const { rounds } = yield* Benchmark.Target
  const { log, pid, url } = yield* EmbeddedPostgres.acquire(Chaos.server)
  const own: Server.Server = { url: Redacted.make(url), embedded: { log, pid } }
  return yield* Effect.forEach(Chaos.scenarios, (scenario) =>
    Effect.andThen(
      Console.error(`  ${scenario.name} …`),
      Server.runIn(own, { name: scenario.name, run: runScenario(scenario) }, rounds)
    ))
})

const evaluate = (survived: ReadonlyArray<Survived>): Benchmark.Result => ({
  text:
    `${workers} workers in processes of their own at default settings, whose handler writes one upsert per event, under ${load.rate} ` +
    `appends per second, open loop. The server is one of its own, with \`max_connections = ${Chaos.maxConnections}\`. After ${baseline} s ` +
    `without a fault, each scenario lasts until ${recovery} s after its fault. The throughput kept is the part of the events due in that time ` +
    "that is committed at its end. The recovery time lasts from the last " +
    "disturbance (the last kill, the answer of the restarted server, the release of the connections) until no event waits longer than the " +
    "longest delay before the fault, for at least a second.",
  measures: survived.flatMap(({ kept, name, recovery, wrong }): ReadonlyArray<Measure> => [
    atLeast(`${name}: throughput kept`, kept, "ratio", 0.95),
    shown(`${name}: recovery time`, recovery, "ms"),
    atMost(`${name}: events not handled exactly once`, wrong, "events", 0)
  ]),
  tables: [{
    title: "Scenarios",
    text: "Delays in milliseconds, from when an append was due to the commit of the read model.",
    header: [
      "",
      "fault",
      "events",
      "throughput kept",
      "during the fault",
      "recovery",
      "recovery of the appends alone",
      "longest delay before",
      "longest delay"
    ],
    rows: survived.map(({ appendRecovery, events, kept, keptDuring, longest, name, normal, recovery, what }) => [
      name,
      what,
      events,
      kept.toFixed(3),
      keptDuring.toFixed(3),
      Math.round(recovery),
      Math.round(appendRecovery),
      Math.round(normal),
      Math.round(longest)
    ])
  }]
})

export const chaos = Benchmark.make({
  name: "chaos",
  title: "Chaos",
  summary:
    "The throughput that is kept and the time to recover in the five chaos scenarios of a benchmark of job queues.",
  isLong: true,
  run: Effect.map(measure, evaluate)
})
