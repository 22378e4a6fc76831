/**
 * What the parts of one run share: the world, its workers, the read model, the trace.
 */
import type * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as TxRef from "effect/TxRef"
import type { MemoryWorld } from "../../src/layers/memory/MemoryWorld.ts"
import type { EventFilter } from "../../src/schema/EventFilter.ts"
import * as EventFilters from "../../src/schema/EventFilter.ts"
import type { Registration } from "../../src/schema/Worker.ts"
import type { Coverage } from "./Coverage.ts"
import type { Chance, Engine, Process } from "./Engine.ts"
import type { EventLog, Writer } from "./EventLog.ts"

/** What a projection has made of one aggregate's events. */
export interface Effects {
  readonly count: number
  readonly version: bigint
  readonly ordered: boolean
}

const nothing: Effects = { count: 0, version: 0n, ordered: true }

/** A projection of the simulation with its read model, and what the read model has to be. */
export class Subject {
  readonly name: string
  readonly filter: EventFilter
  readonly model = new Map<string, TxRef.TxRef<Effects>>()
  /** A row that all aggregates share. */
  readonly total = TxRef.makeUnsafe(0)
  /** Positions of the matching committed events by aggregate, ascending. */
  readonly expected = new Map<string, Array<number>>()
  /** Where its progress began. */
  startedAt: bigint | undefined

  constructor(name: string, filter: EventFilter) {
    this.name = name
    this.filter = filter
  }

  effects(aggregateId: string): TxRef.TxRef<Effects> {
    let ref = this.model.get(aggregateId)
    if (ref === undefined) {
      ref = TxRef.makeUnsafe(nothing)
      this.model.set(aggregateId, ref)
    }
    return ref
  }

  committed(writer: Writer): void {
    for (const event of writer.events) {
      if (!EventFilters.matches(this.filter, event)) continue
      const positions = this.expected.get(event.aggregateId)
      if (positions === undefined) this.expected.set(event.aggregateId, [Number(event.globalPosition)])
      else positions.push(Number(event.globalPosition))
    }
  }

  /** An aggregate of which an event at or below a position has not been handled. */
  missing(position: number): string | undefined {
    for (const aggregateId of this.expected.keys()) {
      const before = this.foldedUpTo(aggregateId, Number(this.startedAt ?? 0n))
      if (this.effects(aggregateId).value.count < this.foldedUpTo(aggregateId, position) - before) return aggregateId
    }
    return undefined
  }

  /** How many events of the aggregate lie at or below a position. */
  foldedUpTo(aggregateId: string, position: number): number {
    const positions = this.expected.get(aggregateId) ?? []
    let low = 0
    let high = positions.length
    while (low < high) {
      const middle = (low + high) >> 1
      if (positions[middle]! <= position) low = middle + 1
      else high = middle
    }
    return low
  }
}

/** Until when, in virtual time, something is wrong with one worker. */
export interface Ailments {
  awayUntil: number
  failingUntil: number
  lossyUntil: number
  slowUntil: number
  slowMillis: number
  /** Until when it may not have been able to renew its heartbeat, for reasons of its own. */
  cutOffUntil: number
  handlerSlowUntil: number
  handlerFailsUntil: number
  handlerStuckUntil: number
}

export interface Worker {
  readonly name: string
  readonly workerId: string
  readonly replicaSet: string
  readonly carries: ReadonlyArray<string>
  /** It leaves when it has handled what there is. */
  readonly catchesUp: boolean
  readonly process: Process
  readonly ailments: Ailments
  /** Keys of rows whose last write was applied without the worker learning of it. */
  readonly unanswered: Set<string>
  fiber: Fiber.Fiber<unknown, unknown> | undefined
  /** Ends its session as a crash does. */
  cut: Effect.Effect<void>
  isCut: boolean
  /** It was told to stop. */
  leaving: boolean
  registration: Registration | undefined
  /** How often it has registered and learned of it. */
  registrations: number
  sessionOpenedAt: number
  exit: Exit.Exit<unknown, unknown> | undefined
}

export interface Run {
  readonly seed: number
  readonly engine: Engine
  readonly chance: Chance
  readonly world: MemoryWorld
  readonly log: EventLog
  readonly coverage: Coverage
  readonly subjects: ReadonlyMap<string, Subject>
  /** Everyone there ever was. */
  readonly workers: Array<Worker>
  readonly owners: Map<bigint, Worker>
  readonly trace: Array<string>
  readonly violations: Array<string>
  /** The database is away for everybody until then. */
  awayUntil: number
  /** Notifications may be lost or late until then. */
  deafUntil: number
  readonly heartbeatMillis: number
  /** `staleWorkerTimeout` of all. */
  readonly staleMillis: number
  /** All aggregates of a projection write one row too. */
  readonly sharesRows: boolean
  /** Every call takes up to so long. */
  readonly latency: number
  readonly say: (who: string, what: string) => void
  readonly violation: (text: string) => void
}

export const isRunning = (worker: Worker): boolean => !worker.isCut && worker.exit === undefined && !worker.leaving
