/**
 * The database is unreachable for longer than `staleWorkerTimeout`.
 *
 * @module-tag long
 */
import { assert, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import * as EmbeddedPostgres from "../../src/testing/EmbeddedPostgres.ts"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import * as Harness from "./Harness.ts"

/** Its own server: stopping the shared one would affect every other test. */
const server = { name: "test-outage" }

const Live = Layer.unwrap(
  Effect.map(EmbeddedPostgres.acquire(server), ({ url }) => Harness.layerWith({ serverUrl: url }))
)

it.live("a database outage evicts no worker and loses nothing", () =>
  Effect.gen(function*() {
    const harness = yield* Harness.Harness
    const staleWorkerTimeout = TimeLimits.scaledMillis(1500)
    const settings = { heartbeatInterval: staleWorkerTimeout / 3, staleWorkerTimeout }
    const workers = yield* Effect.forEach(["a", "b", "c"], (id) => harness.start(id, { settings, delayMillis: 1 }), {
      concurrency: "unbounded"
    })
    const before = yield* harness.waitUntil("a, b and c share the work", Harness.sharedBy(["a", "b", "c"]))
    yield* harness.append(800)

    yield* EmbeddedPostgres.stop(server)
    // Longer than `staleWorkerTimeout`: by the database's clock each worker is overdue afterwards.
    yield* Effect.sleep(staleWorkerTimeout + 1000)
    yield* EmbeddedPostgres.ensure(server)

    yield* harness.append(200)
    const after = yield* harness.quiesce()
    const identity = (state: Harness.State) => ({
      generations: state.generations.map(({ generationId }) => generationId),
      workers: state.workers.map(({ incarnation, workerId }) => ({ workerId, incarnation }))
    })
    assert.deepStrictEqual(identity(after), identity(before.state))
    assert.isTrue(Harness.sharedBy(["a", "b", "c"])(after))
    for (const worker of workers) assert.deepStrictEqual(yield* worker.stop, { code: 0, signal: null })
  }).pipe(Effect.scoped, Effect.provide(Live)))
