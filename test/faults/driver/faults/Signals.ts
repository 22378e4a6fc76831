/**
 * What happens to processes: they are killed, told to end, told twice, and stand still.
 */
import * as Effect from "effect/Effect"
import { Driver } from "../Driver.ts"
import type { Fault } from "../Fault.ts"
import type { Member } from "../Fleet.ts"

/** By which the living must have taken over from a process that was killed, whose sessions end with it. */
const takeoverMillis = 500

/** After the timeout, by which others must hold what a silent one held. */
export const replacedWithin = 1_500

/** Members that are drawn are no members any more; the supervisor starts others. */
const drawn = (count: number | "all") =>
  Effect.gen(function*() {
    const { fleet } = yield* Driver
    const members = yield* fleet.pick(count === "all" ? fleet.members().length : count)
    for (const member of members) fleet.forget(member)
    return members
  })

const each = (members: ReadonlyArray<Member>, end: (member: Member) => Effect.Effect<unknown>) =>
  Effect.forEach(members, end, { concurrency: "unbounded", discard: true })

const killed = (kind: string, count: number | "all"): Fault => ({
  kind,
  inject: Effect.flatMap(drawn(count), (members) => each(members, ({ worker }) => worker.kill)),
  ...(count === "all" ? {} : { takenWithin: takeoverMillis })
})

const stopped = (kind: string, count: number | "all", how: (member: Member) => Effect.Effect<unknown>): Fault => ({
  kind,
  inject: Effect.flatMap(drawn(count), (members) => each(members, how))
})

/** The second signal counts half a second after the first. */
const interruptedTwice = ({ worker }: Member) =>
  worker.send("SIGINT").pipe(
    Effect.andThen(Effect.sleep(600)),
    Effect.andThen(worker.interrupt)
  )

/**
 * The others wait for whoever is silent no longer than they may, and for the locks of its transactions. Where another
 * fault leaves no others, nothing is expected.
 */
export const takenOver = Effect.fnUntraced(function*(ids: ReadonlyArray<string>, when = "stood still") {
  const { awaitRows, fleet, settings } = yield* Driver
  return yield* fleet.without(
    ids,
    awaitRows(
      `what ${ids.join(", ")} held when they ${when} is held by others`,
      settings.staleWorkerTimeout + replacedWithin,
      (rows) =>
        fleet.able().length === 0 ||
        rows.checkpoints.every(({ workerId }) => workerId !== null && !ids.includes(workerId))
    )
  )
})

/** Stands still for longer than anybody may be silent, and goes on. */
const frozen = (kind: string, count: number): Fault => ({
  kind,
  inject: Effect.gen(function*() {
    const { fleet } = yield* Driver
    const members = yield* fleet.pick(count)
    yield* Effect.acquireUseRelease(
      each(members, ({ worker }) => worker.freeze),
      () => takenOver(members.map(({ workerId }) => workerId)),
      () => each(members, ({ worker }) => worker.wake)
    )
  })
})

/** Stands still, a successor takes its id or place meanwhile, and it wakes beside it. */
const outlived: Fault = {
  kind: "SIGSTOP one, replaced, SIGCONT",
  inject: Effect.gen(function*() {
    const { fleet, settings } = yield* Driver
    const [member] = yield* fleet.pick(1)
    if (member === undefined) return
    yield* member.worker.freeze
    fleet.forget(member)
    yield* Effect.sleep(settings.staleWorkerTimeout)
    yield* fleet.restore
    yield* Effect.sleep(settings.staleWorkerTimeout)
    yield* member.worker.wake
    yield* Effect.sleep(settings.heartbeatInterval)
    yield* member.worker.stop
  })
}

export const signals: ReadonlyArray<Fault> = [
  killed("SIGKILL one", 1),
  killed("SIGKILL two", 2),
  killed("SIGKILL all", "all"),
  stopped("SIGTERM one", 1, ({ worker }) => worker.stop),
  stopped("SIGTERM all", "all", ({ worker }) => worker.stop),
  stopped("SIGINT twice", 1, interruptedTwice),
  frozen("SIGSTOP one, SIGCONT", 1),
  frozen("SIGSTOP two, SIGCONT", 2),
  outlived
]
