/**
 * Registers a worker. If another worker is registered under its id, the registration waits: the next heartbeat of that
 * worker proves that the id is in use; without one, it is replaced once it counts as dead.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as SqlError from "effect/sql/SqlError"
import * as Os from "node:os"
import { WorkerIdInUse } from "../../../schema/Errors.ts"
import { ascii } from "../../../schema/Text.ts"
import * as Worker from "../../../schema/Worker.ts"
import type { JoinOptions } from "../../../services/Membership.ts"
import { waitForServer } from "../../../services/worker/Startup.ts"
import type { Database } from "../Database.ts"
import type { CoordinationSession, OpenedSession } from "./CoordinationSession.ts"
import type { Observed, Reading } from "./Observations.ts"
import type { Presence } from "./Presence.ts"

/** What the registrations of this process share. */
export interface Registrar {
  readonly database: Database["Service"]
  readonly presence: Presence["Service"]
  readonly coordination: CoordinationSession["Service"]
  /** Incarnations registered by this process with an unknown commit outcome; no worker runs under them. */
  readonly orphans: Set<bigint>
}

/** How often the earlier registration is checked. */
const earlierPoll = Duration.millis(100)

/** The host of this process. It is informational, so a character that cannot be stored must not prevent the registration. */
const host = (): string => ascii(Os.hostname())

type Restore = <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

type Attempt =
  | { readonly _tag: "Registered"; readonly registration: Worker.Registration }
  | { readonly _tag: "Earlier"; readonly earlier: Observed }

/**
 * Registers the worker as soon as no live worker has its id. Uninterruptible except in its waits (`restore`), so that
 * the caller always receives a registration that was created.
 */
export const register = Effect.fnUntraced(function*(
  self: Registrar,
  options: JoinOptions,
  key: number | undefined,
  restore: Restore
) {
  while (true) {
    const result = yield* attempt(self, options, key)
    if (result._tag === "Registered") return result.registration
    yield* awaitEarlier(self, options, result.earlier, restore)
  }
})

/** Registers the worker, or returns the earlier registration under its id if that must not be replaced. */
const attempt = (self: Registrar, options: JoinOptions, key: number | undefined) => {
  const { coordination, orphans } = self
  const made = new Set<bigint>()
  let abandoned = false
  return coordination.exclusively(
    "register the worker",
    options.replicaSet,
    Effect.fnUntraced(function*(opened): Effect.fn.Return<Attempt, SqlError.SqlError> {
      const earlier = yield* readEarlier(self, opened, options)
      if (earlier !== undefined && !isReplaceable(self, earlier, options)) {
        return { _tag: "Earlier", earlier }
      }
      const registration = yield* insert(self, opened, options, key)
      // Recorded before the row becomes visible, so that no worker of this process ever considers it ended.
      // An attempt that continues after its caller has given up belongs to no worker; if it commits, it has ended.
      if (abandoned) orphans.add(registration.incarnation)
      else {
        coordination.members.add(registration.incarnation)
        made.add(registration.incarnation)
      }
      return { _tag: "Registered", registration }
    })
  ).pipe(
    Effect.tap((result) =>
      result._tag === "Registered"
        ? correctPresenceKey(self, result.registration.incarnation, key)
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

const readEarlier = Effect.fnUntraced(function*(
  { coordination }: Registrar,
  opened: OpenedSession,
  options: JoinOptions
) {
  const { sql } = opened
  const askedAt = yield* Clock.monotonicTimeNanos
  const [row] = yield* sql<{ readonly reading: Reading }>`
    SELECT ${
    coordination.reading(
      sql`w.replica_set = ${options.replicaSet} AND w.worker_id = ${options.workerId} AND w.state <> 'stopped'`
    )
  } AS reading`
  const observed = yield* coordination.observe(opened, row!.reading, askedAt)
  return observed[0]
})

const insert = Effect.fnUntraced(function*(
  { database }: Registrar,
  { sql }: OpenedSession,
  { projections, replicaSet, workerId }: JoinOptions,
  key: number | undefined
) {
  const rows = yield* sql<{ readonly incarnation: bigint; readonly started_at: Date }>`
    WITH worker AS (
      INSERT INTO ${database.table("workers")}
        (replica_set, worker_id, incarnation, state, projections, presence_key, host, pid)
      VALUES (${replicaSet}, ${workerId}, nextval(${database.qualified("incarnations")}::text::regclass), 'pending',
        ${JSON.stringify(projections)}::jsonb, ${key ?? null}::int4, ${host()}, ${process.pid}::int4)
      ON CONFLICT (replica_set, worker_id) DO UPDATE SET
        incarnation = EXCLUDED.incarnation, generation_id = NULL, partition_key = -1, state = 'pending',
        projections = EXCLUDED.projections, presence_key = EXCLUDED.presence_key, host = EXCLUDED.host,
        pid = EXCLUDED.pid, started_at = clock_timestamp(), stopped_at = NULL, evicted_by = NULL
      RETURNING incarnation, started_at
    ), heartbeat AS (
      INSERT INTO ${database.table("heartbeats")} (replica_set, worker_id, incarnation, heartbeat_at)
      SELECT ${replicaSet}, ${workerId}, incarnation, clock_timestamp() FROM worker
      ON CONFLICT (replica_set, worker_id) DO UPDATE SET
        incarnation = EXCLUDED.incarnation, heartbeat_at = EXCLUDED.heartbeat_at
    )
    SELECT incarnation, started_at FROM worker`
  const { incarnation, started_at: startedAt } = rows[0]!
  return { replicaSet, workerId, incarnation, startedAt, projections }
})

/** Updates the row's presence key if this process's key has changed since the row was written. */
const correctPresenceKey = Effect.fnUntraced(function*(
  { coordination, database, presence }: Registrar,
  incarnation: bigint,
  written: number | undefined
) {
  let key = written
  while (key !== presence.own() && presence.own() !== undefined) {
    key = presence.own()
    yield* coordination.use("register the worker", ({ sql }) =>
      sql`
        UPDATE ${database.table("workers")} SET presence_key = ${key ?? null}::int4 WHERE incarnation = ${incarnation}`)
  }
})

/**
 * Waits until the earlier registration can be replaced or has ended. Fails if it sends a heartbeat meanwhile: its
 * process may have died although its session still exists, for example when its host has lost power, so only a
 * heartbeat proves that it is alive.
 */
const awaitEarlier = Effect.fnUntraced(function*(
  self: Registrar,
  options: JoinOptions,
  first: Observed,
  restore: Restore
) {
  let hasLogged = false
  let earlier: Observed | undefined = first
  while (earlier?.incarnation === first.incarnation && !isReplaceable(self, earlier, options)) {
    const isOfThisProcess = self.coordination.members.has(earlier.incarnation)
    if (isOfThisProcess || earlier.row.beat !== first.row.beat) return yield* inUse(earlier, options)
    // A registration whose process has just died delays this only briefly.
    if (!hasLogged && earlier.missingForMillis === undefined) {
      hasLogged = true
      yield* Effect.logWarning(waitsForEarlier(earlier, options))
    }
    const read = self.coordination.use(
      "look at the earlier registration",
      (opened) => readEarlier(self, opened, options)
    )
    // The wait is long, so the time limit of an outage counts from each poll, not from the start of the worker.
    earlier = yield* restore(Effect.andThen(Effect.sleep(earlierPoll), waitForServer(read)))
  }
})

/** Any absence counts, also one that would not be evidence for an eviction, because the grace is longer. */
const signsOf = ({ missingForMillis, silentForMillis }: Observed): Worker.SignsOfLife => ({
  silentForMillis,
  absentForMillis: missingForMillis
})

/** A registration of this process that has ended, or that was never used, can be replaced at once. */
const isReplaceable = ({ orphans }: Registrar, earlier: Observed, { rules }: JoinOptions): boolean =>
  earlier.ended || orphans.has(earlier.incarnation) || Worker.isReplaceable(signsOf(earlier), rules)

const inUse = ({ row, startedAt }: Observed, { replicaSet, workerId }: JoinOptions): WorkerIdInUse =>
  new WorkerIdInUse({ replicaSet, workerId, host: row.host ?? "(unknown)", pid: row.pid ?? 0, since: startedAt })

const waitsForEarlier = (earlier: Observed, { rules, workerId }: JoinOptions): string => {
  const { row: { host, pid }, silentForMillis } = earlier
  const silent = Math.floor(silentForMillis / 1000)
  const seconds = Math.max(0, Math.ceil(Worker.millisUntilReplaceable(signsOf(earlier), rules) / 1000))
  return `Worker id "${workerId}" is still registered by process ${pid ?? 0} on ${
    host ?? "(unknown)"
  }, which has sent no heartbeat for ${silent} s. Waiting: its registration is stale and will be replaced in ${seconds} s, unless it sends a heartbeat.`
}
