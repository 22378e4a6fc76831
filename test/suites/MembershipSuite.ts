import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import type { Generation } from "../../src/schema/Generation.ts"
import { display, type LivenessRules, type Registration } from "../../src/schema/Worker.ts"
import { CoordinationStore } from "../../src/services/CoordinationStore.ts"
import { Membership } from "../../src/services/Membership.ts"
import type { Stores } from "../../src/services/Stores.ts"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import * as Members from "./Members.ts"
import type { Time } from "./Suite.ts"
import { dead, hasty, patient, unique } from "./Suite.ts"

export interface Options {
  readonly time: Time
}

const join = Effect.fnUntraced(function*(replicaSet: string, workerId: string, rules: LivenessRules = patient) {
  return yield* (yield* Membership).join({ replicaSet, workerId, projections: ["one", "two"], rules })
})

/** A decision about membership only, without projections. */
const decide = Effect.fnUntraced(function*(registration: Registration, rules: LivenessRules, leaving = false) {
  const request = { registration, projections: [], activeKeys: new Set<string>(), leaving, rules }
  return yield* (yield* CoordinationStore).apply(request)
})

/** Waits until the wake-ups caused by starting to listen have arrived, and discards them. */
const quiet = Effect.fnUntraced(function*(wakeUps: Queue.Dequeue<void>, time: Time) {
  yield* time.advance(TimeLimits.scaledMillis(300))
  yield* Queue.clear(wakeUps)
})

export const suite = (
  name: string,
  layer: Layer.Layer<Stores, unknown>,
  { time }: Options
) =>
  it.layer(layer, { excludeTestServices: time.excludeTestServices })(`Membership (${name})`, (it) => {
    it.effect("join registers a worker under a new incarnation", () =>
      Effect.gen(function*() {
        const replicaSet = yield* unique("replica-set")
        const [first, second] = [yield* join(replicaSet, "a"), yield* join(replicaSet, "b")]
        assert.deepStrictEqual(
          { ...first, incarnation: undefined, startedAt: undefined },
          { replicaSet, workerId: "a", projections: ["one", "two"], incarnation: undefined, startedAt: undefined }
        )
        assert.instanceOf(first.startedAt, Date)
        assert.isTrue(second.incarnation > first.incarnation)
      }))

    it.effect("notifications arrive while a worker is subscribed to wake-ups", () =>
      Effect.gen(function*() {
        const membership = yield* Membership
        const registration = yield* join(yield* unique("replica-set"), "a")
        yield* membership.wakeUps(registration)
        yield* time.advance(TimeLimits.scaledMillis(300))
        const { isListening, sessions } = yield* membership.connections
        assert.isTrue(isListening)
        assert.isAtLeast(sessions, 0)
      }))

    it.effect("the id of a live worker is refused with WorkerIdInUse", () =>
      Effect.gen(function*() {
        const replicaSet = yield* unique("replica-set")
        const first = yield* join(replicaSet, "a")
        const refused = yield* Effect.flip(join(replicaSet, "a"))
        assert(refused._tag === "WorkerIdInUse")
        assert.deepStrictEqual([refused.replicaSet, refused.workerId], [replicaSet, "a"])
        assert.deepStrictEqual(refused.since, first.startedAt)
        yield* (yield* Membership).heartbeat(first)
        // The same id in another replica set is a different worker.
        yield* join(yield* unique("replica-set"), "a")
      }))

    it.effect("an id can be used again after its worker has left", () =>
      Effect.gen(function*() {
        const replicaSet = yield* unique("replica-set")
        const scope = yield* Scope.make()
        const first = yield* Scope.provide(join(replicaSet, "a"), scope)
        yield* decide(first, patient)
        yield* decide(first, patient, true)
        yield* Scope.close(scope, Exit.void)
        const second = yield* join(replicaSet, "a")
        assert.isTrue(second.incarnation > first.incarnation)
        yield* (yield* Membership).heartbeat(second)
      }))

    it.effect("a worker that ended without leaving is replaced when its heartbeat is stale", () =>
      Effect.gen(function*() {
        const membership = yield* Membership
        const replicaSet = yield* unique("replica-set")
        const scope = yield* Scope.make()
        const first = yield* Scope.provide(join(replicaSet, "a"), scope)
        yield* Scope.close(scope, Exit.void)
        yield* time.advance(dead)
        const second = yield* join(replicaSet, "a", hasty)
        assert.isTrue(second.incarnation > first.incarnation)
        const replaced = yield* Effect.flip(membership.heartbeat(first))
        assert(replaced._tag === "WorkerReplaced")
        assert.deepStrictEqual([replaced.replicaSet, replaced.workerId], [replicaSet, "a"])
        yield* membership.heartbeat(second)
      }))

    it.effect("joining under the id of a worker that has just died waits instead of failing", () =>
      Effect.gen(function*() {
        const membership = yield* Membership
        const replicaSet = yield* unique("replica-set")
        const scope = yield* Scope.make()
        const first = yield* Scope.provide(join(replicaSet, "a"), scope)
        // A session that has observed the presence treats its later absence as evidence.
        yield* decide(first, patient)
        yield* Scope.close(scope, Exit.void)
        const joining = yield* Effect.forkChild(Effect.scoped(join(replicaSet, "a")), { startImmediately: true })
        yield* time.advance(100)
        assert.isUndefined(joining.pollUnsafe())
        yield* time.advance(1_900)
        const second = yield* Fiber.join(joining)
        assert.isTrue(second.incarnation > first.incarnation)
        assert.strictEqual((yield* Effect.flip(membership.heartbeat(first)))._tag, "WorkerReplaced")
      }))

    it.effect("a frozen worker is replaced despite its open session, whose end does not affect the successor", () =>
      Effect.gen(function*() {
        const membership = yield* Membership
        const replicaSet = yield* unique("replica-set")
        const scope = yield* Scope.make()
        const first = yield* Scope.provide(join(replicaSet, "a"), scope)
        yield* time.advance(dead)
        const second = yield* join(replicaSet, "a", hasty)
        assert.strictEqual((yield* Effect.flip(membership.heartbeat(first)))._tag, "WorkerReplaced")
        yield* Scope.close(scope, Exit.void)
        yield* membership.heartbeat(second)
        const { evict, form } = yield* decide(yield* join(replicaSet, "b"), patient)
        assert.deepStrictEqual(evict, [])
        assert.deepStrictEqual(form?.members.map((member) => member.incarnation).includes(second.incarnation), true)
      }))

    it.effect("the heartbeat of an evicted worker fails with WorkerEvicted", () =>
      Effect.gen(function*() {
        const membership = yield* Membership
        const replicaSet = yield* unique("replica-set")
        const silent = yield* join(replicaSet, "silent")
        const other = yield* join(replicaSet, "other")
        yield* time.advance(dead)
        yield* membership.heartbeat(other)
        const { evict } = yield* decide(other, hasty)
        assert.deepStrictEqual(evict.map((worker) => worker.incarnation), [silent.incarnation])
        const evicted = yield* Effect.flip(membership.heartbeat(silent))
        assert(evicted._tag === "WorkerEvicted")
        assert.deepStrictEqual([evicted.replicaSet, evicted.workerId], [replicaSet, "silent"])
        // The worker can register again.
        const again = yield* join(replicaSet, "silent")
        assert.isTrue(again.incarnation > silent.incarnation)
      }))

    it.effect("a heartbeat keeps a worker alive", () =>
      Effect.gen(function*() {
        const membership = yield* Membership
        const replicaSet = yield* unique("replica-set")
        const beating = yield* join(replicaSet, "beating")
        const other = yield* join(replicaSet, "other")
        yield* time.advance(dead)
        yield* membership.heartbeat(beating)
        const { evict, generation } = yield* decide(other, hasty)
        assert.deepStrictEqual(evict, [])
        assert.strictEqual(generation?.members.length, 2)
      }))

    it.effect("an absent worker is evicted before its heartbeat is stale", () =>
      Effect.gen(function*() {
        const membership = yield* Membership
        const replicaSet = yield* unique("replica-set")
        const scope = yield* Scope.make()
        const gone = yield* Scope.provide(join(replicaSet, "gone"), scope)
        const other = yield* join(replicaSet, "other")
        const { generation } = yield* decide(other, patient)
        yield* membership.watch(other, generation!)
        const rules = { ...patient, presenceGraceMillis: 100 }
        // Only after a session has observed the presence does its absence count.
        assert.deepStrictEqual((yield* decide(other, rules)).evict, [])
        yield* Scope.close(scope, Exit.void)
        const looked = yield* (yield* CoordinationStore).preview({
          registration: other,
          projections: [],
          activeKeys: new Set(),
          leaving: false,
          rules: patient
        })
        assert.deepStrictEqual(looked.evict, [])
        assert.isDefined(looked.recheckAfterMillis)
        yield* time.advance(300)
        const { evict } = yield* decide(other, rules)
        assert.deepStrictEqual(evict.map((worker) => worker.incarnation), [gone.incarnation])
        const evicted = yield* Effect.flip(membership.heartbeat(gone))
        assert.strictEqual(evicted._tag, "WorkerEvicted")
        assert.include(evicted.message, "its heartbeats or its database session had been missing for too long")
      }))

    it.effect("departed returns workers that left, but not evicted or returned ones", () =>
      Effect.gen(function*() {
        const membership = yield* Membership
        const replicaSet = yield* unique("replica-set")
        const [silent, leaver, back] = [
          yield* join(replicaSet, "silent"),
          yield* join(replicaSet, "leaver"),
          yield* join(replicaSet, "back")
        ]
        const other = yield* join(replicaSet, "other")
        const gone = [silent, leaver, back]
        assert.deepStrictEqual(yield* membership.departed(other, gone), new Set())
        yield* decide(leaver, patient, true)
        yield* decide(back, patient, true)
        yield* join(replicaSet, "back")
        yield* time.advance(dead)
        yield* membership.heartbeat(other)
        yield* decide(other, hasty)
        assert.deepStrictEqual(yield* membership.departed(other, gone), new Set([leaver.incarnation]))
        assert.deepStrictEqual(yield* membership.departed(other, [silent]), new Set())
      }))

    it.effect("a heartbeat displays any state, but does not undo a leave", () =>
      Effect.gen(function*() {
        const membership = yield* Membership
        const worker = yield* join(yield* unique("replica-set"), "a")
        const { generation } = yield* decide(worker, patient)
        for (const state of ["pending", "ready", "running", "stopping"] as const) {
          yield* membership.heartbeat(worker, display(worker, state, generation))
        }
        yield* decide(worker, patient, true)
        const late = membership.heartbeat(worker, display(worker, "running", generation))
        assert.strictEqual((yield* Effect.flip(late))._tag, "WorkerEvicted")
        assert.strictEqual((yield* Effect.flip(late))._tag, "WorkerEvicted")
      }))

    it.effect("a new generation wakes the other workers, after a join and after a leave", () =>
      Effect.gen(function*() {
        const membership = yield* Membership
        const replicaSet = yield* unique("replica-set")
        const first = yield* join(replicaSet, "first")
        const wakeUps = yield* membership.wakeUps(first)
        yield* quiet(wakeUps, time)
        const second = yield* join(replicaSet, "second")
        yield* quiet(wakeUps, time)
        yield* decide(second, patient)
        yield* Queue.take(wakeUps)
        yield* quiet(wakeUps, time)
        yield* decide(second, patient, true)
        yield* Queue.take(wakeUps)
      }))

    it.effect("a hand-over wakes only the worker that gets the range", () =>
      Effect.gen(function*() {
        const membership = yield* Membership
        const [replicaSet, projection] = [yield* unique("replica-set"), yield* unique("projection")]
        const giver = yield* Members.join(replicaSet, "giver", [projection])
        yield* Members.decide(giver)
        const getter = yield* Members.join(replicaSet, "getter", [projection])
        const other = yield* Members.join(replicaSet, "other", [yield* unique("projection")])
        yield* Members.decide(other)
        const wakeUps = {
          getter: yield* membership.wakeUps(getter.registration),
          other: yield* membership.wakeUps(other.registration)
        }
        for (const queue of [wakeUps.getter, wakeUps.other]) yield* quiet(queue, time)
        const { handOver } = yield* Members.decide(giver)
        assert.strictEqual(handOver.length, 1)
        yield* Queue.take(wakeUps.getter)
        yield* time.advance(TimeLimits.scaledMillis(300))
        assert.strictEqual((yield* Queue.clear(wakeUps.other)).length, 0)
      }))

    it.effect("wake-ups are coalesced", () =>
      Effect.gen(function*() {
        const membership = yield* Membership
        const replicaSet = yield* unique("replica-set")
        const wakeUps = yield* membership.wakeUps(yield* join(replicaSet, "first"))
        yield* quiet(wakeUps, time)
        for (let index = 0; index < 5; index++) yield* decide(yield* join(replicaSet, `other-${index}`), patient)
        const size = Effect.andThen(time.advance(20), Queue.size(wakeUps))
        yield* TimeLimits.waitUntil("the worker is woken", size, (size) => size > 0, { every: 0 })
        yield* time.advance(300)
        assert.strictEqual((yield* Queue.clear(wakeUps)).length, 1)
      }))

    it.effect("the end of the neighbour's presence wakes its watcher", () =>
      Effect.gen(function*() {
        const membership = yield* Membership
        const replicaSet = yield* unique("replica-set")
        const first = yield* join(replicaSet, "first")
        const scope = yield* Scope.make()
        const second = yield* Scope.provide(join(replicaSet, "second"), scope)
        const { generation } = yield* decide(first, patient)
        const wakeUps = yield* membership.wakeUps(first)
        yield* membership.watch(first, generation!)
        yield* quiet(wakeUps, time)
        yield* membership.heartbeat(second)
        yield* Scope.close(scope, Exit.void)
        yield* Queue.take(wakeUps)
      }))

    it.effect("only the neighbour is watched, and watching again replaces the previous neighbour", () =>
      Effect.gen(function*() {
        const membership = yield* Membership
        const replicaSet = yield* unique("replica-set")
        const first = yield* join(replicaSet, "first")
        const scopes = [yield* Scope.make(), yield* Scope.make()] as const
        const second = yield* Scope.provide(join(replicaSet, "second"), scopes[0])
        const third = yield* Scope.provide(join(replicaSet, "third"), scopes[1])
        const member = ({ incarnation, projections, workerId }: Registration) => ({
          workerId,
          incarnation,
          projections
        })
        const ring = (...workers: ReadonlyArray<Registration>): Generation => ({
          replicaSet,
          generationId: 1n,
          members: workers.map(member)
        })
        const wakeUps = yield* membership.wakeUps(first)
        yield* membership.watch(first, ring(first, second, third))
        yield* membership.watch(first, ring(first, third, second))
        yield* quiet(wakeUps, time)
        yield* Scope.close(scopes[0], Exit.void)
        yield* time.advance(300)
        assert.strictEqual((yield* Queue.clear(wakeUps)).length, 0)
        yield* Scope.close(scopes[1], Exit.void)
        yield* Queue.take(wakeUps)
      }))
  })
