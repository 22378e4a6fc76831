/**
 * What stands in for the database when everything is in memory: the state that all processes share, and each
 * process's handle to it.
 *
 * All state is kept in `TxRef`s and changed inside `Effect.tx`, so that each change happens wholly or not at all, and
 * a batch's transaction that rests on what another one changed meanwhile notices it.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as HashMap from "effect/HashMap"
import * as HashSet from "effect/HashSet"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import * as TxRef from "effect/TxRef"
import type { Checkpoint } from "../../schema/Checkpoint.ts"
import type { Event } from "../../schema/Event.ts"
import type { Generation } from "../../schema/Generation.ts"
import type { Registration, WorkerState, WorkerView } from "../../schema/Worker.ts"
import type { ServerLife } from "../../services/EventStore.ts"

/**
 * All events: a list whose newest part comes first, so that appending copies nothing and a transaction that is rolled
 * back leaves nothing behind.
 *
 * @category models
 * @since 0.1.0
 */
export interface Log {
  readonly newest: LogPart | undefined
  /** How many events there are; positions are given from 1 without gaps, so it is the last position too. */
  readonly length: number
  readonly streams: HashMap.HashMap<string, ReadonlyArray<Event>>
  readonly eventIds: HashSet.HashSet<string>
}

/**
 * The events of one append, and what was there before.
 *
 * @category models
 * @since 0.1.0
 */
export interface LogPart {
  readonly events: ReadonlyArray<Event>
  readonly before: LogPart | undefined
}

/**
 * A worker's registration as the world keeps it, after its end too.
 *
 * @category models
 * @since 0.1.0
 */
export interface WorkerRecord extends Registration {
  /** What the worker reported last; nothing decides by it. */
  readonly state: WorkerState
  readonly generationId: bigint | undefined
  /** -1 when it has none. */
  readonly partitionKey: number
  /** Milliseconds of the world's clock. */
  readonly heartbeatAt: number
  /** When its presence ended; absent while it lasts. */
  readonly absentSince: number | undefined
  /** When it left or was given up for dead. */
  readonly stoppedAt: number | undefined
  /** The worker that evicted it; absent when it left by itself. */
  readonly evictedBy: string | undefined
  /** The number of the handle through which it registered. */
  readonly process: number
}

/**
 * A generation as the world keeps it.
 *
 * @category models
 * @since 0.1.0
 */
export interface GenerationRecord extends Generation {
  readonly leaderId: string
  readonly state: "pending" | "active" | "superseded"
  readonly formedAt: number
}

/**
 * A worker's subscription to wake-ups.
 *
 * @category models
 * @since 0.1.0
 */
export interface Listener {
  readonly registration: Registration
  readonly queue: Queue.Queue<void>
}

/**
 * @category models
 * @since 0.1.0
 */
export interface MemoryWorld {
  /** Milliseconds by the world's own clock: the one of whoever made it. */
  readonly now: Effect.Effect<number>
  readonly log: TxRef.TxRef<Log>
  /** By `Checkpoint.key`. A row of its own `TxRef`, so that batches of different ranges do not disturb each other. */
  readonly rows: Map<string, TxRef.TxRef<Checkpoint | undefined>>
  /** By `workerKey`. */
  readonly workers: TxRef.TxRef<ReadonlyMap<string, WorkerRecord>>
  /** By replica set, oldest first, the last 100. */
  readonly generations: TxRef.TxRef<ReadonlyMap<string, ReadonlyArray<GenerationRecord>>>
  readonly lastIncarnation: TxRef.TxRef<bigint>
  /** Counted up by every decision that changes something: of two at the same time, one conflicts and is taken anew. */
  readonly decisions: TxRef.TxRef<number>
  readonly listeners: Set<Listener>
  /** Whom each incarnation watches. */
  readonly watched: Map<bigint, { readonly incarnation: bigint }>
  /** How many handles there have been. */
  processes: number
  /** As a database's: what was read in an earlier one is not written any more. */
  life: ServerLife
}

/**
 * A world in which nothing has happened. Its clock is the one found in the context.
 *
 * @category constructors
 * @since 0.1.0
 */
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
    workers: yield* TxRef.make<ReadonlyMap<string, WorkerRecord>>(new Map()),
    generations: yield* TxRef.make<ReadonlyMap<string, ReadonlyArray<GenerationRecord>>>(new Map()),
    lastIncarnation: yield* TxRef.make(0n),
    decisions: yield* TxRef.make(0),
    listeners: new Set(),
    watched: new Map(),
    processes: 0,
    life: "1"
  }
})

/**
 * @category utils
 * @since 0.1.0
 */
export const workerKey = (worker: { readonly replicaSet: string; readonly workerId: string }): string =>
  JSON.stringify([worker.replicaSet, worker.workerId])

/**
 * The hash of an aggregate in memory: FNV-1a over the UTF-16 code units, mixed so that its upper bits, which choose the
 * partition, depend on all of them.
 *
 * @category utils
 * @since 0.1.0
 */
export const hash = (aggregateId: string): number => {
  let value = 0x811c9dc5
  for (let index = 0; index < aggregateId.length; index++) {
    value = Math.imul(value ^ aggregateId.charCodeAt(index), 0x01000193)
  }
  value = Math.imul(value ^ (value >>> 16), 0x85ebca6b)
  value = Math.imul(value ^ (value >>> 13), 0xc2b2ae35)
  return (value ^ (value >>> 16)) >>> 0
}

/**
 * The rows of a projection as they are committed, in range order.
 *
 * @category getters
 * @since 0.1.0
 */
export const committedRows = (world: MemoryWorld, projection: string): ReadonlyArray<Checkpoint> =>
  [...world.rows.values()]
    .map((row) => row.value)
    .filter((row): row is Checkpoint => row?.projection === projection)
    .sort((a, b) => a.range.start - b.range.start)

/**
 * What a decision sees of a worker.
 *
 * @category getters
 * @since 0.1.0
 */
export const viewOf = (worker: WorkerRecord, now: number): WorkerView => ({
  workerId: worker.workerId,
  incarnation: worker.incarnation,
  startedAt: worker.startedAt,
  projections: worker.projections,
  silentForMillis: now - worker.heartbeatAt,
  absentForMillis: worker.absentSince === undefined ? undefined : now - worker.absentSince,
  recorded: { state: worker.state, generationId: worker.generationId }
})

/**
 * Wakes whoever listens in a replica set, except the worker of that incarnation.
 *
 * @category mutations
 * @since 0.1.0
 */
export const wakeOthers = (
  world: MemoryWorld,
  worker: { readonly replicaSet: string; readonly incarnation: bigint }
): Effect.Effect<void> =>
  wake(
    world,
    ({ registration }) =>
      registration.replicaSet === worker.replicaSet && registration.incarnation !== worker.incarnation
  )

const wake = (world: MemoryWorld, concerned: (listener: Listener) => boolean): Effect.Effect<void> =>
  Effect.suspend(() =>
    Effect.forEach([...world.listeners].filter(concerned), ({ queue }) => Queue.offer(queue, undefined), {
      discard: true
    })
  )

/**
 * Ends the presence of a registration and wakes who watches it; nothing when it has ended, or another registration
 * has taken the id.
 *
 * @category mutations
 * @since 0.1.0
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
 * Changes the record of a registration, and returns what was there before; nothing is changed when the record is of
 * another incarnation.
 *
 * @category mutations
 * @since 0.1.0
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
 * A process's access to the world. Every call of a service goes through `reach`, which is the place to cut a process
 * off, to delay it, or to lose its answers.
 *
 * @category models
 * @since 0.1.0
 */
export interface Handle {
  readonly world: MemoryWorld
  readonly process: number
  /** When its session was opened, by the world's clock. */
  readonly openedAt: number
  /**
   * Passes a call on. One made after `cut` never returns; one made after the layer's scope has closed is interrupted, so
   * that a worker that outlives its stores comes to an end.
   */
  readonly reach: <A, E, R>(call: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  /** The registrations whose presence rests on this session. */
  readonly present: Set<Registration>
  /** Ends the session as a crash would: presence ends, and no call reaches the world any more. */
  readonly cut: Effect.Effect<void>
}

/**
 * Opens a handle; the scope ends its session.
 *
 * @category constructors
 * @since 0.1.0
 */
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
