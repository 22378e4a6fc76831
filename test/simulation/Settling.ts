/** What is missing until a run has recovered from its faults. */
import type { Checkpoint } from "../../src/schema/Checkpoint.ts"
import * as Generation from "../../src/schema/Generation.ts"
import * as RangePlan from "../../src/schema/RangePlan.ts"
import type { Checkers } from "./Checkers.ts"
import type { Fleet } from "./Fleet.ts"
import type { Worker } from "./Run.ts"
import type { Subject } from "./Subject.ts"

/** Returns the conditions that do not hold yet: every event is handled, and the assignment is stable. */
export const unsettled = <R>(fleet: Fleet<R>, checkers: Checkers): ReadonlyArray<string> => {
  const generation = checkers.generations.get("main")
  const alive = fleet.running()
  const reasons: Array<string> = []
  if (fleet.environment.openWriters() > 0) reasons.push(`${fleet.environment.openWriters()} writers are open`)
  for (const worker of alive) if (worker.catchesUp) reasons.push(`${worker.name} is still catching up`)
  const members = generation?.members ?? []
  const isMember = (worker: Worker) => members.some((member) => member.incarnation === worker.registration?.incarnation)
  if (members.length !== alive.length || !alive.every(isMember)) {
    const ids = (workers: ReadonlyArray<{ readonly workerId: string }>) =>
      workers.map((worker) => worker.workerId).join(" ")
    reasons.push(`the newest generation has the members ${ids(members)}, but ${ids(alive)} are alive`)
  }
  for (const subject of fleet.run.subjects.values()) {
    const parked = fleet.run.withheld.parked(subject.name).length
    if (parked > 0) reasons.push(`${parked} events of ${subject.name} are parked`)
    reasons.push(...unsettledRows(subject, fleet.run.events.end, checkers.rowsOf(subject.name), generation, alive))
  }
  for (const { generationId, replicaSet, state, stoppedAt, workerId } of checkers.workers.values()) {
    if (stoppedAt !== undefined || replicaSet !== "main") continue
    if (state === "running" && generationId === generation?.generationId) continue
    reasons.push(`the table of workers displays ${workerId} as ${state} in generation ${generationId}`)
  }
  if (checkers.active.get("main") !== generation?.generationId) {
    reasons.push(`generation ${generation?.generationId} is displayed as not active`)
  }
  return reasons
}

const unsettledRows = (
  { name, ordering }: Subject,
  end: number,
  rows: ReadonlyArray<Checkpoint>,
  generation: Generation.Generation | undefined,
  alive: ReadonlyArray<Worker>
): ReadonlyArray<string> => {
  if (rows.length === 0) return [`${name} has no rows`]
  return rows.flatMap((row) => {
    const where = `${name}@${row.range.start}`
    const reasons: Array<string> = []
    if (row.position < BigInt(end)) reasons.push(`${where} is at ${row.position} of ${end}`)
    if (row.halt !== undefined) reasons.push(`${where} is halted`)
    const { fence } = row
    if (fence === undefined) return [...reasons, `${where} has no owner`]
    const owner = alive.find((worker) => worker.registration?.incarnation === fence.incarnation)
    const projection = { name, concurrency: owner?.start.concurrency, ordering }
    if (owner === undefined) {
      reasons.push(`${where} is held by a worker that has ended`)
    } else if (
      generation === undefined || !RangePlan.isInPart(Generation.parts(generation, projection, fence), row.range)
    ) {
      reasons.push(`${where} is held by ${fence.workerId}, but does not belong to one part of its share`)
    }
    return reasons
  })
}
