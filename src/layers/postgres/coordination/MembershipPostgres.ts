/**
 * Membership on PostgreSQL: registrations and heartbeats are rows, presence is an advisory lock.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberHandle from "effect/FiberHandle"
import * as Queue from "effect/Queue"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type * as SqlError from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import * as Os from "node:os"
import { WorkerEvicted, WorkerIdInUse, WorkerReplaced } from "../../../schema/Errors.ts"
import * as Generation from "../../../schema/Generation.ts"
import { ascii } from "../../../schema/Text.ts"
import type { Registration } from "../../../schema/Worker.ts"
import { type JoinOptions, Membership } from "../../../services/Membership.ts"
import { waitForServer } from "../../../services/worker/Startup.ts"
import { Listener, reconnected } from "../connection/Listener.ts"
import type { Opened } from "../connection/Session.ts"
import { Database } from "../Database.ts"
import * as CoordinationSession from "./CoordinationSession.ts"
import { Presence } from "./Presence.ts"
import type * as Rows from "./Rows.ts"

/** A registration is dead when both its presence and its heartbeats have been missing for this long. */
const justDiedMillis = 2000
/** How often a joining worker checks the earlier registration under its id. */
const earlierPoll = Duration.millis(100)

/** Interval of heartbeats while presence is lost; well below the grace period for missing presence. */
const absentBeatInterval = Duration.millis(40)

/** Delay before a neighbour that was found gone is checked again, and after a failed heartbeat. */
const goneDelay = Duration.seconds(1)

/** A worker of this process: the watch on its neighbour, and the queues that wake it. */
interface Member {
  readonly watching: FiberHandle.FiberHandle
  readonly wakes: Set<Queue.Queue<void>>
  watched: bigint | undefined
}

const wake = (member: Member): void => {
  for (const queue of member.wakes) Queue.offerUnsafe(queue, undefined)
}

type Attempt =
  | { readonly _tag: "Registered"; readonly registration: Registration }
  | { readonly _tag: "Earlier"; readonly earlier: CoordinationSession.Observed }

/**
 * @category constructors
 * @since 0.1.0
 */
export const make: Effect.Effect<
  Membership["Service"],
  never,
  CoordinationSession.CoordinationSession | Database | Listener | Presence | Scope.Scope
> = Effect.gen(function*() {
  const database = yield* Database
  const listener = yield* Listener
  const presence = yield* Presence
  const coordination = yield* CoordinationSession.CoordinationSession
  const generations = database.table("generations")
  const workers = database.table("workers")
  const heartbeats = database.table("heartbeats")
  // This text is informational, so a character that cannot be stored must not prevent the registration.
  const host = ascii(Os.hostname())
  const members = new Map<bigint, Member>()

  /** Incarnations registered by this process with an unknown commit outcome; no worker runs under them. */
  const orphans = new Set<bigint>()

  const find = Effect.fnUntraced(function*(opened: Opened<CoordinationSession.Observations>, options: JoinOptions) {
    const askedAt = yield* Clock.monotonicTimeNanos
    const rows = yield* opened.sql<{ readonly row: Rows.WorkerRow; readonly own_present: boolean }>`
      SELECT ${opened.sql.literal(coordination.workerJson)} AS row,
        ${opened.sql.literal(coordination.ownPresent())} AS own_present
      FROM ${opened.sql.literal(coordination.workersFrom)}
      WHERE w.replica_set = ${options.replicaSet} AND w.worker_id = ${options.workerId} AND w.state <> 'stopped'`
    // Without a registration there is no row, and the statement does not report this process's presence either.
    const [first] = rows
    if (first === undefined) return undefined
    const observed = yield* coordination.observe(opened, {
      askedAt,
      workers: rows.map(({ row }) => row),
      ownPresent: first.own_present
    })
    return observed[0]
  })

  const insert = Effect.fnUntraced(function*(
    { sql }: Opened<CoordinationSession.Observations>,
    options: JoinOptions,
    key: number | undefined
  ) {
    const rows = yield* sql<{ readonly incarnation: bigint; readonly started_at: Date }>`
      WITH worker AS (
        INSERT INTO ${workers} (replica_set, worker_id, incarnation, state, projections, presence_key, host, pid)
        VALUES (${options.replicaSet}, ${options.workerId},
          nextval(${database.qualified("incarnations")}::text::regclass), 'pending',
          ${JSON.stringify(options.projections)}::jsonb, ${key ?? null}::int4, ${host}, ${process.pid}::int4)
        ON CONFLICT (replica_set, worker_id) DO UPDATE SET
          incarnation = EXCLUDED.incarnation, generation_id = NULL, partition_key = -1, state = 'pending',
          projections = EXCLUDED.projections, presence_key = EXCLUDED.presence_key, host = EXCLUDED.host,
          pid = EXCLUDED.pid, started_at = clock_timestamp(), stopped_at = NULL, evicted_by = NULL
        RETURNING incarnation, started_at
      ), heartbeat AS (
        INSERT INTO ${heartbeats} (replica_set, worker_id, incarnation, heartbeat_at)
        SELECT ${options.replicaSet}, ${options.workerId}, incarnation, clock_timestamp() FROM worker
        ON CONFLICT (replica_set, worker_id) DO UPDATE SET
          incarnation = EXCLUDED.incarnation, heartbeat_at = EXCLUDED.heartbeat_at
      )
      SELECT incarnation, started_at FROM worker`
    const row = rows[0]!
    return {
      replicaSet: options.replicaSet,
      workerId: options.workerId,
      incarnation: row.incarnation,
      startedAt: row.started_at,
      projections: options.projections
    }
  })

  /** Updates the row's presence key if this process's key has changed since the row was written. */
  const correct = Effect.fnUntraced(function*({ incarnation }: Registration, written: number | undefined) {
    let key = written
    while (key !== presence.own() && presence.own() !== undefined) {
      key = presence.own()
      yield* coordination.use(
        "register the worker",
        ({ sql }) => sql`UPDATE ${workers} SET presence_key = ${key ?? null}::int4 WHERE incarnation = ${incarnation}`
      )
    }
  })

  const attempt = (options: JoinOptions, key: number | undefined) => {
    const made = new Set<bigint>()
    let abandoned = false
    return coordination.alone(
      "register the worker",
      options.replicaSet,
      Effect.fnUntraced(function*(opened): Effect.fn.Return<Attempt, SqlError.SqlError> {
        const before = yield* find(opened, options)
        if (before === undefined || isDead(before, options) || orphans.has(BigInt(before.row.incarnation))) {
          const registration = yield* insert(opened, options, key)
          // Recorded before the row becomes visible, so that no worker of this process ever considers it ended.
          // An attempt that continues after its caller has given up belongs to no worker; if it commits, it has ended.
          if (abandoned) orphans.add(registration.incarnation)
          else {
            coordination.members.add(registration.incarnation)
            made.add(registration.incarnation)
          }
          return { _tag: "Registered", registration }
        }
        return { _tag: "Earlier", earlier: before }
      })
    ).pipe(
      Effect.tap((result) =>
        result._tag === "Registered"
          ? Effect.andThen(coordination.wake(options.replicaSet), correct(result.registration, key))
          : Effect.void
      ),
      Effect.onError(() =>
        Effect.sync(() => {
          abandoned = true
          for (const incarnation of made) {
            coordination.members.delete(incarnation)
            orphans.add(incarnation)
          }
        })
      )
    )
  }

  /**
   * Registers as soon as no live worker has the id. The process of an earlier registration may have died although its
   * session still exists, for example when its host has lost power, so only a heartbeat proves that it is alive.
   * Without a heartbeat it is replaced when it is stale.
   *
   * Uninterruptible except in its waits, so that the caller always receives a registration that was created.
   */
  const register = Effect.fnUntraced(function*(
    options: JoinOptions,
    key: number | undefined,
    restore: <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  ) {
    const inUse = ({ row, startedAt }: CoordinationSession.Observed) =>
      new WorkerIdInUse({
        replicaSet: options.replicaSet,
        workerId: options.workerId,
        host: row.host ?? "(unknown)",
        pid: row.pid ?? 0,
        since: startedAt
      })
    const isOfThisProcess = ({ row }: CoordinationSession.Observed) => coordination.members.has(BigInt(row.incarnation))
    while (true) {
      const result = yield* attempt(options, key)
      if (result._tag === "Registered") return result.registration
      const first = result.earlier
      let hasLogged = false
      let now: CoordinationSession.Observed | undefined = first
      while (now !== undefined && now.row.incarnation === first.row.incarnation && !isDead(now, options)) {
        if (isOfThisProcess(now) || now.row.beat !== first.row.beat) return yield* inUse(now)
        // A registration whose process has just died delays this only briefly.
        if (!hasLogged && now.missingForMillis === undefined) {
          hasLogged = true
          yield* Effect.logWarning(waitsForEarlier(now, options))
        }
        now = yield* restore(Effect.andThen(
          Effect.sleep(earlierPoll),
          // The wait is long, so the time limit of an outage counts from each poll, not from the start of the worker.
          waitForServer(coordination.use("look at the earlier registration", (opened) => find(opened, options)))
        ))
      }
    }
  })

  const join: Membership["Service"]["join"] = (options) =>
    Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
      const key = yield* restore(presence.enter)
      const registration = yield* register(options, key, restore)
      const { incarnation } = registration
      yield* Effect.addFinalizer(() =>
        Effect.sync(() => {
          coordination.members.delete(incarnation)
          members.delete(incarnation)
          // The process keeps its presence lock, so workers of this process that watch this one are woken here.
          for (const other of members.values()) {
            if (other.watched === incarnation) wake(other)
          }
        })
      )
      members.set(incarnation, { watching: yield* FiberHandle.make(), wakes: new Set(), watched: undefined })
      return registration
    }))

  const heartbeat: Membership["Service"]["heartbeat"] = Effect.fnUntraced(function*(registration) {
    const { incarnation, replicaSet, workerId } = registration
    const rows = yield* coordination.use(
      "heartbeat",
      ({ sql }) =>
        sql<{ readonly incarnation: bigint; readonly state: string }>`
        WITH beat AS (
          UPDATE ${heartbeats} SET heartbeat_at = clock_timestamp()
          WHERE replica_set = ${replicaSet} AND worker_id = ${workerId} AND incarnation = ${incarnation}
        )
        SELECT incarnation, state FROM ${workers} WHERE replica_set = ${replicaSet} AND worker_id = ${workerId}`
    )
    const row = rows[0]
    // A server that has lost its latest commits may return an earlier registration, or none, although no other worker
    // has taken the id.
    if (row !== undefined && row.incarnation > incarnation) return yield* new WorkerReplaced({ replicaSet, workerId })
    if (row?.incarnation !== incarnation) return yield* new WorkerEvicted({ replicaSet, workerId, reason: "missing" })
    if (row.state === "stopped") return yield* new WorkerEvicted({ replicaSet, workerId, reason: "evicted" })
  })

  /**
   * Sends heartbeats while the session that holds the presence lock is lost, because other workers then find this
   * process absent and would evict its workers.
   */
  const beatWhileAbsent = listener.lost.pipe(
    Effect.andThen(Effect.suspend(() =>
      // A process without workers, for example one that only appends, may lack privileges on the heartbeats.
      members.size === 0 ? Effect.void : coordination.use("heartbeat", ({ sql }) =>
        sql`
          UPDATE ${heartbeats} SET heartbeat_at = clock_timestamp()
          WHERE incarnation = ANY(${[...members.keys()]}::bigint[])`)
    )),
    Effect.andThen(Effect.sleep(absentBeatInterval)),
    // If this connection was lost with the listening session, retry soon on a new one. After other failures wait
    // longer: while the database is unreachable, no worker reads heartbeats.
    Effect.catch((error) =>
      Effect.sleep(
        error._tag === "DatabaseUnavailable" && error.reason === "connection lost" ? absentBeatInterval : goneDelay
      )
    ),
    Effect.forever
  )
  if (database.presence) yield* Effect.forkScoped(Effect.withTracerEnabled(beatWhileAbsent, false))

  const report: Membership["Service"]["report"] = Effect.fnUntraced(function*(registration, { generation, state }) {
    const { incarnation, replicaSet, workerId } = registration
    const key = generation === undefined ? -1 : Generation.partitionKey(generation, registration)
    // Here and below, a row that another session has locked is skipped, not waited for; the next report updates it.
    yield* coordination.use("report", ({ sql }) =>
      sql`
        UPDATE ${workers} w
        SET state = ${state}, generation_id = ${generation?.generationId ?? null}::bigint, partition_key = ${key}
        FROM (
          SELECT replica_set, worker_id FROM ${workers}
          WHERE replica_set = ${replicaSet} AND worker_id = ${workerId} AND incarnation = ${incarnation}
            AND state <> 'stopped'
          FOR NO KEY UPDATE SKIP LOCKED
        ) own
        WHERE w.replica_set = own.replica_set AND w.worker_id = own.worker_id`)
    if (state !== "running" || generation === undefined) return
    // A separate statement, after the first has committed, so that of several workers that report at once the last one
    // reads all their rows. If another of them has locked the generation's row, this one skips it; the next `look` then
    // causes another report.
    yield* coordination.use("report", ({ sql }) =>
      sql`
        UPDATE ${generations} g SET state = 'active', activated_at = clock_timestamp()
        FROM (
          SELECT replica_set, generation_id FROM ${generations}
          WHERE replica_set = ${replicaSet} AND generation_id = ${generation.generationId} AND state = 'pending'
          FOR NO KEY UPDATE SKIP LOCKED
        ) pending
        WHERE g.replica_set = pending.replica_set AND g.generation_id = pending.generation_id
          AND NOT EXISTS (
            SELECT FROM jsonb_to_recordset(g.members) AS m ("workerId" text, incarnation bigint)
            WHERE NOT EXISTS (
              SELECT FROM ${workers} w
              WHERE w.replica_set = g.replica_set AND w.worker_id = m."workerId" AND w.incarnation = m.incarnation
                AND w.state = 'running' AND w.generation_id = g.generation_id))`)
  })

  const departed: Membership["Service"]["departed"] = ({ replicaSet }, members) =>
    Effect.map(
      coordination.use("look up the workers that left", ({ sql }) =>
        sql<{ readonly incarnation: bigint }>`
          SELECT incarnation FROM ${workers}
          WHERE replica_set = ${replicaSet} AND state = 'stopped' AND evicted_by IS NULL
            AND incarnation = ANY (${members.map(({ incarnation }) => String(incarnation))}::text[]::bigint[])`),
      (rows) => new Set(rows.map(({ incarnation }) => incarnation))
    )

  const wakeUps: Membership["Service"]["wakeUps"] = Effect.fnUntraced(function*(registration) {
    const queue = yield* Effect.acquireRelease(Queue.sliding<void>(1), Queue.shutdown)
    const messages = yield* listener.subscribe(database.channels.control)
    yield* Stream.fromQueue(messages).pipe(
      Stream.filter((payload) => payload === registration.replicaSet || payload === reconnected),
      Stream.runForEach(() => Queue.offer(queue, undefined)),
      Effect.catchCause((cause) => Effect.logWarning("Wake-ups ended; polling goes on", cause)),
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

  const presenceKey = (replicaSet: string, neighbour: Generation.Member) =>
    Effect.map(
      coordination.use("look up the neighbour", ({ sql }) =>
        sql<{ readonly presence_key: number | null }>`
          SELECT presence_key FROM ${workers}
          WHERE replica_set = ${replicaSet} AND worker_id = ${neighbour.workerId}
            AND incarnation = ${neighbour.incarnation} AND state <> 'stopped'`),
      (rows) => rows[0]?.presence_key ?? undefined
    )

  const watchNeighbour = (replicaSet: string, neighbour: Generation.Member, member: Member) =>
    Effect.gen(function*() {
      // Read again each time, because a process that lost its session may be present under another key.
      const key = yield* presenceKey(replicaSet, neighbour).pipe(
        Effect.retry(Schedule.min([Schedule.exponential("100 millis"), Schedule.spaced("5 seconds")]))
      )
      // There is no lock to wait for: the neighbour has stopped, does not use presence, or runs in this process.
      if (key === undefined || key === presence.own()) return yield* Effect.never
      yield* presence.gone(key)
      wake(member)
      yield* Effect.sleep(goneDelay)
    }).pipe(
      Effect.forever,
      Effect.catchCause((cause) => Effect.logWarning("Watching the neighbour ended; heartbeats go on", cause))
    )

  const watch: Membership["Service"]["watch"] = Effect.fnUntraced(function*(registration, generation) {
    const member = members.get(registration.incarnation)
    if (member === undefined || !database.presence) return
    const neighbour = Generation.neighbour(generation, registration)
    if (neighbour?.incarnation === member.watched) return
    member.watched = neighbour?.incarnation
    if (neighbour === undefined) yield* FiberHandle.clear(member.watching)
    else yield* FiberHandle.run(member.watching, watchNeighbour(registration.replicaSet, neighbour, member))
  })

  return Membership.of({ join, heartbeat, report, departed, wakeUps, watch })
})

const waitsForEarlier = (
  { row, silentForMillis }: CoordinationSession.Observed,
  { rules, workerId }: JoinOptions
): string => {
  const seconds = Math.ceil(Math.max(0, rules.staleWorkerTimeoutMillis - silentForMillis) / 1000)
  return `Worker id "${workerId}" is still registered by process ${row.pid ?? 0} on ${
    row.host ?? "(unknown)"
  }, which has sent no heartbeat for ${
    Math.floor(silentForMillis / 1000)
  } s. Waiting: its registration is stale and will be replaced in ${seconds} s, unless it sends a heartbeat.`
}

/**
 * Whether the worker of an earlier registration under the same id is dead. A frozen one counts as dead when it is
 * stale, even while its session is open.
 */
const isDead = (worker: CoordinationSession.Observed, { rules }: JoinOptions): boolean =>
  worker.ended || worker.silentForMillis > rules.staleWorkerTimeoutMillis ||
  Math.min(worker.missingForMillis ?? 0, worker.silentForMillis) >= justDiedMillis
