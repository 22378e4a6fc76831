/**
 * The checkers: they see every commit of the world as it happens, whoever made it, and judge it by the promises alone.
 *
 * P1, P3: the read model is the fold of the events up to each row's position. P2: it was folded in version order.
 * Rows tile the space, and no hash's position goes back. P4: only the holder moves a row, nobody takes from the living.
 * P5 is judged by the scenario, which knows when faults have stopped.
 */
import * as Fiber from "effect/Fiber"
import type * as TxRef from "effect/TxRef"
import * as MemoryWorld from "../../src/layers/memory/MemoryWorld.ts"
import * as Checkpoint from "../../src/schema/Checkpoint.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import { CurrentProcess, type Process } from "./Engine.ts"
import type { Run, Worker } from "./Run.ts"

type Row = Checkpoint.Checkpoint

/** As the coordinator has it. */
const presenceGraceMillis = 100

/** Calls back on every commit of a value, in the fiber that commits. */
const observe = <A>(ref: TxRef.TxRef<A>, changed: (before: A, after: A) => void): void => {
  let value = ref.value
  Object.defineProperty(ref, "value", {
    enumerable: true,
    get: () => value,
    set: (next: A) => {
      const before = value
      value = next
      changed(before, next)
    }
  })
}

/** Rows by key, each of which is observed from its beginning. */
export class ObservedRows extends Map<string, TxRef.TxRef<Row | undefined>> {
  changed: (before: Row | undefined, after: Row | undefined) => void = () => {}

  override set(key: string, ref: TxRef.TxRef<Row | undefined>): this {
    observe(ref, (before, after) => this.changed(before, after))
    return super.set(key, ref)
  }
}

const committing = (): Process | undefined => Fiber.getCurrent()?.getRef(CurrentProcess)

const short = (range: HashRange.HashRange): string =>
  HashRange.isWhole(range)
    ? "[whole]"
    : `[${(range.start / HashRange.hashSpace).toFixed(4)},${(range.end / HashRange.hashSpace).toFixed(4)})`

export const nameOf = (row: Pick<Row, "projection" | "range">): string => `${row.projection}${short(row.range)}`

export class Checkers {
  private readonly run: Run
  private readonly rows: ObservedRows
  private readonly dirty = new Set<string>()
  private readonly before = new Map<string, ReadonlyArray<Row>>()
  /** Registrations from which another replica set has claimed a row. */
  private readonly robbed = new Set<bigint>()
  private taken: Array<
    { readonly from: Checkpoint.Fence; readonly row: Row; readonly by: string; readonly foreign: boolean }
  > = []

  constructor(run: Run, rows: ObservedRows) {
    this.run = run
    this.rows = rows
    rows.changed = (before, after) => this.rowChanged(before, after)
    observe(run.world.workers, (before, after) => this.workersChanged(before, after))
    observe(run.world.generations, (before, after) => this.generationsChanged(before, after))
  }

  private ownerOf(fence: Checkpoint.Fence | undefined): Worker | undefined {
    return fence === undefined ? undefined : this.run.owners.get(fence.incarnation)
  }

  private rowChanged(before: Row | undefined, after: Row | undefined): void {
    const { coverage, say, violation } = this.run
    const process = committing()
    const who = process?.name ?? "?"
    this.dirty.add((after ?? before)!.projection)
    if (before === undefined || after === undefined) {
      if (after === undefined) {
        say(who, `merge ${nameOf(before!)} away`)
        coverage.count("steps", "merge")
      } else {
        say(who, `row ${nameOf(after)} at ${after.position} ${after.fence === undefined ? "free" : "mine"}`)
        const subject = this.run.subjects.get(after.projection)
        if (subject !== undefined && subject.startedAt === undefined) subject.startedAt = after.position
        if (after.fence !== undefined) this.took(undefined, after)
      }
      return
    }
    const kept = before.fence?.incarnation === after.fence?.incarnation
    if (kept && before.position !== after.position) {
      const owner = this.ownerOf(after.fence)
      if (owner === undefined || owner.process !== process) {
        violation(`P4: ${who} moved ${nameOf(after)}, which ${owner?.name ?? "nobody"} holds`)
      } else if (owner.isCut) {
        violation(`P4: ${who} moved ${nameOf(after)} after it was cut off`)
      }
      if (!HashRange.equals(before.range, after.range)) {
        violation(`P4: ${who} moved ${nameOf(after)}, which was ${nameOf(before)} by then`)
      }
      say(who, `commit ${nameOf(after)} ${before.position}→${after.position}`)
      coverage.count("numbers", "batches")
      return
    }
    if (before.position !== after.position) {
      violation(`P3: a decision moved ${nameOf(after)} from ${before.position} to ${after.position}`)
    }
    if (after.range.end < before.range.end) coverage.count("steps", "cut")
    if (after.range.end > before.range.end) coverage.count("steps", "merge")
    if (after.halt !== before.halt) {
      coverage.count("steps", after.halt === undefined ? "halt taken up by a later worker" : "halted")
      say(who, `${after.halt === undefined ? "takes up the halt of" : "halts"} ${nameOf(after)} at ${after.position}`)
    }
    if (before.replicaSet !== after.replicaSet) coverage.count("steps", "rows claimed from another replica set")
    if (kept) return
    if (before.fence !== undefined && this.ownerOf(before.fence)?.process !== process) {
      const foreign = before.replicaSet !== after.replicaSet
      if (foreign) this.robbed.add(before.fence.incarnation)
      this.taken.push({ from: before.fence, row: before, by: who, foreign })
      coverage.count("steps", "take from the dead")
    }
    if (after.fence === undefined) {
      coverage.count("steps", "give up")
      say(who, `gives up ${nameOf(before)} as ${nameOf(after)} at ${after.position}`)
    } else {
      this.took(before, after)
      say(
        who,
        `takes ${nameOf(after)} at ${after.position} for generation ${after.fence.generationId}${
          before.fence === undefined ? "" : ` from ${this.ownerOf(before.fence)?.name}`
        }`
      )
    }
  }

  private took(before: Row | undefined, after: Row): void {
    this.run.coverage.count("steps", "take")
    const subject = this.run.subjects.get(after.projection)
    if (before !== undefined && subject?.startedAt !== undefined && after.position > subject.startedAt) {
      this.run.coverage.count("numbers", "hand-overs")
    }
  }

  private workersChanged(
    before: ReadonlyMap<string, MemoryWorld.WorkerRecord>,
    after: ReadonlyMap<string, MemoryWorld.WorkerRecord>
  ): void {
    const process = committing()
    for (const [key, worker] of after) {
      const was = before.get(key)
      if (worker === was || worker.stoppedAt === undefined || was === undefined) continue
      if (was.stoppedAt !== undefined || was.incarnation !== worker.incarnation) continue
      const owner = this.run.owners.get(worker.incarnation)
      if (owner?.process === process) {
        this.run.coverage.count("steps", "leave")
        this.run.say(owner?.name ?? "?", "leaves")
        continue
      }
      const silent = this.run.engine.now - was.heartbeatAt
      const absent = was.absentSince === undefined ? undefined : this.run.engine.now - was.absentSince
      if (!(absent !== undefined && absent >= presenceGraceMillis) && silent <= this.run.staleMillis) {
        this.run.violation(`P5: ${worker.workerId}#${worker.incarnation} was evicted, silent for ${silent} ms only`)
      }
      // An outage of the database for everybody is nobody's fault.
      const ownFault = owner === undefined || owner.process.frozen || owner.isCut || owner.leaving ||
        owner.exit !== undefined || owner.ailments.cutOffUntil > was.heartbeatAt
      if (absent === undefined && !ownFault) {
        this.run.violation(`P5: ${worker.workerId}#${worker.incarnation} was evicted although nothing is wrong with it`)
      }
      this.run.coverage.count(
        "steps",
        was.absentSince === undefined ? "freeze, cut off: silent" : "die: presence gone"
      )
      this.run.say(
        process?.name ?? "?",
        `evicts ${worker.workerId}#${worker.incarnation}, silent for ${silent} ms, ${
          absent === undefined ? "present" : `absent for ${absent} ms`
        }`
      )
    }
  }

  private generationsChanged(
    before: ReadonlyMap<string, ReadonlyArray<MemoryWorld.GenerationRecord>>,
    after: ReadonlyMap<string, ReadonlyArray<MemoryWorld.GenerationRecord>>
  ): void {
    for (const [replicaSet, records] of after) {
      const was = before.get(replicaSet)?.at(-1)
      const is = records.at(-1)
      if (is === undefined || is.generationId === was?.generationId) continue
      if (is.generationId !== (was?.generationId ?? 0n) + 1n) {
        this.run.violation(`generation ${is.generationId} of ${replicaSet} follows ${was?.generationId}`)
      }
      this.run.coverage.count("steps", "form")
      this.run.coverage.count("numbers", "generations")
      this.run.coverage.workers(is.members.length)
      this.run.say(
        committing()?.name ?? "?",
        `forms generation ${is.generationId} of ${replicaSet}: ${
          is.members.map((member) => `${member.workerId}#${member.incarnation}`).join(" ")
        }`
      )
    }
  }

  /** A batch was refused. Whoever stands and was not replaced holds what it works on, so it must not happen to it. */
  fenced(worker: Worker, held: Checkpoint.Held): void {
    this.run.coverage.count("errors", "Fenced")
    this.run.coverage.count("numbers", "fences refused")
    this.run.say(worker.name, `fenced on ${nameOf(held)}`)
    if (worker.unanswered.delete(Checkpoint.key(held))) return
    const record = this.run.world.workers.value.get(MemoryWorld.workerKey(worker))
    if (this.robbed.has(held.fence.incarnation)) return
    if (record?.incarnation === held.fence.incarnation && record.stoppedAt === undefined) {
      this.run.violation(`P4: ${worker.name} stands, but was fenced on ${nameOf(held)} at ${held.position}`)
    }
  }

  /** After each step. */
  readonly check = (): void => {
    if (this.dirty.size === 0) return
    for (const { by, foreign, from, row } of this.taken) {
      const record = this.run.world.workers.value.get(
        MemoryWorld.workerKey({ replicaSet: row.replicaSet, workerId: from.workerId })
      )
      // Another replica set judges for itself who lives; it cannot evict.
      if (foreign && record !== undefined && record.absentSince !== undefined) continue
      if (foreign && record !== undefined && this.run.engine.now - record.heartbeatAt > this.run.staleMillis) continue
      if (record?.incarnation === from.incarnation && record.stoppedAt === undefined) {
        this.run.violation(`P4: ${by} took ${nameOf(row)} from ${from.workerId}#${from.incarnation}, which stands`)
      }
    }
    this.taken = []
    for (const projection of this.dirty) this.checkProjection(projection)
    this.dirty.clear()
  }

  private checkProjection(projection: string): void {
    const { violation } = this.run
    const rows: Array<Row> = []
    for (const ref of this.rows.values()) {
      if (ref.value?.projection === projection) rows.push(ref.value)
    }
    rows.sort((a, b) => a.range.start - b.range.start)
    if (!HashRange.tiles(rows.map((row) => row.range))) {
      violation(`P3: the rows of ${projection} do not tile the space: ${rows.map(nameOf).join(" ")}`)
      return
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
    this.checkModel(projection, rows)
  }

  private checkModel(projection: string, rows: ReadonlyArray<Row>): void {
    const subject = this.run.subjects.get(projection)
    if (subject === undefined) return
    const start = Number(subject.startedAt ?? 0n)
    let total = 0
    for (const [aggregateId, positions] of subject.expected) {
      const hash = this.run.log.hashOf(aggregateId)
      const row = rows.find(({ range }) => HashRange.includes(range, hash))!
      const before = subject.foldedUpTo(aggregateId, start)
      const upTo = subject.foldedUpTo(aggregateId, Number(row.position))
      const expected = Math.max(0, upTo - before)
      const effects = subject.effects(aggregateId).value
      total += effects.count
      const where = `${projection}/${aggregateId} under ${nameOf(row)} at ${row.position}`
      if (effects.count > expected) {
        this.run.violation(`P1: ${where} has ${effects.count} effects of ${expected} events`)
      }
      if (effects.count < expected) {
        this.run.violation(`P3: ${where} has ${effects.count} effects of ${expected} events`)
      }
      if (!effects.ordered) this.run.violation(`P2: ${where} was handled out of order`)
      const last = positions[upTo - 1]
      if (expected > 0 && last !== undefined && effects.count === expected) {
        const event = this.run.log.slots[last - 1]
        if (typeof event !== "object" || event.aggregateVersion !== effects.version) {
          this.run.violation(`P2: ${where} ended with version ${effects.version}`)
        }
      }
    }
    if (this.run.sharesRows && total !== subject.total.value) {
      this.run.violation(`P1: the shared row of ${projection} has ${subject.total.value} effects, its parts ${total}`)
    }
  }

  /** Everything there is, once more. */
  checkAll(): void {
    for (const name of this.run.subjects.keys()) {
      if (this.before.has(name)) this.dirty.add(name)
    }
    this.check()
  }
}
