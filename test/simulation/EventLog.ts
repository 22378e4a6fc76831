/**
 * The event store of the simulation: positions are drawn before they are committed, commits come late, out of order or
 * not at all, and readers stop at the settled position. It implements the same service as every other event store; the
 * scenario drives its writers.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { hash } from "../../src/layers/memory/MemoryWorld.ts"
import { CheckpointAheadOfEvents } from "../../src/schema/Errors.ts"
import type { Event } from "../../src/schema/Event.ts"
import * as EventFilter from "../../src/schema/EventFilter.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import * as PartitionKey from "../../src/schema/PartitionKey.ts"
import { EventStore, type Page, type ServerEpoch } from "../../src/services/EventStore.ts"
import type { Engine, Process, Timer } from "./Engine.ts"
import { type Aggregate, metadataOf } from "./Keys.ts"
import type { Events } from "./Run.ts"
import type { Committed } from "./Subject.ts"

/** A transaction that has drawn its positions and is neither committed nor rolled back. */
export interface Writer {
  readonly aggregateId: string
  readonly first: number
  readonly events: ReadonlyArray<Event>
}

type Slot = Event | "open" | "rolled back"

interface Waiter {
  readonly process: Process
  readonly wake: () => void
}

const payload = new Uint8Array([123, 125])

interface Options {
  /** Returns after how many milliseconds a notification of new events arrives; undefined if it is lost. */
  readonly delivery: () => number | undefined
  /** The current server epoch. */
  readonly epoch: () => ServerEpoch
  /** Called for each event before any reader can read it. */
  readonly committed: (event: Committed) => void
}

export class EventLog implements Events {
  /** Slots by position, starting at 1. */
  readonly slots: Array<Slot> = []
  readonly hashes = new Map<string, number>()
  /** Committed versions by aggregate. */
  readonly versions = new Map<string, number>()
  /** Aggregates whose head row is locked by an open writer. */
  readonly locked = new Set<string>()
  settled = 0
  committed = 0
  private readonly engine: Engine
  private readonly options: Options
  private readonly waiters = new Set<Waiter>()

  constructor(engine: Engine, options: Options) {
    this.engine = engine
    this.options = options
  }

  get end(): number {
    return this.settled
  }

  /** The highest position that is visible. */
  get head(): number {
    for (let position = this.slots.length; position > this.settled; position--) {
      if (typeof this.slots[position - 1] === "object") return position
    }
    return this.settled
  }

  hashOf(key: string): number {
    let value = this.hashes.get(key)
    if (value === undefined) {
      value = hash(key)
      this.hashes.set(key, value)
    }
    return value
  }

  begin(aggregate: Aggregate, eventTypes: ReadonlyArray<string>): Writer {
    const { correlationId, id: aggregateId, type: aggregateType } = aggregate
    const version = this.versions.get(aggregateId) ?? 0
    const first = this.slots.length + 1
    this.locked.add(aggregateId)
    const events = eventTypes.map((eventType, index): Event => {
      const metadataText = metadataOf(aggregate, eventType)
      return {
        boundedContext: "app",
        aggregateType,
        aggregateId,
        aggregateVersion: BigInt(version + index + 1),
        globalPosition: BigInt(first + index),
        eventId: `e${first + index}`,
        eventType,
        eventVersion: 1,
        payload,
        traceId: null,
        correlationId,
        causationId: null,
        metadata: metadataText === null ? null : JSON.parse(metadataText),
        metadataText,
        createdAt: new Date(0),
        createdAtMicros: 0n
      }
    })
    for (let index = 0; index < events.length; index++) this.slots.push("open")
    return { aggregateId, first, events }
  }

  commit(writer: Writer): void {
    for (const [index, event] of writer.events.entries()) {
      this.slots[writer.first - 1 + index] = event
      this.options.committed({ ...event, version: event.aggregateVersion, position: writer.first + index })
    }
    this.versions.set(writer.aggregateId, Number(writer.events[writer.events.length - 1]!.aggregateVersion))
    this.committed += writer.events.length
    this.close(writer)
    for (const waiter of this.waiters) {
      const delay = this.options.delivery()
      if (delay !== undefined) this.engine.after(waiter.process, delay, waiter.wake)
    }
  }

  rollBack(writer: Writer): void {
    for (let index = 0; index < writer.events.length; index++) this.slots[writer.first - 1 + index] = "rolled back"
    this.close(writer)
  }

  private close(writer: Writer): void {
    this.locked.delete(writer.aggregateId)
    while (this.settled < this.slots.length && this.slots[this.settled] !== "open") this.settled++
  }

  /**
   * The service for one process. `readable` returns the position up to which it may read: the settled position, unless
   * a mutation replaces it. `readBy` is the partition key by which it reads, if a mutation replaces that of the reader.
   */
  store(
    process: Process,
    readable: () => number = () => this.settled,
    readBy?: PartitionKey.PartitionKey
  ): EventStore["Service"] {
    const settled = Effect.sync(() => BigInt(readable()))
    const refuseAhead = (position: bigint) =>
      position > BigInt(this.slots.length)
        ? Effect.fail(new CheckpointAheadOfEvents({ position, lastPosition: BigInt(this.slots.length) }))
        : Effect.void

    const waitBeyond = (position: bigint, millis: number): Effect.Effect<void> =>
      Effect.callback((resume) => {
        if (BigInt(readable()) > position) return resume(Effect.void)
        const leave = () => {
          timer.cancelled = true
          this.waiters.delete(waiter)
        }
        const wake = () => {
          leave()
          resume(Effect.void)
        }
        const waiter: Waiter = { process, wake }
        const timer: Timer = this.engine.after(process, millis, wake)
        this.waiters.add(waiter)
        return Effect.sync(leave)
      })

    return EventStore.of({
      append: () => Effect.die(new Error("the scenario's writers append")),
      readStream: () => Effect.die(new Error("the simulation reads no streams")),
      settledPosition: settled,
      positionBefore: () => Effect.die(new Error("no projection of the simulation starts at a date")),
      settledBeyond: Effect.fnUntraced({ self: this }, function*(position, pollInterval) {
        yield* refuseAhead(position)
        while (true) {
          const now = readable()
          if (BigInt(now) > position) return BigInt(now)
          yield* waitBeyond(position, Duration.toMillis(pollInterval))
        }
      }),
      read: (options) =>
        Effect.andThen(
          refuseAhead(options.after),
          Effect.sync((): Page => {
            const epoch = this.options.epoch()
            const last = options.upTo === undefined ? readable() : Math.min(Number(options.upTo), readable())
            const range = options.range ?? HashRange.whole
            const limit = Math.max(1, options.limit ?? 1000)
            const partitionBy = readBy ?? options.partitionBy ?? PartitionKey.byDefault
            const events: Array<Event> = []
            const page = (position: bigint): Page => ({
              events,
              position,
              epoch,
              ...(options.hashes === true
                ? { hashes: events.map((event) => this.hashOf(PartitionKey.of(partitionBy, event))) }
                : {})
            })
            for (let index = Number(options.after); index < last; index++) {
              const event = this.slots[index]!
              if (typeof event !== "object" || !EventFilter.matches(options.filter ?? {}, event)) continue
              if (!HashRange.includes(range, this.hashOf(PartitionKey.of(partitionBy, event)))) continue
              if (events.length === limit) return page(events[events.length - 1]!.globalPosition)
              events.push(event)
            }
            return page(BigInt(Math.max(last, Number(options.after))))
          })
        ),
      endEpoch: () => Effect.void,
      headPosition: Effect.sync(() => BigInt(this.head)),
      openWriters: Effect.succeed([])
    })
  }
}
