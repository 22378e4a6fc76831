import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as Checkpoint from "../../src/schema/Checkpoint.ts"
import { OrderingChanged, ProjectionInOtherReplicaSet } from "../../src/schema/Errors.ts"
import * as EventFilter from "../../src/schema/EventFilter.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import * as Plan from "../../src/schema/Plan.ts"
import { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import { Membership } from "../../src/services/Membership.ts"
import { ParkedEvents } from "../../src/services/ParkedEvents.ts"
import type { Stores } from "../../src/services/Stores.ts"
import { scaledMillis } from "../../src/testing/TimeLimits.ts"
import { carried, converge, decide, join, type Member, preview, rowsOf } from "./Members.ts"
import type { Time } from "./Suite.ts"
import { dead, hasty, unique } from "./Suite.ts"

export interface Options {
  readonly time: Time
}

const ranges = (rows: ReadonlyArray<Checkpoint.Checkpoint>): ReadonlyArray<HashRange.HashRange> =>
  rows.map((row) => row.range)

const half = (key: number): HashRange.HashRange => HashRange.partition(key, 2)

/** Asserts that a projection's rows tile the space and that each is held by one of the workers. */
const assertShared = Effect.fnUntraced(function*(projection: string, members: ReadonlyArray<Member>) {
  const rows = yield* rowsOf(projection)
  assert.isTrue(HashRange.tiles(ranges(rows)))
  for (const row of rows) {
    assert.isTrue(members.some(({ registration }) => Checkpoint.isHeldBy(row, registration)))
  }
  return rows
})

const twoWorkers = Effect.gen(function*() {
  const replicaSet = yield* unique("replica-set")
  const projection = yield* unique("projection")
  const members = [
    yield* join(replicaSet, "a", [projection]),
    yield* join(replicaSet, "b", [projection])
  ] as const
  const [first, second] = yield* converge(members)
  return { replicaSet, projection, members, held: [first!.ownedRows[0]!, second!.ownedRows[0]!] as const }
})

export const suite = (
  name: string,
  layer: Layer.Layer<Stores, unknown>,
  { time }: Options
) =>
  it.layer(layer, { excludeTestServices: time.excludeTestServices })(`CoordinationStore (${name})`, (it) => {
    it.effect("the first worker forms the first generation and claims the whole space", () =>
      Effect.gen(function*() {
        const replicaSet = yield* unique("replica-set")
        const projection = yield* unique("projection")
        const filter = EventFilter.canonical({ eventTypes: ["Added"] })
        const first = yield* join(replicaSet, "a", [carried(projection, { filter, startPosition: 17n })])
        const { incarnation, workerId } = first.registration
        const decision = yield* decide(first)
        assert.deepStrictEqual(decision.form, {
          replicaSet,
          generationId: 1n,
          members: [{ workerId, incarnation, projections: [projection] }]
        })
        assert.deepStrictEqual(decision.generation, decision.form)
        assert.isTrue(decision.isComplete)
        assert.isUndefined(decision.recheckAfterMillis)
        const row: Checkpoint.Held = {
          projection,
          range: HashRange.whole,
          position: 17n,
          replicaSet,
          fence: { workerId, incarnation, generationId: 1n },
          filter,
          halt: undefined
        }
        assert.deepStrictEqual(decision.ownedRows, [row])
        assert.deepStrictEqual(yield* rowsOf(projection), [row])
      }))

    it.effect("a global order is refused while workers divide the projection, and then merges its ranges", () =>
      Effect.gen(function*() {
        const { members, projection, replicaSet } = yield* twoWorkers
        const global = yield* join(replicaSet, "c", [carried(projection, { ordering: "global" })])
        const error = yield* Effect.flip(decide(global))
        assert.instanceOf(error, OrderingChanged)
        for (const member of members) yield* decide(member, { leaving: true })
        const decision = yield* decide(global)
        assert.isTrue(decision.isComplete)
        assert.deepStrictEqual(ranges(decision.ownedRows), [HashRange.whole])
        assert.deepStrictEqual(yield* rowsOf(projection), decision.ownedRows)
      }))

    it.effect("a repeated decision changes nothing", () =>
      Effect.gen(function*() {
        const { held, members, projection } = yield* twoWorkers
        const before = yield* rowsOf(projection)
        for (const [index, member] of members.entries()) {
          const again = yield* decide(member)
          assert.isTrue(Plan.isEmpty(again))
          assert.isTrue(again.isComplete)
          assert.deepStrictEqual(again.ownedRows, [held[index]!])
          assert.strictEqual(again.generation?.generationId, 1n)
        }
        assert.deepStrictEqual(yield* rowsOf(projection), before)
      }))

    it.effect("a second worker forms the next generation, and the first hands a half over to it", () =>
      Effect.gen(function*() {
        const replicaSet = yield* unique("replica-set")
        const projection = yield* unique("projection")
        const first = yield* join(replicaSet, "a", [projection])
        const { ownedRows: [whole] } = yield* decide(first)
        yield* (yield* CheckpointStore).advance(whole!, { from: 0n, to: 33n })
        const second = yield* join(replicaSet, "b", [projection])

        const formed = yield* decide(second)
        assert.strictEqual(formed.form?.generationId, 2n)
        assert.deepStrictEqual(formed.form?.members.map(({ workerId }) => workerId), ["a", "b"])
        assert.deepStrictEqual(formed.ownedRows, [])
        assert.isFalse(formed.isComplete)
        assert.deepStrictEqual(ranges(yield* rowsOf(projection)), [HashRange.whole])

        const given = yield* decide(first)
        assert.isUndefined(given.form)
        assert.deepStrictEqual(ranges(given.ownedRows), [half(0)])
        assert.isTrue(given.isComplete)
        assert.deepStrictEqual(ranges(given.handOver), [half(1)])

        const taken = yield* preview(second)
        assert.isTrue(Plan.isEmpty(taken))
        assert.deepStrictEqual(ranges(taken.ownedRows), [half(1)])
        assert.isTrue(taken.isComplete)
        const rows = yield* assertShared(projection, [first, second])
        assert.deepStrictEqual(rows.map((row) => row.position), [33n, 33n])
        assert.deepStrictEqual(rows.map((row) => row.fence?.generationId), [2n, 2n])

        // The first worker's old row is fenced.
        const late = yield* Effect.flip((yield* CheckpointStore).advance(whole!, { from: 33n, to: 34n }))
        assert.strictEqual(late._tag, "Fenced")
      }))

    it.effect("a previewed plan for the worker's own rows is applied if they are unchanged, and made again if not", () =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        const [replicaSet, projection] = [yield* unique("replica-set"), yield* unique("projection")]
        const first = yield* join(replicaSet, "a", [projection])
        const { ownedRows: [whole] } = yield* decide(first)
        const second = yield* join(replicaSet, "b", [projection])
        yield* decide(second)
        const outdated = yield* preview(first)
        yield* store.advance(whole!, { from: 0n, to: 7n })
        const given = yield* decide(first, {}, outdated)
        assert.deepStrictEqual(given.ownedRows.map(({ position, range }) => [range, position]), [[half(0), 7n]])
        const rows = yield* assertShared(projection, [first, second])
        assert.deepStrictEqual(rows.map(({ position, range }) => [range, position]), [[half(0), 7n], [half(1), 7n]])

        yield* decide(second, { leaving: true })
        const third = yield* join(replicaSet, "c", [projection])
        yield* decide(third)
        const plan = yield* preview(first)
        assert.deepStrictEqual(ranges(plan.handOver), [half(1)])
        assert.deepStrictEqual((yield* decide(first, {}, plan)).handOver, plan.handOver)
        assert.deepStrictEqual(ranges(yield* assertShared(projection, [first, third])), [half(0), half(1)])
        const late = yield* Effect.flip(store.advance(whole!, { from: 7n, to: 8n }))
        assert.strictEqual(late._tag, "Fenced")
      }))

    it.effect("a previewed plan keeps the request of an operator that came after the preview", () =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        const [replicaSet, projection] = [yield* unique("replica-set"), yield* unique("projection")]
        const first = yield* join(replicaSet, "a", [projection])
        const { ownedRows: [whole] } = yield* decide(first)
        const eventId = "broken event"
        yield* store.halt(whole!, { at: 0n, error: "broken", position: 1n, eventId, key: undefined })
        const second = yield* join(replicaSet, "b", [projection])
        yield* decide(second)
        const plan = yield* preview(first)
        assert.lengthOf(plan.handOver, 1)
        assert.isTrue(yield* (yield* ParkedEvents).requestOnHalt(projection, { request: "skip", eventId }))
        yield* decide(first, {}, plan)
        const halts = (yield* assertShared(projection, [first, second])).flatMap(({ halt }) => halt ?? [])
        assert.deepStrictEqual(halts.map(({ request }) => request), ["skip"])
      }))

    it.effect("a leaving worker hands its rows over and is removed from the members", () =>
      Effect.gen(function*() {
        const { members: [first, second], projection } = yield* twoWorkers
        const left = yield* decide(second, { leaving: true })
        assert.deepStrictEqual(left.ownedRows, [])
        assert.deepStrictEqual(left.generation?.members.map(({ workerId }) => workerId), ["a"])
        const rows = yield* rowsOf(projection)
        assert.isTrue(HashRange.tiles(ranges(rows)))
        assert.isTrue(rows.every((row) => !Checkpoint.isHeldBy(row, second.registration)))

        const taken = yield* decide(first)
        assert.isTrue(taken.isComplete)
        // Both halves have the same position, so they are merged.
        assert.deepStrictEqual(ranges(taken.ownedRows), [HashRange.whole])
        assert.deepStrictEqual(yield* rowsOf(projection), taken.ownedRows)
        assert.strictEqual(
          (yield* Effect.flip((yield* Membership).heartbeat(second.registration)))._tag,
          "WorkerEvicted"
        )
        assert.strictEqual((yield* Effect.flip(decide(second)))._tag, "WorkerEvicted")
      }))

    it.effect("the last worker to leave releases all rows; the next worker continues from their position", () =>
      Effect.gen(function*() {
        const replicaSet = yield* unique("replica-set")
        const projection = yield* unique("projection")
        const first = yield* join(replicaSet, "a", [projection])
        const { ownedRows: [whole] } = yield* decide(first)
        yield* (yield* CheckpointStore).advance(whole!, { from: 0n, to: 5n })
        const left = yield* decide(first, { leaving: true })
        assert.isUndefined(left.form)
        assert.deepStrictEqual((yield* rowsOf(projection)).map((row) => row.fence), [undefined])
        const second = yield* join(replicaSet, "a", [projection])
        const decision = yield* decide(second)
        assert.strictEqual(decision.form?.generationId, 2n)
        assert.isTrue(decision.isComplete)
        assert.deepStrictEqual(decision.ownedRows.map((row) => [row.range, row.position]), [[HashRange.whole, 5n]])
      }))

    it.effect("the rows of a dead worker are claimed at their positions", () =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        const { held, members: [first, second], projection } = yield* twoWorkers
        yield* store.advance(held[0], { from: 0n, to: 8n })
        yield* store.advance(held[1], { from: 0n, to: 3n })
        yield* time.advance(dead)
        // Under rules by which the other worker is still alive, nothing is claimed from it.
        assert.isTrue(Plan.isEmpty(yield* decide(first)))

        const decision = yield* decide(first, { rules: hasty })
        assert.deepStrictEqual(decision.evict.map(({ incarnation }) => incarnation), [second.registration.incarnation])
        assert.strictEqual(decision.form?.generationId, 2n)
        assert.isTrue(decision.isComplete)
        assert.deepStrictEqual(decision.ownedRows.map((row) => [row.range, row.position]), [[half(0), 8n], [
          half(1),
          3n
        ]])
        assert.strictEqual((yield* Effect.flip(store.advance(held[1], { from: 3n, to: 4n })))._tag, "Fenced")
        assert.strictEqual((yield* Effect.flip(decide(second)))._tag, "WorkerEvicted")

        // Once both parts have the same position, the next decision merges them.
        yield* store.advance(decision.ownedRows.find((row) => row.position === 3n)!, { from: 3n, to: 8n })
        const merged = yield* decide(first)
        assert.deepStrictEqual(ranges(merged.ownedRows), [HashRange.whole])
        assert.deepStrictEqual(yield* rowsOf(projection), merged.ownedRows)
      }))

    it.effect("a worker reports for how long a range that it gets had no owner that worked on it", () =>
      Effect.gen(function*() {
        const [replicaSet, projection] = [yield* unique("replica-set"), yield* unique("projection")]
        const first = yield* join(replicaSet, "a", [projection])
        // No worker had the range before.
        assert.deepStrictEqual((yield* decide(first)).successions, [])
        const second = yield* join(replicaSet, "b", [projection])
        assert.deepStrictEqual((yield* decide(second)).successions, [])
        const ownedByFirst = { ownedKeys: new Set([`${projection}@0`]) }
        assert.deepStrictEqual((yield* decide(first, ownedByFirst)).successions, [])
        yield* time.advance(50)
        const { ownedRows, successions: [handOver, ...rest] } = yield* decide(second)
        assert.deepInclude(handOver, { projection, range: half(1), kind: "handOver" })
        assert.deepStrictEqual(rest, [])
        const ownedKeys = new Set(ownedRows.map(Checkpoint.key))
        assert.deepStrictEqual((yield* decide(second, { ownedKeys })).successions, [])
        assert.isTrue(handOver!.afterMillis >= 50 && handOver!.afterMillis < scaledMillis(5000))

        // It dies. An evicting worker and a later one measure from its last heartbeat.
        yield* time.advance(dead)
        const { successions: [takeover, ...others] } = yield* decide(first, { ...ownedByFirst, rules: hasty })
        assert.deepInclude(takeover, { projection, range: half(1), kind: "takeover" })
        assert.deepStrictEqual(others.map(({ kind }) => kind), [])
        assert.isAtLeast(takeover!.afterMillis, dead + 50)
        assert.isBelow(takeover!.afterMillis, dead + scaledMillis(10_000))
      }))

    it.effect("a range of a worker that was evicted before is taken over as well", () =>
      Effect.gen(function*() {
        const replicaSet = yield* unique("replica-set")
        const [one, two] = [yield* unique("projection"), yield* unique("projection")]
        const gone = yield* join(replicaSet, "a", [one, two])
        yield* decide(gone)
        const [second, third] = [yield* join(replicaSet, "b", [one]), yield* join(replicaSet, "c", [two])]
        yield* time.advance(dead)
        for (const { registration } of [second, third]) yield* (yield* Membership).heartbeat(registration)
        const kinds = (plan: Plan.Plan) => plan.successions.map(({ kind, projection }) => [projection, kind])
        const evicting = yield* decide(second, { rules: hasty })
        assert.strictEqual(evicting.evict.length, 1)
        assert.deepStrictEqual(kinds(evicting), [[one, "takeover"]])
        const later = yield* decide(third, { rules: hasty })
        assert.deepStrictEqual([later.evict.length, kinds(later)], [0, [[two, "takeover"]]])
        assert.isAtLeast(later.successions[0]!.afterMillis, dead)
      }))

    it.effect("active rows are not changed", () =>
      Effect.gen(function*() {
        const replicaSet = yield* unique("replica-set")
        const projection = yield* unique("projection")
        const first = yield* join(replicaSet, "a", [projection])
        const { ownedRows: [whole] } = yield* decide(first)
        const second = yield* join(replicaSet, "b", [projection])
        yield* decide(second)
        const active = yield* decide(first, { activeKeys: new Set([Checkpoint.key(whole!)]) })
        assert.isTrue(Plan.isEmpty(active))
        assert.isFalse(active.isComplete)
        assert.deepStrictEqual(active.ownedRows, [whole!])
        yield* (yield* CheckpointStore).advance(whole!, { from: 0n, to: 2n })
        const rest = yield* decide(first)
        assert.deepStrictEqual(rest.ownedRows.map((row) => [row.range, row.position]), [[half(0), 2n]])
      }))

    it.effect("an active row of a worker that has left is claimed by the others", () =>
      Effect.gen(function*() {
        const { held, members: [first, second], projection } = yield* twoWorkers
        yield* decide(second, { leaving: true, activeKeys: new Set([Checkpoint.key(held[1])]) })
        const [, row] = yield* rowsOf(projection)
        assert.isTrue(Checkpoint.isHeldBy(row!, second.registration))
        yield* converge([first])
        yield* assertShared(projection, [first])
        const late = yield* Effect.flip((yield* CheckpointStore).advance(held[1], { from: 0n, to: 1n }))
        assert.strictEqual(late._tag, "Fenced")
      }))

    it.effect("concurrent decisions form one generation", () =>
      Effect.gen(function*() {
        const replicaSet = yield* unique("replica-set")
        const projections = [yield* unique("projection"), yield* unique("projection")]
        const members = yield* Effect.forEach(
          Array.from({ length: 6 }, (_, index) => `worker-${index}`),
          (workerId) => join(replicaSet, workerId, projections)
        )
        const decisions = yield* Effect.forEach(members, (member) => decide(member), { concurrency: "unbounded" })
        assert.deepStrictEqual(
          decisions.filter((decision) => decision.form !== undefined).map(({ form }) => form?.generationId),
          [1n]
        )
        assert.isTrue(decisions.every((decision) => decision.generation?.generationId === 1n))
        assert.strictEqual(decisions.flatMap(({ create }) => create).length, 2)
        yield* converge(members)
        for (const projection of projections) {
          const rows = yield* assertShared(projection, members)
          assert.deepStrictEqual(ranges(rows), Array.from({ length: 6 }, (_, key) => HashRange.partition(key, 6)))
        }
      }))

    it.effect("the only worker that does not leave claims everything", () =>
      Effect.gen(function*() {
        const replicaSet = yield* unique("replica-set")
        const projection = yield* unique("projection")
        const members = yield* Effect.forEach(
          ["a", "b", "c", "d", "e"],
          (workerId) => join(replicaSet, workerId, [projection])
        )
        yield* converge(members)
        yield* Effect.forEach(members.slice(1), (member) => decide(member, { leaving: true }), {
          concurrency: "unbounded"
        })
        const [decision] = yield* converge(members.slice(0, 1))
        assert.deepStrictEqual(ranges(decision!.ownedRows), [HashRange.whole])
        assert.deepStrictEqual(yield* rowsOf(projection), decision!.ownedRows)
      }))

    it.effect("a worker that rejoins under its id claims its former range", () =>
      Effect.gen(function*() {
        const { held, members: [first], projection, replicaSet } = yield* twoWorkers
        yield* time.advance(dead)
        yield* (yield* Membership).heartbeat(first.registration)
        const registration = yield* (yield* Membership).join({
          replicaSet,
          workerId: "b",
          projections: [projection],
          rules: hasty
        })
        const again: Member = { registration, projections: [carried(projection)] }
        const decision = yield* decide(again)
        assert.strictEqual(decision.form?.generationId, 2n)
        assert.deepStrictEqual(ranges(decision.ownedRows), [held[1].range])
        assert.isTrue(decision.isComplete)
        const late = yield* Effect.flip((yield* CheckpointStore).advance(held[1], { from: 0n, to: 1n }))
        assert.strictEqual(late._tag, "Fenced")
        // The other worker's row and fence are unchanged.
        assert.deepStrictEqual((yield* converge([first, again]))[0]!.ownedRows, [held[0]])
      }))

    it.effect("each projection is divided among the workers that carry it", () =>
      Effect.gen(function*() {
        const replicaSet = yield* unique("replica-set")
        const [one, both] = [yield* unique("one"), yield* unique("both")]
        const first = yield* join(replicaSet, "a", [one, both])
        const second = yield* join(replicaSet, "b", [both])
        const [decided] = yield* converge([first, second])
        assert.deepStrictEqual(ranges(yield* assertShared(one, [first])), [HashRange.whole])
        assert.deepStrictEqual(ranges(yield* assertShared(both, [first, second])), [half(0), half(1)])
        assert.strictEqual(decided!.ownedRows.length, 2)
      }))

    it.effect("a projection of another replica set is claimed only after its worker there has left", () =>
      Effect.gen(function*() {
        const [here, there] = [yield* unique("here"), yield* unique("there")]
        const projection = yield* unique("projection")
        const other = yield* join(there, "other", [projection])
        const { ownedRows: [row] } = yield* decide(other)
        yield* (yield* CheckpointStore).advance(row!, { from: 0n, to: 9n })
        const before = yield* rowsOf(projection)
        const worker = yield* join(here, "worker", [projection])
        assert.deepStrictEqual(
          yield* Effect.flip(decide(worker)),
          new ProjectionInOtherReplicaSet({
            projection,
            replicaSet: here,
            otherReplicaSet: there,
            workerId: "other"
          })
        )
        assert.deepStrictEqual(yield* rowsOf(projection), before)

        yield* decide(other, { leaving: true })
        const claimed = yield* decide(worker)
        assert.isTrue(claimed.isComplete)
        assert.deepStrictEqual(
          claimed.ownedRows.map((each) => [each.range, each.position, each.replicaSet]),
          [[HashRange.whole, 9n, here]]
        )
      }))

    it.effect("a halt stays with its part of a row, and is retried by a worker that registered later", () =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        const replicaSet = yield* unique("replica-set")
        const projection = yield* unique("projection")
        const first = yield* join(replicaSet, "a", [projection])
        const { ownedRows: [whole] } = yield* decide(first)
        const eventId = globalThis.crypto.randomUUID()
        yield* store.halt(whole!, { at: 0n, error: "boom", position: 1n, eventId, key: "cart-1" })
        const halt = (yield* rowsOf(projection))[0]!.halt
        assert.strictEqual(halt?.incarnation, first.registration.incarnation)
        const second = yield* join(replicaSet, "b", [projection])
        yield* decide(second)
        yield* decide(first)
        const cut = yield* rowsOf(projection)
        assert.deepStrictEqual(ranges(cut), [half(0), half(1)])
        for (const row of cut) {
          assert.deepStrictEqual(row.halt, HashRange.includes(row.range, halt!.hash) ? halt : undefined)
        }
        yield* decide(second)
        for (const row of yield* rowsOf(projection)) {
          const isMine = Checkpoint.isHeldBy(row, second.registration)
          assert.deepStrictEqual(
            row.halt,
            !isMine && HashRange.includes(row.range, halt!.hash) ? halt : undefined
          )
        }
        yield* decide(first, { leaving: true })
        const [decided] = yield* converge([second])
        assert.deepStrictEqual(decided!.ownedRows.map((row) => row.halt), [undefined])
      }))

    it.effect("a worker registered before the halt retries it if the halted worker had registered earlier", () =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        const replicaSet = yield* unique("replica-set")
        const projection = yield* unique("projection")
        const old = yield* join(replicaSet, "old", [projection])
        const { ownedRows: [whole] } = yield* decide(old)
        // As in a rolling deploy: the fixed worker is already registered when the old version's handler fails.
        const fixed = yield* join(replicaSet, "fixed", [projection])
        const halt = { at: 0n, error: "boom", position: 1n, eventId: globalThis.crypto.randomUUID(), key: "a" }
        yield* store.halt(whole!, halt)
        yield* decide(old, { leaving: true })
        const [decided] = yield* converge([fixed])
        assert.deepStrictEqual(decided!.ownedRows.map((row) => row.halt), [undefined])
        // Its own halt stays, also when another worker's decision changes the row.
        yield* store.halt(decided!.ownedRows[0]!, halt)
        const other = yield* join(replicaSet, "other", [yield* unique("other")])
        yield* decide(other)
        const { ownedRows: held } = yield* decide(fixed)
        assert.deepStrictEqual(held.map((row) => row.halt?.incarnation), [fixed.registration.incarnation])
      }))

    it.effect("preview returns the plan of apply without applying it", () =>
      Effect.gen(function*() {
        const replicaSet = yield* unique("replica-set")
        const projection = yield* unique("projection")
        const first = yield* join(replicaSet, "a", [projection])
        const previewed = yield* preview(first)
        assert.strictEqual(previewed.form?.generationId, 1n)
        assert.strictEqual(previewed.create.length, 1)
        assert.deepStrictEqual(yield* preview(first), previewed)
        assert.deepStrictEqual(yield* rowsOf(projection), [])
        const applied = yield* decide(first)
        assert.deepStrictEqual({ ...applied, withoutParked: new Set<string>() }, previewed)
        assert.strictEqual(applied.withoutParked.size, 1)
        assert.isTrue(Plan.isEmpty(yield* preview(first)))
        const second = yield* join(replicaSet, "b", [projection])
        assert.strictEqual((yield* preview(second)).form?.generationId, 2n)
        yield* preview(second, { leaving: true })
        yield* (yield* Membership).heartbeat(second.registration)
        assert.strictEqual((yield* decide(first)).form?.generationId, 2n)
      }))

    it.effect("repeated joins and leaves keep every hash and position", () =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        const replicaSet = yield* unique("replica-set")
        const projection = yield* unique("projection")
        let members: ReadonlyArray<Member> = [yield* join(replicaSet, "0", [projection])]
        yield* converge(members)
        for (let step = 1; step <= 12; step++) {
          // Advance the first row, so that positions differ between ranges.
          const [row] = yield* rowsOf(projection)
          yield* store.advance(row as Checkpoint.Held, { from: row!.position, to: BigInt(step) })
          const before = yield* rowsOf(projection)
          if (step % 3 === 0) {
            yield* decide(members[0]!, { leaving: true })
            members = members.slice(1)
          } else {
            members = [...members, yield* join(replicaSet, String(step), [projection])]
          }
          yield* converge(members)
          const after = yield* assertShared(projection, members)
          for (const row of after) {
            for (const old of before) {
              if (HashRange.overlaps(row.range, old.range)) assert.strictEqual(row.position, old.position)
            }
          }
        }
      }))
  })
