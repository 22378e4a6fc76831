/** The log lines and span events that docs/metrics.md lists, compared with what a worker logs. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import { examples } from "../../../scripts/ActivityExamples.ts"
import * as LogCalls from "../../../scripts/LogCalls.ts"
import * as LogLinesSection from "../../../scripts/LogLinesSection.ts"
import * as Telemetry from "../../../src/services/telemetry/Telemetry.ts"
import { fail, failingHeartbeats, test } from "../Workers.ts"
import { event, logs, pass } from "../World.ts"

it.effect("every line of the page is logged when its activity is recorded, and no other", () =>
  Effect.gen(function*() {
    for (const [tag, activities] of Object.entries(examples)) {
      const { layer, lines } = logs()
      for (const activity of activities) {
        assert.strictEqual(activity._tag, tag)
        yield* Telemetry.emit("main", activity).pipe(Effect.provide(layer))
      }
      const documented = LogLinesSection.lines.filter((line) => line.activity === tag)
      assert.sameMembers(
        [...new Set(lines.map(({ level, text }) => `${level}: ${text}`))],
        documented.map(({ level, text }) => `${level}: ${text}`)
      )
    }
  }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))

it("finds log calls with their texts", () => {
  const found = LogCalls.find()
  const of = (module: string) => found.filter((call) => call.module === module).map(({ text }) => text)
  assert.deepStrictEqual(of("services/telemetry/RetryLog.ts"), [
    "… failed and is retried: …",
    "Still failing after … and … attempts: …. Last failure: …",
    "Recovered after … and … failed attempts: … … again."
  ])
  assert.include(of("services/worker/Ranges.ts")[0], "The runner of projection \"…\" died and is restarted: …")
  assert.deepStrictEqual(of("services/Orchestrator.ts"), ["The orchestrator died", "failure.error.message"])
})

/** The text with a mark in place of each value. */
const shapeOf = (text: string): string =>
  text.replaceAll(/"[^"]*"|\b(?:worker-\d+|user-\w+|e\d+|[0-9a-f-]{36}|\d+)\b/g, "#")

const documented = LogLinesSection.lines.map((line) => ({ ...line, shape: shapeOf(line.text).slice(0, 40) }))

/** Whether the text is a line of the page's second table. */
const isOther = (text: string): boolean =>
  // Its text is not where it is logged.
  text.startsWith("Projection \"users\" is halted in range") ||
  LogCalls.find().some(({ isLiteral, text: pattern }) => {
    const [first, ...rest] = pattern.split("…")
    let at = first!.length
    return isLiteral && text.startsWith(first!) && rest.every((part) => {
      const found = text.indexOf(part, at)
      at = found + part.length
      return found >= 0
    })
  })

test(
  "the page has every line that workers log, with its annotations",
  function*({ appendAll, counting, events, start }) {
    const failing = { now: false }
    const broken = counting({ name: "users", before: ({ eventType }) => eventType === "Bad" ? fail() : Effect.void })
    const first = yield* start({
      workerId: "worker-1",
      projections: [counting(), broken],
      membership: failingHeartbeats(failing)
    })
    yield* appendAll
    yield* events.append([event("user-9", { eventType: "Bad" })])
    yield* pass(1000)
    const second = yield* start({ workerId: "worker-2", projections: [counting(), broken] })
    yield* pass(2000)
    failing.now = true
    yield* pass(26_000, 250)
    failing.now = false
    yield* pass(5000)
    yield* second.stop
    yield* pass(2000)
    yield* first.stop
    yield* pass(1000)

    const seen = new Set<string>()
    for (const { annotations, level, text } of [...first.lines, ...second.lines]) {
      const shape = shapeOf(text)
      const line = documented.find((line) => shape.startsWith(line.shape) && line.level === level)
      assert.isTrue(line !== undefined || isOther(text), text)
      if (line === undefined) continue
      seen.add(line.activity)
      const promised = LogLinesSection.annotations[line.scope]
      const before = promised.filter((name) => name !== "generation")
      assert.sameMembers(Object.keys(annotations), [...("generation" in annotations ? promised : before)], text)
      if (line.activity === "AssignmentReached") assert.property(annotations, "generation")
    }
    assert.sameMembers([...seen], [
      "WorkerStarting",
      "WorkerRegistered",
      "GenerationChanged",
      "AssignmentReached",
      "RangeHalted",
      "Suspended",
      "Resumed",
      "WorkerLeaving",
      "WorkerStopped"
    ])
  }
)
