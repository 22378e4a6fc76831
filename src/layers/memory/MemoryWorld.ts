/**
 * The substitute for the database when everything is in memory: the state that all processes share, and each process's
 * handle to it.
 *
 * What a database would store is kept in `TxRef`s and changed inside `Effect.tx`. Each change is therefore atomic, and
 * a batch's transaction detects that another one has changed what it read.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as HashMap from "effect/HashMap"
import * as HashSet from "effect/HashSet"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import * as Struct from "effect/Struct"
import * as TxRef from "effect/TxRef"
import type { Checkpoint } from "../../schema/Checkpoint.ts"
import type { Event } from "../../schema/Event.ts"
import type { Generation } from "../../schema/Generation.ts"
import type { ParkedEvent } from "../../schema/ParkedEvent.ts"
import type { Displayed, Registration, WorkerView } from "../../schema/Worker.ts"
import type { ServerEpoch } from "../../services/EventStore.ts"

/**
 * All events, as a list with the newest part first: an append does not copy the list, and a transaction that is rolled
 * back leaves nothing behind.
 */
export interface Log {
  readonly newest: LogPart | undefined
  /** The number of events. Positions are assigned from 1 without gaps, so this is also the last position. */
  readonly length: number
  readonly streams: HashMap.HashMap<string, ReadonlyArray<Event>>
  readonly eventIds: HashSet.HashSet<string>
}

/** The events of one append, and the part before it. */
export interface LogPart {
  readonly events: ReadonlyArray<Event>
  readonly before: LogPart | undefined
}

/** A worker's registration as the world keeps it, even after it has ended. */
export interface WorkerRecord extends Registration, Displayed {
  /** In milliseconds of the world's clock. */
  readonly heartbeatAt: number
  /** When its presence ended; undefined while it is present. */
  readonly absentSince: number | undefined
  /** When it left or was evicted; undefined before that. */
  readonly stoppedAt: number | undefined
  /** The worker that evicted it; undefined if it was not evicted. */
  readonly evictedBy: string | undefined
  /** The number of the handle through which it registered. */
  readonly process: number
}

/** A generation as the world keeps it. */
export interface GenerationRecord extends Generation {
  readonly leaderId: string
  readonly state: "pending" | "active" | "superseded"
  readonly formedAt: number
}

/** A row of progress as the world keeps it. */
export interface RowRecord extends Checkpoint {
  /** When the row was last changed, in milliseconds of the world's clock; absent if a test has written it. */
  readonly changedAt?: number
}

/** A worker's subscription to wake-ups. */
export interface Listener {
  readonly registration: Registration
  readonly queue: Queue.Queue<void>
}

/**
 * The state that the stores of several processes share in place of a database. Opaque: `MemoryStores.makeWorld` makes it.
 *
 * @category models
 * @since 0.1.0
 */
export interface MemoryWorld {
  /** Milliseconds of the world's clock, which is the clock of the context in which the world was made. */
  readonly now: Effect.Effect<number>
  readonly log: TxRef.TxRef<Log>
  /** By `Checkpoint.key`. Each row has its own `TxRef`, so that batches of different ranges do not conflict. */
  readonly rows: Map<string, TxRef.TxRef<RowRecord | undefined>>
  /** The parked events of each projection, in position order. */
  readonly parked: Map<string, TxRef.TxRef<ReadonlyArray<ParkedEvent>>>
  /** By `workerKey`. */
  readonly workers: TxRef.TxRef<ReadonlyMap<string, WorkerRecord>>
  /** By replica set, oldest first; the last 100 are kept. */
  readonly generations: TxRef.TxRef<ReadonlyMap<string, ReadonlyArray<GenerationRecord>>>
  readonly lastIncarnation: TxRef.TxRef<bigint>
  /**
   * Incremented by every decision that changes something: of two concurrent decisions, one conflicts and runs again.
   */
  readonly decisions: TxRef.TxRef<number>
  readonly listeners: Set<Listener>
  /** The member that each worker watches, by the watching worker's incarnation. */
  readonly watched: Map<bigint, { readonly incarnation: bigint }>
  /** The number of handles that have been opened. */
  processes: number
  /** The server epoch, as a database would report it: what was read in an earlier one is not written. */
  epoch: ServerEpoch
}

/** Makes an empty world. Its clock is the one of the context. */
export const make: Effect.Effect<MemoryWorld> = Effect.gen(function*() {
  const clock = yield* Clock.Clock
  return {
    now: Effect.sync(() => clock.currentTimeMillisUnsafe()),
    log: yield* TxRef.make<Log>({
      newest: undefined,
      length: 0,
      streams: HashMap.empty(),
      eventIds: HashSet.empty()
    }),
    rows: new Map(),
    parked: new Map(),
    workers: yield* TxRef.make<ReadonlyMap<string, WorkerRecord>>(new Map()),
    generations: yield* TxRef.make<ReadonlyMap<string, ReadonlyArray<GenerationRecord>>>(new Map()),
    lastIncarnation: yield* TxRef.make(0n),
    decisions: yield* TxRef.make(0),
    listeners: new Set(),
    watched: new Map(),
    processes: 0,
    epoch: "1"
  }
})

export const workerKey = (worker: { readonly replicaSet: string; readonly workerId: string }): string =>
  JSON.stringify([worker.replicaSet, worker.workerId])

/**
 * The hash of a key in memory: FNV-1a over the UTF-16 code units, mixed so that its upper bits, which determine
 * the partition, depend on all of them.
 */
export const hash = (key: string): number => {
  let value = 0x811c9dc5
  for (let index = 0; index < key.length; index++) {
    value = Math.imul(value ^ key.charCodeAt(index), 0x01000193)
  }
  value = Math.imul(value ^ (value >>> 16), 0x85ebca6b)
  value = Math.imul(value ^ (value >>> 13), 0xc2b2ae35)
  return (value ^ (value >>> 16)) >>> 0
}

/** The row as the services return it. */
export const toCheckpoint = (row: RowRecord): Checkpoint => Struct.omit(row, ["changedAt"])

/** The committed rows of a projection, in range order. */
export const committedRows = (world: MemoryWorld, projection: string): ReadonlyArray<Checkpoint> =>
  [...world.rows.values()]
    .map((row) => row.value)
    .filter((row): row is RowRecord => row?.projection === projection)
    .map(toCheckpoint)
    .sort((a, b) => a.range.start - b.range.start)

/** The view of a worker that a decision reads. */
export const viewOf = (worker: WorkerRecord, now: number): WorkerView => ({
  workerId: worker.workerId,
  incarnation: worker.incarnation,
  startedAt: worker.startedAt,
  projections: worker.projections,
  silentForMillis: now - worker.heartbeatAt,
  absentForMillis: worker.absentSince === undefined ? undefined : now - worker.absentSince
})

/** Wakes the workers that listen in a replica set, or those with the given incarnations, except the given one. */
export const wakeOthers = (
  world: MemoryWorld,
  worker: { readonly replicaSet: string; readonly incarnation: bigint },
  concerned: "all" | ReadonlySet<bigint>
): Effect.Effect<void> =>
  wake(
    world,
    ({ registration: { incarnation, replicaSet } }) =>
      replicaSet === worker.replicaSet && incarnation !== worker.incarnation &&
      (concerned === "all" || concerned.has(incarnation))
  )

/** Wakes the workers whose listeners are concerned. */
export const wake = (world: MemoryWorld, concerned: (listener: Listener) => boolean): Effect.Effect<void> =>
  Effect.suspend(() =>
    Effect.forEach([...world.listeners].filter(concerned), ({ queue }) => Queue.offer(queue, undefined), {
      discard: true
    })
  )

/**
 * Ends the presence of a registration and wakes the worker that watches it. The record does not change if the presence
 * has ended already, or if another registration has the id.
 */
export const endPresence = Effect.fnUntraced(function*(world: MemoryWorld, registration: Registration) {
  const now = yield* world.now
  yield* changeWorker(
    world,
    registration,
    (worker) => worker.absentSince === undefined ? { ...worker, absentSince: now } : worker
  )
  yield* wake(
    world,
    (listener) => world.watched.get(listener.registration.incarnation)?.incarnation === registration.incarnation
  )
})

/**
 * Changes the record of a registration and returns the previous record. Changes nothing and returns undefined if the
 * record belongs to another incarnation.
 */
export const changeWorker = (
  world: MemoryWorld,
  registration: Pick<Registration, "replicaSet" | "workerId" | "incarnation">,
  change: (worker: WorkerRecord) => WorkerRecord
): Effect.Effect<WorkerRecord | undefined> =>
  TxRef.modify(world.workers, (workers) => {
    const key = workerKey(registration)
    const worker = workers.get(key)
    if (worker === undefined || worker.incarnation !== registration.incarnation) return [undefined, workers]
    const changed = change(worker)
    return [worker, changed === worker ? workers : new Map(workers).set(key, changed)]
  })

/**
 * A process's access to the world. Every call of a service goes through `reach`, where a test can cut the process off,
 * delay it, or lose its answers.
 */
export interface Handle {
  readonly world: MemoryWorld
  readonly process: number
  /** When its session was opened, by the world's clock. */
  readonly openedAt: number
  /**
   * Forwards a call. A call made after `cut` never returns. A call made after the layer's scope has closed is
   * interrupted, so that a worker that outlives its stores ends.
   */
  readonly reach: <A, E, R>(call: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  /** The registrations whose presence depends on this session. */
  readonly present: Set<Registration>
  /** Ends the session as a crash would: presence ends, and no further call reaches the world. */
  readonly cut: Effect.Effect<void>
}

/** Opens a handle. Its session ends when the scope closes. */
export const open = Effect.fnUntraced(
  function*(world: MemoryWorld): Effect.fn.Return<Handle, never, Scope.Scope> {
    const openedAt = yield* world.now
    const present = new Set<Registration>()
    let isCut = false
    let isClosed = false
    const cut = Effect.suspend(() => {
      isCut = true
      const ended = [...present]
      present.clear()
      return Effect.forEach(ended, (registration) => endPresence(world, registration), { discard: true })
    })
    yield* Effect.addFinalizer(() =>
      Effect.suspend(() => {
        isClosed = !isCut
        return cut
      })
    )
    return {
      world,
      process: ++world.processes,
      openedAt,
      reach: (call) => Effect.suspend(() => isClosed ? Effect.interrupt : isCut ? Effect.never : call),
      present,
      cut
    }
  }
)
