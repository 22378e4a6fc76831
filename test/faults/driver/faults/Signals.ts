/** Faults of processes: they are killed, asked to stop once or twice, and frozen. */
import * as Effect from "effect/Effect"
import { Driver } from "../Driver.ts"
import type { Fault } from "../Fault.ts"
import type { Member } from "../Fleet.ts"

/** How long the live workers may take to take over from a killed process, whose sessions end with it. */
const takeoverMillis = 500

/** How long after the stale timeout others must hold the ranges of a silent worker. */
export const replacedWithin = 1_500

/** Draws members and removes them from the fleet; the supervisor starts others. */
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

/** A second signal counts only half a second after the first. */
const interruptedTwice = ({ worker }: Member) =>
  worker.send("SIGINT").pipe(
    Effect.andThen(Effect.sleep(600)),
    Effect.andThen(worker.interrupt)
  )

/**
 * The others wait for a silent worker, and for the locks of its transactions, no longer than the stale timeout. If
 * another fault leaves no able workers, nothing is expected.
 */
export const takenOver = Effect.fnUntraced(function*(ids: ReadonlyArray<string>, when = "stopped") {
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

/** Freezes workers for longer than the stale timeout, then resumes them. */
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

/** Freezes a worker until a successor has taken its id or place, then resumes it beside the successor. */
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
