/**
 * Membership on PostgreSQL: registrations and heartbeats are rows, presence is an advisory lock.
 *
 * How a dead worker is detected:
 *
 * 1. Its process loses its database sessions, so PostgreSQL releases its presence lock (`Presence.enter`).
 * 2. The worker's neighbour waits for that lock (`watchNeighbour`, `Presence.gone`) and is woken.
 * 3. Its reconciler reads the replica set; `Observations.observe` measures for how long each worker has been
 *    absent and without a heartbeat.
 * 4. `Worker.isAlive` decides, and the plan evicts the dead worker (`Plan.make`, `CoordinationStore.apply`).
 *
 * A worker that is frozen, or whose host is unreachable, may keep its presence lock. It is detected at step 3, at the
 * next poll after its heartbeat is stale. Without presence, every death is detected in this way.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberHandle from "effect/FiberHandle"
import * as Queue from "effect/Queue"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { WorkerEvicted, WorkerReplaced } from "../../../schema/Errors.ts"
import * as Generation from "../../../schema/Generation.ts"
import type { Displayed, Registration } from "../../../schema/Worker.ts"
import { type JoinOptions, Membership } from "../../../services/Membership.ts"
import { Listener, reconnected } from "../connection/Listener.ts"
import { hasLostConnection } from "../connection/SqlErrors.ts"
import { Database } from "../Database.ts"
import { CoordinationSession, isWakeUp } from "./CoordinationSession.ts"
import { register, type Registrar } from "./Join.ts"
import { Presence } from "./Presence.ts"

/** The workers of this process, and what they share. */
interface Self extends Registrar {
  readonly listener: Listener["Service"]
  /** By incarnation. */
  readonly members: Map<bigint, Member>
}

/** A worker of this process: the watch on its neighbour, and the queues that wake it. */
interface Member {
  readonly watching: FiberHandle.FiberHandle
  readonly wakes: Set<Queue.Queue<void>>
  /** The incarnation of the neighbour. */
  watched: bigint | undefined
}

/** Interval of heartbeats while presence is lost; well below the grace period for missing presence. */
const absentBeatInterval = Duration.millis(40)

/** Delay before a neighbour that was found gone is checked again, and after a failed heartbeat. */
const goneDelay = Duration.seconds(1)

export const make: Effect.Effect<
  Membership,
  never,
  CoordinationSession | Database | Listener | Presence | Scope.Scope
> = Effect.gen(function*() {
  const self: Self = {
    database: yield* Database,
    listener: yield* Listener,
    presence: yield* Presence,
    coordination: yield* CoordinationSession,
    members: new Map(),
    orphans: new Set()
  }
  if (self.database.presence) yield* Effect.forkScoped(Effect.withTracerEnabled(beatWhileAbsent(self), false))
  return Membership.of({
    join: (options) => join(self, options),
    heartbeat: (registration, displayed) => heartbeat(self, registration, displayed),
    departed: (registration, members) => departed(self, registration, members),
    wakeUps: (registration) => wakeUps(self, registration),
    watch: (registration, generation) => watch(self, registration, generation),
    connections: Effect.sync(() => ({
      isListening: self.listener.isListening(),
      sessions: self.database.openSessions()
    }))
  })
})

const join = (self: Self, options: JoinOptions) =>
  Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    const key = yield* restore(self.presence.enter)
    const registration = yield* register(self, options, key, restore)
    const { incarnation } = registration
    yield* Effect.addFinalizer(() => Effect.sync(() => forget(self, incarnation)))
    self.members.set(incarnation, { watching: yield* FiberHandle.make(), wakes: new Set(), watched: undefined })
    return registration
  }))

const forget = ({ coordination, members }: Self, incarnation: bigint): void => {
  coordination.members.delete(incarnation)
  members.delete(incarnation)
  // The process keeps its presence lock, so workers of this process that watch this one are woken here.
  for (const other of members.values()) {
    if (other.watched === incarnation) wake(other)
  }
}

const wake = (member: Member): void => {
  for (const queue of member.wakes) Queue.offerUnsafe(queue, undefined)
}

const heartbeat = Effect.fnUntraced(function*(self: Self, registration: Registration, displayed?: Displayed) {
  const { incarnation, replicaSet, workerId } = registration
  const heartbeats = self.database.table("heartbeats")
  const rows = yield* self.coordination.use(
    "heartbeat",
    ({ sql }) =>
      sql<DisplayedRow & { readonly incarnation: bigint }>`
      WITH beat AS (
        UPDATE ${heartbeats} SET heartbeat_at = clock_timestamp()
        WHERE replica_set = ${replicaSet} AND worker_id = ${workerId} AND incarnation = ${incarnation}
      )
      SELECT w.incarnation, w.state, w.generation_id, w.partition_key, (
        SELECT g.state FROM ${self.database.table("generations")} g
        WHERE g.replica_set = w.replica_set AND g.generation_id = ${displayed?.generationId ?? null}::bigint
      ) AS generation_state
      FROM ${self.database.table("workers")} w
      WHERE w.replica_set = ${replicaSet} AND w.worker_id = ${workerId}`
  )
  const row = rows[0]
  // A server that has lost its latest commits may return an earlier registration, or none, although no other worker
  // has taken the id.
  if (row !== undefined && row.incarnation > incarnation) return yield* new WorkerReplaced({ replicaSet, workerId })
  if (row?.incarnation !== incarnation) return yield* new WorkerEvicted({ replicaSet, workerId, reason: "missing" })
  if (row.state === "stopped") return yield* new WorkerEvicted({ replicaSet, workerId, reason: "evicted" })
  if (displayed !== undefined) yield* correctDisplayed(self, registration, displayed, row)
})

/** What operators read about a worker, as the tables contain it. */
interface DisplayedRow {
  readonly state: string
  readonly generation_id: bigint | null
  readonly partition_key: number
  /** The state of the generation that the worker displays. */
  readonly generation_state: string | null
}

/**
 * Writes what operators read about the worker where it differs. Not in the statement of the heartbeat, and without
 * effect on its result: a write that fails must not suspend the worker. The next heartbeat repeats it.
 */
const correctDisplayed = Effect.fnUntraced(
  function*(self: Self, registration: Registration, displayed: Displayed, row: DisplayedRow) {
    const { generationId, partitionKey, state } = displayed
    const isDisplayed = row.state === state && (row.generation_id ?? undefined) === generationId &&
      row.partition_key === partitionKey
    if (!isDisplayed) yield* display(self, registration, displayed)
    if (state === "running" && generationId !== undefined && row.generation_state === "pending") {
      yield* activate(self, registration.replicaSet, generationId)
    }
  },
  Effect.catch((error) => Effect.logDebug("The displayed state of the worker could not be written", error))
)

/** Writes what operators read about the worker. Skips a row that another session has locked. */
const display = (
  { coordination, database }: Self,
  { incarnation, replicaSet, workerId }: Registration,
  { generationId, partitionKey, state }: Displayed
) => {
  const workers = database.table("workers")
  return coordination.use("display the worker's state", ({ sql }) =>
    sql`
      UPDATE ${workers} w
      SET state = ${state}, generation_id = ${generationId ?? null}::bigint, partition_key = ${partitionKey}::int4
      FROM (
        SELECT replica_set, worker_id FROM ${workers}
        WHERE replica_set = ${replicaSet} AND worker_id = ${workerId} AND incarnation = ${incarnation}
          AND state <> 'stopped'
        FOR NO KEY UPDATE SKIP LOCKED
      ) own
      WHERE w.replica_set = own.replica_set AND w.worker_id = own.worker_id`)
}

/**
 * Records the generation as active if all its members are recorded as running in it. A separate statement, so that of
 * several workers that send heartbeats at once the last one reads all their rows. If another of them has locked the
 * generation's row, the next heartbeat of any member repeats this.
 */
const activate = ({ coordination, database }: Self, replicaSet: string, generationId: bigint) => {
  const generations = database.table("generations")
  return coordination.use("display the generation's state", ({ sql }) =>
    sql`
      UPDATE ${generations} g SET state = 'active', activated_at = clock_timestamp()
      FROM (
        SELECT replica_set, generation_id FROM ${generations}
        WHERE replica_set = ${replicaSet} AND generation_id = ${generationId} AND state = 'pending'
        FOR NO KEY UPDATE SKIP LOCKED
      ) pending
      WHERE g.replica_set = pending.replica_set AND g.generation_id = pending.generation_id
        AND NOT EXISTS (
          SELECT FROM jsonb_to_recordset(g.members) AS m ("workerId" text, incarnation bigint)
          WHERE NOT EXISTS (
            SELECT FROM ${database.table("workers")} w
            WHERE w.replica_set = g.replica_set AND w.worker_id = m."workerId" AND w.incarnation = m.incarnation
              AND w.state = 'running' AND w.generation_id = g.generation_id))`)
}

/**
 * Sends heartbeats while the session that holds the presence lock is lost, because other workers then find this
 * process absent and would evict its workers.
 */
const beatWhileAbsent = ({ coordination, database, listener, members }: Self): Effect.Effect<never> => {
  const beat = Effect.suspend(() =>
    // A process without workers, for example one that only appends, may lack privileges on the heartbeats.
    members.size === 0 ? Effect.void : coordination.use("heartbeat", ({ sql }) =>
      sql`
        UPDATE ${database.table("heartbeats")} SET heartbeat_at = clock_timestamp()
        WHERE incarnation = ANY(${[...members.keys()]}::bigint[])`)
  )
  return listener.lost.pipe(
    Effect.andThen(beat),
    Effect.andThen(Effect.sleep(absentBeatInterval)),
    // If this connection was lost with the listening session, retry soon on a new one. After other failures wait
    // longer: while the database is unreachable, no worker reads heartbeats. The worker's own heartbeat reports them.
    Effect.catch((error) => Effect.sleep(hasLostConnection(error) ? absentBeatInterval : goneDelay)),
    Effect.forever
  )
}

const departed = (
  { coordination, database }: Self,
  { replicaSet }: Registration,
  members: ReadonlyArray<Generation.Member>
) =>
  Effect.map(
    coordination.use("look up the workers that left", ({ sql }) =>
      sql<{ readonly incarnation: bigint }>`
        SELECT incarnation FROM ${database.table("workers")}
        WHERE replica_set = ${replicaSet} AND state = 'stopped' AND evicted_by IS NULL
          AND incarnation = ANY (${members.map(({ incarnation }) => String(incarnation))}::text[]::bigint[])`),
    (rows) => new Set(rows.map(({ incarnation }) => incarnation))
  )

const wakeUps = Effect.fnUntraced(function*({ database, listener, members }: Self, registration: Registration) {
  const queue = yield* Effect.acquireRelease(Queue.sliding<void>(1), Queue.shutdown)
  const messages = yield* listener.subscribe(database.channels.control)
  yield* Stream.fromQueue(messages).pipe(
    Stream.filter((payload) => isWakeUp(payload, registration) || payload === reconnected),
    Stream.runForEach(() => Queue.offer(queue, undefined)),
    Effect.catchCause((cause) => Effect.logWarning("Wake-ups ended; polling continues", cause)),
    Effect.forkScoped
  )
  const member = members.get(registration.incarnation)
  if (member !== undefined) {
    yield* Effect.acquireRelease(
      Effect.sync(() => member.wakes.add(queue)),
      () => Effect.sync(() => member.wakes.delete(queue))
    )
  }
  return queue
})

const watch = Effect.fnUntraced(function*(
  self: Self,
  registration: Registration,
  generation: Generation.Generation
) {
  const member = self.members.get(registration.incarnation)
  if (member === undefined || !self.database.presence) return
  const neighbour = Generation.neighbour(generation, registration)
  if (neighbour?.incarnation === member.watched) return
  member.watched = neighbour?.incarnation
  if (neighbour === undefined) yield* FiberHandle.clear(member.watching)
  else yield* FiberHandle.run(member.watching, watchNeighbour(self, registration.replicaSet, neighbour, member))
})

/** Wakes the member whenever its neighbour is found absent. */
const watchNeighbour = (self: Self, replicaSet: string, neighbour: Generation.Member, member: Member) =>
  Effect.gen(function*() {
    // Read again each time, because a process that lost its session may be present under another key.
    const key = yield* presenceKeyOf(self, replicaSet, neighbour).pipe(
      Effect.retry(Schedule.min([Schedule.exponential("100 millis"), Schedule.spaced("5 seconds")]))
    )
    // There is no lock to wait for: the neighbour has stopped, does not use presence, or runs in this process.
    if (key === undefined || key === self.presence.own()) return yield* Effect.never
    yield* self.presence.gone(key)
    wake(member)
    yield* Effect.sleep(goneDelay)
  }).pipe(
    Effect.forever,
    Effect.catchCause((cause) => Effect.logWarning("Watching the neighbour ended; heartbeats continue", cause))
  )

const presenceKeyOf = ({ coordination, database }: Self, replicaSet: string, neighbour: Generation.Member) =>
  Effect.map(
    coordination.use("look up the neighbour", ({ sql }) =>
      sql<{ readonly presence_key: number | null }>`
        SELECT presence_key FROM ${database.table("workers")}
        WHERE replica_set = ${replicaSet} AND worker_id = ${neighbour.workerId}
          AND incarnation = ${neighbour.incarnation} AND state <> 'stopped'`),
    (rows) => rows[0]?.presence_key ?? undefined
  )
