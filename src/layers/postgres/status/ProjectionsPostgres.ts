/** The status of projections, read from PostgreSQL with one statement. */
import * as Effect from "effect/Effect"
import * as LagWindow from "../../../schema/LagWindow.ts"
import * as Status from "../../../schema/Status.ts"
import * as ParkedOperations from "../../../services/ParkedOperations.ts"
import { Projections } from "../../../services/Projections.ts"
import { inTime, quietly } from "../connection/PoolStatement.ts"
import * as Presence from "../coordination/Presence.ts"
import { Database } from "../Database.ts"
import * as SequenceCheck from "../events/SequenceCheck.ts"
import { hashOf, recordedKeyOf } from "../HashSql.ts"
import { literal } from "../migrations/Sql.ts"
import * as ParkedEventsPostgres from "../progress/ParkedEventsPostgres.ts"

export const make: Effect.Effect<Projections["Service"], never, Database> = Effect.gen(function*() {
  const status = read(yield* Database)
  return Projections.of({
    status,
    ...ParkedOperations.make({ parkedEvents: yield* ParkedEventsPostgres.make, status })
  })
})

const read = (database: Database["Service"]) =>
  quietly(database.sql.unsafe<{ readonly part: string }>(statement(database)).unprepared).pipe(
    inTime,
    Effect.map((rows) => Status.make(toReading(...separated(rows.map(({ part }) => JSON.parse(part)))))),
    database.refail("read the status", ["status", "worker"])
  )

/**
 * The result has a row for each projection, because the server sends each row as one message, and the client limits their size. The order of
 * the rows is not defined.
 */
const separated = (parts: ReadonlyArray<Common | Ranges>): readonly [Common, ReadonlyArray<Ranges>] => [
  parts.find((part): part is Common => !isRanges(part))!,
  parts.filter(isRanges)
]

const isRanges = (part: Common | Ranges): part is Ranges => Array.isArray(part)

/** What concerns all ranges. 64-bit numbers are text, and times are milliseconds since 1970. */
interface Common {
  readonly at: number
  readonly head: string
  /** Null on a standby. */
  readonly writers:
    | ReadonlyArray<Nullable<{ readonly pid: number; readonly application: string; readonly since: number }>>
    | null
  readonly generations: ReadonlyArray<{
    readonly replicaSet: string
    readonly generationId: string
    readonly partitions: number
    readonly formedAt: number
  }>
  readonly workers: ReadonlyArray<{
    readonly replicaSet: string
    readonly workerId: string
    readonly incarnation: string
    readonly state: Status.Worker["state"]
    readonly generationId: string | null
    readonly partition: number | null
    readonly projections: ReadonlyArray<string>
    readonly host: string | null
    readonly pid: number | null
    readonly startedAt: number
    readonly silentMillis: number
    readonly isPresent: boolean | null
  }>
  /** The number of events in a window of lag. */
  readonly limit: number
  readonly parked: ReadonlyArray<{
    readonly projection: string
    readonly events: number
    readonly keys: number
    readonly oldest: number
  }>
}

/** Ranges of one projection. Arrays, because the names of members would be most of the text of many ranges. */
type Ranges = readonly [replicaSet: string, projection: string, filter: string, ranges: ReadonlyArray<Range>]

type Range = readonly [
  start: number,
  end: number,
  position: string,
  owner: string | null,
  incarnation: string | null,
  read: number,
  matching: number,
  oldest: number | null,
  windowEnd: number | null,
  changedAt: number,
  halt:
    | {
      readonly since: number
      readonly error: string
      readonly position: string
      readonly eventId: string
      readonly request: Status.Halt["request"] | null
    }
    | null
]

type Nullable<A> = { readonly [K in keyof A]: A[K] | null }

const millis = (time: string): string => `floor(extract(epoch FROM ${time}) * 1000)`

/** The columns that a filter selects by, in the order of `EventFilter.canonical`. */
const filterColumns = ["bounded_context", "aggregate_type", "event_type"]

const namePattern = String.raw`"(?:[^"\\\u0001-\u001f]|\\(?:["\\bfnrt]|u(?!0000)00[01][0-9a-f]))*"`

const listPattern = String.raw`(?:null|\[(?:${namePattern}(?:,${namePattern})*)?\])`

const keyPattern = String.raw`(?:"correlationId"|"boundedContext"|\{"metadata":${namePattern}\})`

/**
 * Matches the texts that `EventFilter.canonical` writes. A recorded text may be any other, for example because it was
 * written by hand, and a conversion of invalid JSON would fail the whole statement.
 */
const canonicalPattern = String.raw`^\[${listPattern},${listPattern},${listPattern}(?:,${keyPattern})?\]$`

/**
 * SQL: the lists of the filter in row `c`, each NULL if it selects everything, as an unreadable filter does; and the
 * partition key, NULL if it is the default. OFFSET keeps it from being evaluated for every event.
 */
const selection = `SELECT ${
  filterColumns.map((column, index) =>
    `CASE WHEN json_typeof(filter.lists->${index}) = 'array'
          THEN ARRAY(SELECT json_array_elements_text(filter.lists->${index})) END AS ${column}`
  ).join(", ")
}, filter.lists->>3 AS partition_by, filter.lists->3->>'metadata' AS member
  FROM (SELECT CASE WHEN c.filter ~ ${literal(canonicalPattern)} THEN c.filter::json END AS lists) AS filter OFFSET 0`

/** SQL: whether event `e` is selected by the lists `f`. */
const isSelected = filterColumns.map((column) => `(f.${column} IS NULL OR e.${column} = ANY (f.${column}))`).join(
  " AND "
)

const hash = hashOf(recordedKeyOf({ partitionBy: "f.partition_by", member: "f.member" }, "e"))

const isInRange = `${hash} >= c.range_start AND ${hash} < c.range_end`

const statement = ({ presence, qualified, ...database }: Database["Service"]): string =>
  `WITH ${SequenceCheck.sources(literal(qualified("events")))},
  head AS (SELECT coalesce(max(global_position), 0) AS position FROM ${qualified("events")}),
  lagging AS (SELECT count(*) AS count FROM ${qualified("checkpoints")} WHERE position < (SELECT position FROM head)),
  lag_window AS (
    SELECT least(${LagWindow.largest}, greatest(${LagWindow.smallest}, ${LagWindow.budget} / greatest(1, count))) AS size
    FROM lagging
  )
  SELECT json_build_object(
    'at', ${millis("clock_timestamp()")},
    'head', (SELECT position::text FROM head),
    'limit', (SELECT size FROM lag_window),
    'writers', (
      SELECT CASE WHEN NOT pg_is_in_recovery() THEN coalesce(json_agg(json_build_object('pid', l.pid, 'application', nullif(a.application_name, ''),
        'since', ${millis("a.xact_start")}) ORDER BY a.xact_start), '[]') END
      FROM sources JOIN pg_catalog.pg_sequence AS s ON s.seqrelid = sources.oid
      JOIN pg_catalog.pg_locks AS l ON ${SequenceCheck.isHeldByWriter}
      LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
    ),
    'generations', (
      SELECT coalesce(json_agg(json_build_object('replicaSet', g.replica_set, 'generationId', g.generation_id::text,
        'partitions', g.total_partitions, 'formedAt', ${millis("g.created_at")})), '[]')
      FROM (
        SELECT DISTINCT ON (replica_set) * FROM ${qualified("generations")}
        ORDER BY replica_set, generation_id DESC
      ) AS g
    ),
    'workers', (
      SELECT coalesce(json_agg(json_build_object('replicaSet', w.replica_set, 'workerId', w.worker_id,
        'incarnation', w.incarnation::text, 'state', w.state, 'generationId', w.generation_id::text, 'partition', nullif(w.partition_key, -1),
        'projections', w.projections, 'host', w.host, 'pid', w.pid, 'startedAt', ${millis("w.started_at")},
        'silentMillis', ${millis("clock_timestamp() - coalesce(h.heartbeat_at, w.started_at)")},
        'isPresent', ${
    presence ? "CASE WHEN w.presence_key IS NOT NULL AND NOT pg_is_in_recovery() THEN p.key IS NOT NULL END" : "NULL"
  })
        ORDER BY w.started_at, w.incarnation), '[]')
      FROM ${qualified("workers")} AS w
      LEFT JOIN ${qualified("heartbeats")} AS h ON h.replica_set = w.replica_set AND h.worker_id = w.worker_id
        AND h.incarnation = w.incarnation
      LEFT JOIN (${Presence.presentKeys({ presence, qualified, ...database })}) AS p ON p.key = w.presence_key
      WHERE w.state <> 'stopped'
    ),
    'parked', (
      SELECT coalesce(json_agg(json_build_object('projection', p.projection_name, 'events', p.events, 'keys', p.keys,
        'oldest', ${millis("p.oldest")})), '[]')
      FROM (
        SELECT projection_name, count(*) AS events, count(DISTINCT key) AS keys, min(parked_at) AS oldest
        FROM ${qualified("parkedEvents")} GROUP BY projection_name
      ) AS p
    )
  )::text AS part
  UNION ALL
  SELECT json_build_array(c.replica_set, c.projection_name, c.filter, json_agg(json_build_array(
    c.range_start, c.range_end, c.position::text, c.worker_id, c.incarnation::text, n.read, n.matching, ${
    millis("n.oldest")
  },
    CASE WHEN n.matching = 0 AND n.last < (SELECT position FROM head) THEN (
      SELECT ${millis("e.created_at")} FROM ${qualified("events")} AS e WHERE e.global_position = n.last) END,
    ${millis("c.updated_at")},
    CASE WHEN c.halted_since IS NOT NULL THEN json_build_object('since', ${millis("c.halted_since")},
      'error', coalesce(c.halted_error, ''), 'position', coalesce(c.halted_position, 0)::text,
      'eventId', coalesce(c.halted_event_id, ''), 'request', c.halted_request) END
  )))::text
  FROM ${qualified("checkpoints")} AS c
  CROSS JOIN LATERAL (${selection}) AS f
  CROSS JOIN LATERAL (
    SELECT count(*) AS read, count(*) FILTER (WHERE matching) AS matching,
      min(created_at) FILTER (WHERE matching) AS oldest, max(global_position) AS last
    FROM (
      SELECT e.global_position, e.created_at, ${isSelected} AND ${isInRange} AS matching
      FROM ${qualified("events")} AS e WHERE e.global_position > c.position
      ORDER BY e.global_position LIMIT (SELECT size FROM lag_window)
    ) AS following
  ) AS n
  GROUP BY c.replica_set, c.projection_name, c.filter`

const optional = <K extends string, A, B>(key: K, value: A | null | undefined, convert: (value: A) => B) =>
  (value === null || value === undefined ? {} : { [key]: convert(value) }) as { readonly [P in K]?: B }

const same = <A>(value: A): A => value
const date = (millis: number): Date => new Date(millis)

const toReading = (
  { at, generations, head, limit, parked, workers, writers }: Common,
  ranges: ReadonlyArray<Ranges>
): Status.Reading => ({
  at: date(at),
  head: BigInt(head),
  ...optional("openWriters", writers, (writers) =>
    writers.map(({ application, pid, since }) => ({
      ...optional("pid", pid, same),
      ...optional("application", application, same),
      ...optional("since", since, date)
    }))),
  generations: generations.map((generation) => ({
    ...generation,
    generationId: BigInt(generation.generationId),
    formedAt: date(generation.formedAt)
  })),
  workers: workers.map(({ generationId, host, isPresent, partition, pid, ...worker }) => ({
    ...worker,
    incarnation: BigInt(worker.incarnation),
    startedAt: date(worker.startedAt),
    ...optional("generationId", generationId, BigInt),
    ...optional("partition", partition, same),
    ...optional("host", host, same),
    ...optional("pid", pid, same),
    ...optional("isPresent", isPresent, same)
  })),
  rows: ranges.flatMap(([replicaSet, projection, filter, ranges]) =>
    ranges.map(([start, end, position, owner, incarnation, read, matching, oldest, windowEnd, changedAt, halt]) => ({
      replicaSet,
      projection,
      filter,
      start,
      end,
      position: BigInt(position),
      owner: owner === null || incarnation === null ? undefined : { workerId: owner, incarnation: BigInt(incarnation) },
      window: { read, limit, matching, ...optional("oldest", oldest, date), ...optional("end", windowEnd, date) },
      changedAt: date(changedAt),
      ...optional("halt", halt, ({ request, ...halt }): Status.Halt => ({
        ...halt,
        since: date(halt.since),
        position: BigInt(halt.position),
        ...optional("request", request, same)
      }))
    }))
  ),
  parked: parked.map(({ oldest, ...rest }) => ({ ...rest, oldest: date(oldest) }))
})
