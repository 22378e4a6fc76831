/** What operators do to a fleet: deploy another version, and scale. */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { SqlClient } from "effect/sql"
import * as Harness from "../../Harness.ts"
import * as Moves from "../../Moves.ts"
import { Driver, projections, settings } from "../Driver.ts"
import type { Fault } from "../Fault.ts"
import type { Member } from "../Fleet.ts"

/**
 * The versions after the first one. Every version carries the projections that another one added, otherwise their
 * ranges would have no owner. `staleWorkerTimeout` stays the same, because other faults measure by it.
 */
const versions: ReadonlyArray<Harness.WorkerOptions> = [
  {
    projections: [...projections, "journal/2"],
    settings: { ...settings, heartbeatInterval: 300, pollInterval: 200, batchSize: 7 }
  },
  {
    projections: ["journal/2", ...projections],
    settings: { ...settings, heartbeatInterval: 800, drainTimeout: 500, batchSize: 200 }
  }
]

/** A hash may move once when the old worker leaves and once when the new one joins. */
const movesAtMost = 2

const stop = Effect.fnUntraced(function*({ worker, workerId }: Member) {
  const { watch } = yield* Driver
  const exit = yield* worker.stop
  if (exit.code !== 0) watch.violate(`P5: ${workerId} ended with ${exit.signal ?? exit.code} when it was replaced`)
})

const shared = Effect.gen(function*() {
  const { awaitRows, fleet } = yield* Driver
  const ids = fleet.members().map(({ workerId }) => workerId)
  yield* awaitRows(`${ids.join(", ")} share the work`, 30_000, Harness.sharedBy(ids))
})

/** As a `Deployment` does that waits until each pod is ready. */
const replace = Effect.fnUntraced(function*(member: Member) {
  const { fleet } = yield* Driver
  fleet.forget(member)
  yield* stop(member)
  yield* fleet.restore
  yield* shared
})

const rolling: Fault = {
  kind: "rolling deploy",
  alone: true,
  inject: Effect.gen(function*() {
    const { admin, fleet, watch } = yield* Driver
    const onAdmin = Effect.provideService(SqlClient.SqlClient, admin)
    fleet.resize(fleet.members().length)
    fleet.deploy(versions[yield* Random.nextIntBetween(0, versions.length - 1)]!)
    for (const member of yield* fleet.pick(fleet.members().length)) {
      yield* onAdmin(Moves.record)
      yield* replace(member)
      for (const text of Moves.above(movesAtMost, yield* onAdmin(Moves.holdings))) {
        watch.violate(`${text} when ${member.workerId} was replaced`)
      }
    }
  })
}

const scaleTo = Effect.fnUntraced(function*(size: number) {
  const { fleet } = yield* Driver
  fleet.resize(size)
  yield* fleet.restore
  const surplus = yield* fleet.pick(Math.max(0, fleet.members().length - size))
  for (const member of surplus) fleet.forget(member)
  yield* Effect.forEach(surplus, stop, { concurrency: "unbounded", discard: true })
})

const scaled: Fault = {
  kind: "scaled to three, six and three",
  alone: true,
  inject: Effect.gen(function*() {
    yield* scaleTo(3)
    yield* Effect.forEach([4, 5, 6], (size) => Effect.andThen(scaleTo(size), Effect.sleep("200 millis")))
    // A worker that is still starting cannot handle the stop signal yet.
    yield* shared
    yield* Effect.forEach([5, 4, 3], scaleTo)
  })
}

export const deploy: ReadonlyArray<Fault> = [rolling, scaled]
