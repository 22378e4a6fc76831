/** The annotations of all lines that two workers log, from their start to their end. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as References from "effect/References"
import { unavailable } from "../../support/StoreErrors.ts"
import { test, upper } from "../Workers.ts"
import { Broken, event, type Line, pass } from "../World.ts"

/** The text of a line with its annotations, for messages of failed assertions. */
const show = ({ annotations, text }: Line) => `${text} ${JSON.stringify(annotations)}`

test(
  "every line has the replica set and the worker, and once known the generation; lines of runners also their range",
  function*({ appendAll, counting, events, start }) {
    let isUnreachable = false
    const failing = counting({
      before: ({ aggregateId, aggregateVersion }) =>
        Effect.andThen(
          Effect.logInfo("a line of the handler"),
          aggregateId === upper && aggregateVersion === 2n ? Effect.fail(new Broken({ message: "no" })) : Effect.void
        )
    })
    const startWorker = (workerId: string) =>
      start({
        workerId,
        projections: [failing],
        membership: ({ heartbeat }) => ({
          heartbeat: (...all) => isUnreachable ? Effect.fail(unavailable("connection lost")) : heartbeat(...all)
        })
      })
    const first = yield* startWorker("worker-1")
    yield* pass(1_000)
    const second = yield* startWorker("worker-2")
    yield* pass(1_000)
    yield* appendAll
    yield* events.append([event(upper)])
    yield* pass(1_000)
    // Long enough to be suspended, and to log the retries.
    isUnreachable = true
    yield* pass(26_000, 250)
    isUnreachable = false
    yield* pass(5_000, 250)
    yield* second.stop
    yield* pass(3_000)
    yield* first.stop
    yield* pass(3_000)

    for (const [worker, { lines }] of [["worker-1", first], ["worker-2", second]] as const) {
      const generationKnown = lines.findIndex(({ text }) => text.startsWith("Assigned partition"))
      assert.isAbove(generationKnown, 0)
      for (const [index, line] of lines.entries()) {
        assert.deepInclude(line.annotations, { replica_set: "main", worker }, show(line))
        if (index >= generationKnown) assert.match(String(line.annotations["generation"]), /^\d+$/, show(line))
        else assert.notProperty(line.annotations, "generation", show(line))
        if (/^a line of the handler|halted/.test(line.text)) {
          assert.strictEqual(line.annotations["projection"], "counts", show(line))
          assert.match(String(line.annotations["range"]), /^\[\d/, show(line))
        }
      }
      const texts = lines.map(({ text }) => text).join("\n")
      for (const part of ["Starting orchestrator", "could not renew", "failed and is retried", "Shutdown complete"]) {
        assert.include(texts, part)
      }
    }
    const all = [...first.lines, ...second.lines]
    assert.isTrue(all.some(({ level, text }) => level === "Error" && text.includes("Broken: no")))
    const switches = first.lines.filter(({ text }) => text.startsWith("Generation ")).map((
      { annotations, text }
    ) => [text.split(" ")[1], annotations["generation"]])
    assert.isAtLeast(switches.length, 3)
    for (const [named, annotated] of switches) assert.strictEqual(annotated, named)
  }
)

test("the caller's annotations stay, and its failure line has those of the worker", function*({ counting, start }) {
  const worker = yield* start({ workerId: "worker-1", projections: [counting({ startFrom: 9n })] }).pipe(
    Effect.provideService(References.CurrentLogAnnotations, { app: "shop" })
  )
  yield* Fiber.await(worker.fiber)
  const failure = worker.lines.find(({ level }) => level === "Error")
  assert.deepInclude(failure?.annotations, { app: "shop", replica_set: "main", worker: "worker-1" })
})
