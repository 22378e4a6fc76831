/** Workers of the conformance suites: registered, and deciding one after another. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { Held } from "../../src/schema/Checkpoint.ts"
import * as EventFilter from "../../src/schema/EventFilter.ts"
import type { Carried, Request } from "../../src/schema/Plan.ts"
import * as Plan from "../../src/schema/Plan.ts"
import type { LivenessRules, Registration } from "../../src/schema/Worker.ts"
import { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import { CoordinationStore } from "../../src/services/CoordinationStore.ts"
import { Membership } from "../../src/services/Membership.ts"
import { patient, unique } from "./Suite.ts"

/** A projection of a worker: without a filter, from the beginning. */
export const carried = (name: string, rest?: Partial<Carried>): Carried => ({
  name,
  filter: EventFilter.canonical({}),
  startPosition: 0n,
  ...rest
})

/** A registered worker and its projections. */
export interface Member {
  readonly registration: Registration
  readonly projections: ReadonlyArray<Carried>
}

/** Registers a worker, by default under rules that evict no worker. */
export const join = Effect.fnUntraced(function*(
  replicaSet: string,
  workerId: string,
  projections: ReadonlyArray<Carried | string>,
  rules: LivenessRules = patient
) {
  const carries = projections.map((each) => typeof each === "string" ? carried(each) : each)
  const registration = yield* (yield* Membership).join({
    replicaSet,
    workerId,
    projections: carries.map(({ name }) => name),
    rules
  })
  return { registration, projections: carries } satisfies Member
})

export const request = (member: Member, rest?: Partial<Request>): Request => ({
  ...member,
  activeKeys: new Set(),
  leaving: false,
  rules: patient,
  ...rest
})

export const preview = Effect.fnUntraced(function*(member: Member, rest?: Partial<Request>) {
  return yield* (yield* CoordinationStore).preview(request(member, rest))
})

export const decide = Effect.fnUntraced(
  function*(member: Member, rest?: Partial<Request>, previewed?: Plan.Plan) {
    return yield* (yield* CoordinationStore).apply(request(member, rest), previewed)
  }
)

/** The rows of a projection, in the order of their ranges. */
export const rowsOf = Effect.fnUntraced(function*(projection: string) {
  return yield* (yield* CheckpointStore).rows(projection)
})

/** Lets the workers decide in turn until each owns exactly its shares. */
export const converge = Effect.fnUntraced(function*(members: ReadonlyArray<Member>, rules: LivenessRules = patient) {
  for (let round = 0; round < 10; round++) {
    const decisions = yield* Effect.forEach(members, (member) => decide(member, { rules }))
    if (decisions.every((decision) => decision.isComplete && Plan.isEmpty(decision))) return decisions
  }
  return assert.fail("The workers do not converge.")
})

/** Lets workers share a new projection, and returns the row that each of them holds, in the order of their ranges. */
export const held = Effect.fnUntraced(function*(workers = 1) {
  const [replicaSet, projection] = [yield* unique("replica-set"), yield* unique("projection")]
  const members = yield* Effect.forEach(
    Array.from({ length: workers }, (_, index) => `worker-${index}`),
    (workerId) => join(replicaSet, workerId, [projection])
  )
  const rows: Array<Held> = []
  for (const member of members) {
    const { isComplete, ownedRows } = yield* decide(member)
    assert.isTrue(isComplete)
    assert.strictEqual(ownedRows.length, 1)
    rows.push(ownedRows[0]!)
  }
  return rows.sort((a, b) => a.range.start - b.range.start)
})
