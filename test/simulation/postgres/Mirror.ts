/**
 * The committed state on PostgreSQL, as far as the audit has been read. Passes it to the checkers, one transaction
 * after the other.
 */
import * as Rows from "../../../src/layers/postgres/coordination/Rows.ts"
import * as Checkpoint from "../../../src/schema/Checkpoint.ts"
import { type Author, type Checkers, workerKey } from "../Checkers.ts"
import type { Events, ReadModel, Run, Worker } from "../Run.ts"
import { type Effects, noEffects } from "../Subject.ts"
import type { Entry } from "./Audit.ts"

/** What the audit does not contain. */
interface Outside {
  readonly run: Run
  readonly checkers: Checkers
  /** When the run began, in milliseconds since 1970 of the database's clock. */
  readonly began: number
  /** When a worker last lost a session, with which its presence may have ended. */
  readonly absentSince: (worker: Worker, at: number) => number | undefined
}

export class Mirror implements Events, ReadModel {
  committed = 0
  /** The highest position. */
  end = 0
  private readonly hashes = new Map<string, number>()
  private readonly models = new Map<string, Effects>()
  private readonly totals = new Map<string, number>()
  /** The heartbeats of each registration, in milliseconds since 1970. */
  private readonly heartbeats = new Map<bigint, ReadonlyArray<number>>()

  hashOf(key: string): number {
    return this.hashes.get(key)!
  }

  effects(projection: string, key: string): Effects {
    return this.models.get(`${projection}/${key}`) ?? noEffects
  }

  total(projection: string): number {
    return this.totals.get(projection) ?? 0
  }

  apply(transaction: ReadonlyArray<Entry>, outside: Outside): void {
    for (const entry of transaction) this.tell(entry, outside)
    outside.checkers.check()
  }

  private tell(entry: Entry, outside: Outside): void {
    const { began, checkers, run } = outside
    const by: Author = { name: entry.worker ?? "?", at: Math.round(entry.at - began) }
    switch (entry.what) {
      case "row": {
        const row = Rows.toCheckpoint(entry.value)
        return checkers.rowChanged(by, Checkpoint.key(row), entry.deleted ? undefined : row)
      }
      case "worker":
        if (entry.deleted) return
        return this.registered(by, entry, outside)
      case "heartbeat": {
        const known = checkers.workers.get(workerKey(entry.value))
        if (known === undefined || String(known.incarnation) !== entry.value.incarnation) return
        this.heartbeats.set(known.incarnation, [...(this.heartbeats.get(known.incarnation) ?? []), entry.value.at])
        return checkers.workerChanged(by, { ...known, heartbeatAt: Math.round(entry.value.at - began) })
      }
      case "generation": {
        const generation = Rows.toGeneration(entry.value.replicaSet, entry.value)
        const newest = checkers.generations.get(generation.replicaSet)?.generationId ?? 0n
        if (entry.deleted) return
        // Later changes only affect columns for people.
        if (generation.generationId > newest) checkers.generationFormed(by, generation)
        else if (generation.generationId === newest && entry.value.state === "active") {
          checkers.generationActivated(generation.replicaSet, newest)
        }
        return
      }
      case "parked":
        return this.parkedChanged(by, entry, outside)
      case "event": {
        const { hashes, ...event } = entry.value
        if (event.position < this.end) run.coverage.count("faults", "commits by writers out of order")
        this.committed++
        this.end = Math.max(this.end, event.position)
        for (const [key, hash] of Object.entries(hashes)) this.hashes.set(key, hash)
        return run.committed({ ...event, version: BigInt(event.version) })
      }
      case "model": {
        const { count, key, ordered, position, projection } = entry.value
        const at = BigInt(position)
        const handled = { position: at, before: this.effects(projection, key).handled }
        this.models.set(`${projection}/${key}`, { count, ordered, position: at, handled })
        return
      }
      case "total":
        this.totals.set(entry.value.projection, entry.value.count)
    }
  }

  private parkedChanged(
    by: Author,
    { deleted, value }: Extract<Entry, { readonly what: "parked" }>,
    { checkers, run }: Outside
  ): void {
    const { projection, request, ...event } = value
    const position = BigInt(event.position)
    const others = run.withheld.parked(projection).filter((other) => other.position !== position)
    const changed = { ...event, position, request: request ?? undefined }
    const after = deleted ? others : [...others, changed].sort((a, b) => a.position < b.position ? -1 : 1)
    checkers.parkedChanged(by, projection, after)
  }

  private registered(
    by: Author,
    { at, begun, value }: Extract<Entry, { readonly what: "worker" }>,
    outside: Outside
  ): void {
    const { absentSince, checkers, run } = outside
    const { projections, replicaSet, state, workerId } = value
    const incarnation = BigInt(value.incarnation)
    const recorded = { state, generationId: value.generationId === null ? undefined : BigInt(value.generationId) }
    const known = checkers.workers.get(workerKey(value))
    if (known?.incarnation !== incarnation) {
      const owner = run.workers.find((worker) => worker.name === by.name)!
      run.owners.set(incarnation, owner)
      owner.registration = { replicaSet, workerId, incarnation, projections, startedAt: new Date(by.at) }
      run.coverage.count("steps", "join")
      run.coverage.count("numbers", "joins")
      run.say(by.name, `joins as ${workerId}#${incarnation}`, by.at)
      return checkers.workerChanged(by, {
        replicaSet,
        workerId,
        incarnation,
        heartbeatAt: by.at,
        absentSince: undefined,
        stoppedAt: undefined,
        ...recorded
      })
    }
    if (known.stoppedAt !== undefined) return
    if (state !== "stopped") return checkers.workerChanged(by, { ...known, ...recorded })
    const heartbeatAt = by.at - this.silence(incarnation, begun, at)
    checkers.workers.set(workerKey(value), {
      ...known,
      heartbeatAt,
      absentSince: absentSince(run.owners.get(incarnation)!, by.at)
    })
    checkers.workerChanged(by, { ...known, ...recorded, stoppedAt: by.at })
  }

  /**
   * How long a worker was silent from the point of view of the transaction that evicts it. The transaction has read the
   * heartbeats at some moment between its start and the eviction, and the worker may have sent one since.
   */
  private silence(incarnation: bigint, begun: number, at: number): number {
    const heartbeats = this.heartbeats.get(incarnation) ?? []
    const silences = heartbeats.map((heartbeat, index) => {
      const next = heartbeats[index + 1] ?? Infinity
      return next < begun ? 0 : Math.min(next, at) - heartbeat
    })
    return Math.round(Math.max(...silences))
  }
}
