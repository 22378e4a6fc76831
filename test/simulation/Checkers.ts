/**
 * The checkers of the guarantees. They receive every change that a transaction commits, with its author, and check it
 * against the guarantees alone. The changes come from the values of the memory world, or from an audit on PostgreSQL.
 *
 * P1, P3: the read model is the fold of the events up to each row's position. P2: it was folded in position order for
 * each key. Rows tile the space, and no hash's position goes back. P4: only the holder moves a row, and no range is
 * claimed from a live worker. P5 is checked at the end of the scenario, when the faults have stopped.
 */
import * as Checkpoint from "../../src/schema/Checkpoint.ts"
import type * as Generation from "../../src/schema/Generation.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import type { WorkerState } from "../../src/schema/Worker.ts"
import { checkModel } from "./ModelChecker.ts"
import { nameOf } from "./Names.ts"
import * as ParkingChecker from "./ParkingChecker.ts"
import type { Run, Worker } from "./Run.ts"
import type { Parked } from "./Withheld.ts"

type Row = Checkpoint.Checkpoint

/** The same value as in `Worker.livenessRules`. */
const presenceGraceMillis = 100

/** The worker whose transaction made a change, and when. */
export interface Author {
  /** The worker's name. */
  readonly name: string
  readonly at: number
}

/** The known state of a registration; times in milliseconds of the run. */
export interface Registered {
  readonly replicaSet: string
  readonly workerId: string
  readonly incarnation: bigint
  readonly heartbeatAt: number
  /** When its presence ended; undefined while it lasts. */
  readonly absentSince: number | undefined
  /** When it left or was evicted. */
  readonly stoppedAt: number | undefined
  /** The state recorded for people; no decision depends on it. */
  readonly state: WorkerState
  readonly generationId: bigint | undefined
}

/** The key of a registration. */
export const workerKey = (worker: Pick<Registered, "replicaSet" | "workerId">): string =>
  JSON.stringify([worker.replicaSet, worker.workerId])

export class Checkers {
  private readonly run: Run
  /** The committed state: rows by their key, registrations by worker, the newest generation by replica set. */
  readonly rows = new Map<string, Row>()
  readonly workers = new Map<string, Registered>()
  readonly generations = new Map<string, Generation.Generation>()
  /** The newest generation of each replica set that was recorded as active. */
  readonly active = new Map<string, bigint>()
  private readonly dirty = new Set<string>()
  private readonly before = new Map<string, ReadonlyArray<Row>>()
  /** Incarnations that were evicted. */
  readonly dead = new Set<bigint>()
  /** Incarnations from which another replica set has claimed a row. */
  private readonly robbed = new Set<bigint>()
  private taken: Array<
    { readonly from: Checkpoint.Fence; readonly row: Row; readonly by: Author; readonly foreign: boolean }
  > = []

  constructor(run: Run) {
    this.run = run
  }

  /** The rows of a projection, in the order of their ranges. */
  rowsOf(projection: string): ReadonlyArray<Row> {
    return [...this.rows.values()]
      .filter((row) => row.projection === projection)
      .sort((a, b) => a.range.start - b.range.start)
  }

  private ownerOf(fence: Checkpoint.Fence | undefined): Worker | undefined {
    return fence === undefined ? undefined : this.run.owners.get(fence.incarnation)
  }

  private standing(replicaSet: string, fence: Checkpoint.Fence): Registered | undefined {
    const found = this.workers.get(workerKey({ replicaSet, workerId: fence.workerId }))
    return found?.incarnation === fence.incarnation && found.stoppedAt === undefined ? found : undefined
  }

  /** A row was inserted, updated or deleted. */
  rowChanged(by: Author, key: string, after: Row | undefined): void {
    const before = this.rows.get(key)
    if (after === undefined) this.rows.delete(key)
    else this.rows.set(key, after)
    if (before === undefined && after === undefined) return
    if (after?.fence !== undefined) {
      this.run.deliveries.holds(after.projection, { ...after, incarnation: after.fence.incarnation })
    }
    this.dirty.add((after ?? before)!.projection)
    if (before === undefined) this.rowMade(by, after!)
    else if (after === undefined) this.rowMerged(by, before)
    else if (before.fence?.incarnation === after.fence?.incarnation && before.position !== after.position) {
      this.rowMoved(by, before, after)
    } else {
      this.rowDecided(by, before, after)
    }
  }

  private rowMade(by: Author, row: Row): void {
    this.run.say(by.name, `row ${nameOf(row)} at ${row.position} ${row.fence === undefined ? "free" : "mine"}`, by.at)
    const subject = this.run.subjects.get(row.projection)
    if (subject !== undefined && subject.startedAt === undefined) subject.startedAt = row.position
    if (row.fence !== undefined) this.took(undefined, row)
  }

  /** A decision replaced a row by a larger one. The author may thereby take it from another worker. */
  private rowMerged(by: Author, before: Row): void {
    this.run.say(by.name, `merge ${nameOf(before)} away`, by.at)
    this.run.coverage.count("steps", "merge")
    const author = this.run.workers.find(({ name }) => name === by.name)
    this.takenFrom(by, before, author !== undefined && author.replicaSet !== before.replicaSet)
  }

  /** Notes that a row was taken, unless its owner did it. */
  private takenFrom(by: Author, before: Row, foreign: boolean): void {
    if (before.fence === undefined || this.ownerOf(before.fence)?.name === by.name) return
    if (foreign) this.robbed.add(before.fence.incarnation)
    this.taken.push({ from: before.fence, row: before, by, foreign })
    this.run.coverage.count("steps", "claim from a dead worker")
  }

  /** A batch, or progress without events, moved a row. */
  private rowMoved(by: Author, before: Row, after: Row): void {
    const { coverage, say, violation } = this.run
    const owner = this.ownerOf(after.fence)
    if (owner?.name !== by.name) {
      violation(`P4: ${by.name} moved ${nameOf(after)}, which ${owner?.name ?? "no worker"} holds`, by.at)
    }
    if (!HashRange.equals(before.range, after.range)) {
      violation(`P4: ${by.name} moved ${nameOf(before)} and changed its range to ${nameOf(after)}`, by.at)
    }
    if (before.halt?.request !== undefined) this.haltResolved(before, after)
    say(by.name, `commit ${nameOf(after)} ${before.position}→${after.position}`, by.at)
    coverage.count("numbers", "batches")
  }

  /** A row has moved that was halted at an event about which there was a request. */
  private haltResolved({ halt, projection }: Row, after: Row): void {
    if (halt?.request === "retry") return this.run.coverage.count("steps", "halted event retried on request")
    if (halt !== undefined && after.position === halt.position) this.run.skipOnRequest(projection, halt.position)
  }

  /** The parked events of a projection were changed. */
  parkedChanged(by: Author, projection: string, after: ReadonlyArray<Parked>): void {
    const rows = this.rowsOf(projection)
    if (rows.length === 0) return
    ParkingChecker.changed(this.run, by, rows, projection, after)
    this.dirty.add(projection)
  }

  /** A decision or a halt changed a row. */
  private rowDecided(by: Author, before: Row, after: Row): void {
    const { coverage, say, violation } = this.run
    if (before.position !== after.position) {
      violation(`P3: a decision moved ${nameOf(after)} from ${before.position} to ${after.position}`, by.at)
    }
    if (after.range.end < before.range.end) coverage.count("steps", "cut")
    if (after.range.end > before.range.end) coverage.count("steps", "merge")
    if ((after.halt === undefined) !== (before.halt === undefined)) {
      coverage.count("steps", after.halt === undefined ? "halt retried by a later worker" : "halted")
      if (after.halt?.error.includes("HandlerOverran: ") === true) {
        coverage.count("steps", "halted: handler overran")
        if (this.run.slow.get(after.projection)?.has(after.halt.position) !== true) {
          violation(`P5: ${nameOf(after)} halted at an event whose handler took no time`, by.at)
        }
      }
      if (after.halt?.error.includes("is newer than version") === true) {
        violation(`P6: ${nameOf(after)} halted at an event of a newer version`, by.at)
      }
      if (
        after.halt?.error.includes("SimulatedFailure") === true &&
        this.run.failed.get(after.projection)?.has(after.halt.position) !== true
      ) {
        violation(`P6: ${nameOf(after)} halted at an event that did not fail`, by.at)
      }
      const verb = after.halt === undefined ? "retries the halt of" : "halts"
      say(by.name, `${verb} ${nameOf(after)} at ${after.position}`, by.at)
    }
    const foreign = before.replicaSet !== after.replicaSet
    if (foreign) coverage.count("steps", "rows claimed from another replica set")
    if (before.fence?.incarnation === after.fence?.incarnation) return
    this.takenFrom(by, before, foreign)
    if (after.fence === undefined) {
      coverage.count("steps", "release")
      say(by.name, `releases ${nameOf(before)} as ${nameOf(after)} at ${after.position}`, by.at)
    } else {
      this.took(before, after)
      const from = before.fence === undefined ? "" : ` from ${this.ownerOf(before.fence)?.name}`
      const generation = after.fence.generationId
      say(by.name, `claims ${nameOf(after)} at ${after.position} for generation ${generation}${from}`, by.at)
    }
  }

  private took(before: Row | undefined, after: Row): void {
    this.run.coverage.count("steps", "claim")
    const subject = this.run.subjects.get(after.projection)
    if (before !== undefined && subject?.startedAt !== undefined && after.position > subject.startedAt) {
      this.run.coverage.count("numbers", "hand-overs")
    }
  }

  /** A worker registered, sent a heartbeat, left or was evicted. */
  workerChanged(by: Author, after: Registered): void {
    const key = workerKey(after)
    const before = this.workers.get(key)
    this.workers.set(key, after)
    if (before === undefined || before.incarnation !== after.incarnation) return
    if (before.stoppedAt !== undefined || after.stoppedAt === undefined) return
    if (this.run.owners.get(after.incarnation)?.name === by.name) {
      this.run.coverage.count("steps", "leave")
      this.run.say(by.name, "leaves", by.at)
    } else {
      this.evicted(by, before)
    }
  }

  private evicted(by: Author, was: Registered): void {
    this.dead.add(was.incarnation)
    const { coverage, owners, say, scenario, violation } = this.run
    const who = `${was.workerId}#${was.incarnation}`
    const silent = by.at - was.heartbeatAt
    const absent = was.absentSince === undefined ? undefined : by.at - was.absentSince
    const isStale = silent >= scenario.settings.staleWorkerTimeout
    if (!isStale && !(absent !== undefined && absent >= presenceGraceMillis)) {
      violation(`P5: ${who} was evicted, silent for ${silent} ms only`, by.at)
    }
    // An outage of the database for all workers excuses the worker. Calls in flight when it began are still committed
    // here, however late, which no server would do.
    const owner = owners.get(was.incarnation)
    const ownFault = by.at < this.run.awayUntil || owner === undefined || owner.isFrozen || !owner.isRunning ||
      owner.ailments.cutOffUntil > was.heartbeatAt
    if (absent === undefined && !ownFault) {
      violation(`P5: ${who} was evicted although nothing is wrong with it`, by.at)
    }
    coverage.count("steps", isStale ? "evicted: heartbeats missed" : "evicted: presence gone")
    const presence = absent === undefined ? "present" : `absent for ${absent} ms`
    say(by.name, `evicts ${who}, silent for ${silent} ms, ${presence}`, by.at)
  }

  generationFormed(by: Author, after: Generation.Generation): void {
    const { generationId, members, replicaSet } = after
    const before = this.generations.get(replicaSet)
    this.generations.set(replicaSet, after)
    if (generationId !== (before?.generationId ?? 0n) + 1n) {
      this.run.violation(`generation ${generationId} of ${replicaSet} follows ${before?.generationId}`, by.at)
    }
    this.run.coverage.count("steps", "form a generation")
    this.run.coverage.count("numbers", "generations")
    this.run.coverage.workers(members.length)
    const names = members.map((member) => `${member.workerId}#${member.incarnation}`).join(" ")
    this.run.say(by.name, `forms generation ${generationId} of ${replicaSet}: ${names}`, by.at)
  }

  generationActivated(replicaSet: string, generationId: bigint): void {
    this.active.set(replicaSet, generationId)
    this.run.coverage.count("steps", "generation active")
  }

  /** A batch was refused. This must not happen to a worker whose registration is current, because it holds the row. */
  fenced(worker: Worker, held: Checkpoint.Held): void {
    this.run.coverage.count("errors", "Fenced")
    this.run.coverage.count("numbers", "fences refused")
    this.run.say(worker.name, `fenced on ${nameOf(held)}`)
    if (worker.unanswered.delete(Checkpoint.key(held)) || this.robbed.has(held.fence.incarnation)) return
    if (this.standing(worker.replicaSet, held.fence) !== undefined) {
      this.run.violation(`P4: ${worker.name} is alive, but was fenced on ${nameOf(held)} at ${held.position}`)
    }
  }

  /** Runs after each transaction. */
  readonly check = (): void => {
    if (this.dirty.size === 0) return
    for (const taking of this.taken) this.checkTaking(taking)
    this.taken = []
    for (const projection of this.dirty) this.checkProjection(projection)
    this.dirty.clear()
  }

  private checkTaking({ by, foreign, from, row }: Checkers["taken"][number]): void {
    const standing = this.standing(row.replicaSet, from)
    if (standing === undefined) return
    // Another replica set decides for itself which workers are alive, but it cannot evict them.
    const isSilent = by.at - standing.heartbeatAt >= this.run.scenario.settings.staleWorkerTimeout
    if (foreign && (standing.absentSince !== undefined || isSilent)) return
    this.run.violation(`P4: ${by.name} took ${nameOf(row)} from ${from.workerId}#${from.incarnation}, which stands`)
  }

  private checkProjection(projection: string): void {
    const { violation } = this.run
    const rows = this.rowsOf(projection)
    if (!HashRange.tiles(rows.map((row) => row.range))) {
      violation(`P3: the rows of ${projection} do not tile the space: ${rows.map(nameOf).join(" ")}`)
      return
    }
    if (rows.length > 1 && this.run.subjects.get(projection)?.ordering === "global") {
      violation(`P2: ${projection} is ordered globally, but divided: ${rows.map(nameOf).join(" ")}`)
    }
    const old = this.before.get(projection) ?? []
    let index = 0
    for (const row of rows) {
      while (index < old.length && old[index]!.range.end <= row.range.start) index++
      for (let other = index; other < old.length && old[other]!.range.start < row.range.end; other++) {
        if (row.position < old[other]!.position) {
          violation(`P1: ${nameOf(row)} went back from ${old[other]!.position} to ${row.position}`)
        }
      }
    }
    this.before.set(projection, rows)
    const subject = this.run.subjects.get(projection)
    if (subject !== undefined) checkModel(this.run, subject, rows)
  }

  /** Checks all projections once more. */
  checkAll(): void {
    for (const name of this.run.subjects.keys()) {
      if (this.before.has(name)) this.dirty.add(name)
    }
    this.check()
  }
}
