/**
 * Projections whose read models reveal every mistake, and the contents that their read models must have for the given
 * events.
 *
 * `per_aggregate` keeps the last version and the count of each aggregate and refuses any version but the next one, so a
 * skipped, duplicated or reordered event is detected at once. `shared_totals` keeps a few rows that all aggregates
 * share: sums that a lost or duplicated update makes wrong. `journal` writes a line for every event and refuses
 * nothing: it shows which event was lost, duplicated or out of order. `at_least_once` does the same outside of a
 * transaction, so its lines may be repeated. `per_customer` has the customer as its partition key, and reads, computes
 * and writes a row without a lock. `Search.ts` has `search`. Each can be run several times under names like
 * `per_aggregate/2`.
 */
import { Console, Data, Effect, Result, Schedule, Schema } from "effect"
import { SqlClient } from "effect/sql"
import * as Event from "../../src/schema/Event.ts"
import * as EventSet from "../../src/services/EventSet.ts"
import * as Projection from "../../src/services/Projection.ts"
import * as HeldStatements from "./HeldStatements.ts"

/** Events differ in weight, so that swapping two of them makes the totals wrong too. */
export const Payload = Schema.Struct({
  weight: Schema.Int,
  /**
   * Makes one worker wait in the middle of its batch's transaction, after it has written the event, until the gate is
   * open.
   */
  hold: Schema.optionalKey(Schema.Struct({ workerId: Schema.String, gate: Schema.String })),
  /** Makes the handler fail with a typed error until this gate is open. */
  failsUntil: Schema.optionalKey(Schema.String)
})

/** How a projection differs from the default one. */
export const Options = Schema.Struct({
  onFailure: Schema.optionalKey(Schema.Literals(["halt", "park", "skip"])),
  concurrency: Schema.optionalKey(Schema.Int),
  /** Whether the events of a batch are handled by one call. */
  isBatch: Schema.optionalKey(Schema.Boolean)
})

/** Shared rows. The version selects one, so that every aggregate writes to all of them. */
export const buckets = 3

export const tables = [
  `CREATE TABLE per_aggregate (
    projection text, aggregate_id text, version bigint NOT NULL, events bigint NOT NULL, PRIMARY KEY (projection, aggregate_id)
  )`,
  `CREATE TABLE shared_totals (
    projection text, bucket bigint, events bigint NOT NULL, weight bigint NOT NULL, PRIMARY KEY (projection, bucket)
  )`,
  `CREATE TABLE per_customer (
    projection text, customer text, events bigint NOT NULL, weight bigint NOT NULL, position bigint NOT NULL,
    PRIMARY KEY (projection, customer)
  )`,
  `CREATE TABLE journal (
    seq bigserial PRIMARY KEY, projection text NOT NULL, worker text NOT NULL, aggregate_id text NOT NULL,
    version bigint NOT NULL, position bigint NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp()
  )`,
  `CREATE INDEX ON journal (position)`,
  ...["products", "products_unfenced"].map((name) =>
    `CREATE TABLE ${name} (id text PRIMARY KEY, changes int, position bigint)`
  ),
  `CREATE TABLE refusals (
    at timestamptz NOT NULL DEFAULT clock_timestamp(), worker text NOT NULL, projection text NOT NULL, aggregate_id text NOT NULL,
    version bigint NOT NULL, position bigint NOT NULL, late boolean NOT NULL
  )`,
  `CREATE TABLE open_gates (gate text PRIMARY KEY)`,
  ...HeldStatements.definitions
]

/** The event is not the next one of its aggregate. */
export class Refused extends Data.TaggedError("Refused")<{ readonly message: string }> {}

/** The gate of the event is closed. */
export class GateClosed extends Data.TaggedError("GateClosed")<{ readonly message: string }> {}

const kinds = ["per_aggregate", "shared_totals", "per_customer", "journal", "at_least_once", "search"] as const

/** The table that a projection of this name keeps. */
export const kindOf = (name: string): typeof kinds[number] => {
  const kind = kinds.find((kind) => name.split("/")[0] === kind)
  if (kind === undefined) throw new Error(`No projection is called ${name}`)
  return kind
}

/** Whether the read model counts its events, each of them once. */
export const isCounted = (name: string): boolean =>
  ["per_aggregate", "shared_totals", "per_customer"].includes(kindOf(name))

/** Waits until the gate is open. */
export const pass = Effect.fnUntraced(function*(
  name: string,
  { globalPosition }: Event.Event,
  { gate, outside }: { readonly gate: string; readonly outside: SqlClient.SqlClient }
) {
  yield* Console.log(`holding ${name} at ${globalPosition}`)
  yield* outside`SELECT FROM open_gates WHERE gate = ${gate}`.pipe(
    Effect.repeat({ until: (rows) => rows.length > 0, schedule: Schedule.spaced("20 millis") })
  )
  yield* Console.log(`let go ${name} at ${globalPosition}`)
})

const customerOf = ({ aggregateId, metadata }: Event.Event): string =>
  (metadata as { readonly customer?: string } | null)?.customer ?? aggregateId

/** `outside` is a separate client: what it records remains when the batch rolls back. */
export const make = (
  name: string,
  options: { readonly workerId: string; readonly delayMillis: number; readonly outside: SqlClient.SqlClient },
  { isBatch = false, ...ofProjection }: typeof Options.Type = {}
) => {
  const { outside, workerId } = options
  const isRepeatable = kindOf(name) === "at_least_once"

  /**
   * The refusal is late, and harmless, if progress has already passed the event. Then the batch belongs to a worker
   * that was replaced without noticing it yet, and the fence will refuse it.
   */
  const refuse = Effect.fnUntraced(function*(event: Event.Event, key = event.aggregateId) {
    yield* outside`
      INSERT INTO refusals (worker, projection, aggregate_id, version, position, late)
      SELECT ${workerId}, ${name}, ${event.aggregateId}, ${event.aggregateVersion}::bigint, ${event.globalPosition}::bigint,
        EXISTS (
          SELECT FROM orchestrator_checkpoints c
          WHERE c.projection_name = ${name} AND c.position >= ${event.globalPosition}::bigint
            AND (hashtext(${key}::text COLLATE "C")::int8 & 4294967295) >= c.range_start
            AND (hashtext(${key}::text COLLATE "C")::int8 & 4294967295) < c.range_end
        )`
    return yield* new Refused({
      message:
        `version ${event.aggregateVersion} of ${event.aggregateId} at ${event.globalPosition} is not the next one`
    })
  })

  const perAggregate = Effect.fnUntraced(function*(event: Event.Event) {
    const sql = yield* SqlClient.SqlClient
    const { aggregateId, aggregateVersion } = event
    const written = aggregateVersion === 1n
      ? yield* sql`
        INSERT INTO per_aggregate (projection, aggregate_id, version, events) VALUES (${name}, ${aggregateId}, 1, 1)
        ON CONFLICT DO NOTHING RETURNING 1`
      : yield* sql`
        UPDATE per_aggregate SET version = ${aggregateVersion}::bigint, events = events + 1
        WHERE projection = ${name} AND aggregate_id = ${aggregateId} AND version = ${aggregateVersion - 1n}::bigint
        RETURNING 1`
    if (written.length === 0) return yield* refuse(event)
  })

  const sharedTotals = Effect.fnUntraced(function*(event: Event.Event, weight: number) {
    const sql = yield* SqlClient.SqlClient
    yield* sql`
      INSERT INTO shared_totals AS t (projection, bucket, events, weight)
      VALUES (${name}, ${event.aggregateVersion % BigInt(buckets)}::bigint, 1, ${weight}::bigint)
      ON CONFLICT (projection, bucket) DO UPDATE SET events = t.events + 1, weight = t.weight + EXCLUDED.weight`
  })

  const perCustomer = Effect.fnUntraced(function*(event: Event.Event, weight: number) {
    const sql = yield* SqlClient.SqlClient
    const customer = customerOf(event)
    const [row] = yield* sql<{ readonly events: bigint; readonly weight: bigint; readonly position: bigint }>`
      SELECT events, weight, position FROM per_customer WHERE projection = ${name} AND customer = ${customer}`
    if (row !== undefined && row.position >= event.globalPosition) return yield* refuse(event, customer)
    const after = { events: (row?.events ?? 0n) + 1n, weight: (row?.weight ?? 0n) + BigInt(weight) }
    // Between two workers, this overwrites what the other one has written since the row was read.
    yield* sql`
      INSERT INTO per_customer (projection, customer, events, weight, position)
      VALUES (${name}, ${customer}, ${after.events}::bigint, ${after.weight}::bigint, ${event.globalPosition}::bigint)
      ON CONFLICT (projection, customer)
      DO UPDATE SET events = EXCLUDED.events, weight = EXCLUDED.weight, position = EXCLUDED.position`
  })

  const journal = Effect.fnUntraced(function*(event: Event.Event) {
    const sql = yield* SqlClient.SqlClient
    yield* sql`
      INSERT INTO journal (projection, worker, aggregate_id, version, position)
      VALUES (${name}, ${workerId}, ${event.aggregateId}, ${event.aggregateVersion}::bigint, ${event.globalPosition}::bigint)`
  })

  const write = Effect.fnUntraced(function*(event: Event.Event, weight: number) {
    switch (kindOf(name)) {
      case "per_aggregate":
        yield* perAggregate(event)
        // Only in this projection: shared rows make the workers wait for each other, and all the delays would add up.
        if (options.delayMillis > 0) yield* Effect.sleep(options.delayMillis)
        break
      case "shared_totals":
        yield* sharedTotals(event, weight)
        break
      case "per_customer":
        yield* perCustomer(event, weight)
        break
      default:
        yield* journal(event)
        break
    }
  })

  const failIfClosed = Effect.fnUntraced(function*(gate: string) {
    const open = yield* outside`SELECT FROM open_gates WHERE gate = ${gate}`
    if (open.length === 0) return yield* new GateClosed({ message: `gate "${gate}" is closed` })
  })

  const handle = Effect.fnUntraced(function*(event: Event.Event) {
    const { failsUntil, hold, weight } = yield* Event.json(event, Payload)
    const fail = failsUntil === undefined ? Effect.void : failIfClosed(failsUntil)
    // A line that is not rolled back would also count for an event that is lost after its failure.
    if (isRepeatable) yield* fail
    yield* write(event, weight)
    if (!isRepeatable) yield* fail
    if (hold?.workerId === workerId) yield* pass(name, event, { gate: hold.gate, outside })
  })

  const common: Projection.CommonOptions = {
    ...ofProjection,
    partitionBy: kindOf(name) === "per_customer" ? { metadata: "customer" } : "aggregateId",
    delivery: isRepeatable ? "at-least-once" : "exactly-once"
  }
  return isBatch
    ? Projection.make(name, { ...common, handleBatch: (events) => Effect.forEach(events, handle, { discard: true }) })
    : Projection.make(name, { ...common, handle })
}

/** The projection with an event set that declares versions up to `newest`. Every event must decode before it is handled. */
export const decoding = <E, R>(projection: Projection.Projection<E, R>, newest: number) => {
  const Things = EventSet.make({
    Happened: {
      version: newest,
      payload: Payload,
      upcast: Object.fromEntries(Array.from({ length: newest - 1 }, (_, index) => [index + 1, (old: unknown) => old]))
    }
  }, { boundedContext: "faults", aggregateType: "Thing" })
  return Projection.make(projection.name, Things, {
    handle: (event) => {
      const payload = Result.getOrThrow(Event.encodePayload(event.payload))
      return Projection.handle(projection, [{ ...event, payload }])
    }
  })
}

/**
 * SQL that returns a row for each difference between a projection's read model and the fold of the events. The
 * differences of a journal are an event without a line, with more than one line, or after a later event of its
 * aggregate; if its lines may be repeated, an event without a line, or before an earlier event of its aggregate.
 */
export const difference = (name: string): string => {
  switch (kindOf(name)) {
    case "per_aggregate":
      return `SELECT aggregate_id AS what, concat_ws(' ', e.version, e.events) AS fold, concat_ws(' ', p.version, p.events) AS found
        FROM (
          SELECT aggregate_id, max(aggregate_version) AS version, count(*) AS events FROM events GROUP BY aggregate_id
        ) e
        FULL JOIN (SELECT * FROM per_aggregate WHERE projection = '${name}') p USING (aggregate_id)
        WHERE (e.version, e.events) IS DISTINCT FROM (p.version, p.events)`
    case "shared_totals":
      return `SELECT bucket::text AS what, concat_ws(' ', e.events, e.weight) AS fold, concat_ws(' ', t.events, t.weight) AS found
        FROM (
          SELECT aggregate_version % ${buckets} AS bucket, count(*) AS events,
            sum((convert_from(payload, 'UTF8')::jsonb ->> 'weight')::bigint) AS weight
          FROM events GROUP BY 1
        ) e
        FULL JOIN (SELECT * FROM shared_totals WHERE projection = '${name}') t USING (bucket)
        WHERE (e.events, e.weight) IS DISTINCT FROM (t.events, t.weight::numeric)`
    case "per_customer":
      return `SELECT customer AS what, concat_ws(' ', e.events, e.weight, e.position) AS fold,
          concat_ws(' ', c.events, c.weight, c.position) AS found
        FROM (
          SELECT coalesce(metadata ->> 'customer', aggregate_id) AS customer, count(*) AS events,
            sum((convert_from(payload, 'UTF8')::jsonb ->> 'weight')::bigint) AS weight, max(global_position) AS position
          FROM events GROUP BY 1
        ) e
        FULL JOIN (SELECT * FROM per_customer WHERE projection = '${name}') c USING (customer)
        WHERE (e.events, e.weight, e.position) IS DISTINCT FROM (c.events, c.weight::numeric, c.position)`
    case "search":
      return `SELECT aggregate_id AS what, concat_ws(' ', e.events, e.position) AS fold, concat_ws(' ', p.changes, p.position) AS found
        FROM (
          SELECT aggregate_id, count(*) AS events, max(global_position) AS position FROM events GROUP BY aggregate_id
        ) e
        FULL JOIN ${productsOf(name)} p ON p.id = e.aggregate_id
        WHERE (e.events, e.position) IS DISTINCT FROM (p.changes::bigint, p.position)`
    case "journal":
      return `${journalLines(name)} ${lostOrInvented}
        UNION ALL
        SELECT 'doubled', concat_ws(' ', min(aggregate_id), min(version), 'at', position), count(*) || ' times'
        FROM lines GROUP BY position HAVING count(*) > 1
        UNION ALL
        SELECT 'reordered', concat_ws(' ', aggregate_id, version, 'at', position), 'after ' || previous
        FROM lines WHERE version < previous`
    case "at_least_once":
      return `${journalLines(name)} ${lostOrInvented}
        UNION ALL
        SELECT 'early', concat_ws(' ', aggregate_id, version, 'at', position), 'after ' || coalesce(reached, 0)
        FROM lines WHERE version > coalesce(reached, 0) + 1`
  }
}

/** The table of a `search` projection. */
export const productsOf = (name: string): string => name === "search" ? "products" : "products_unfenced"

/** SQL: the lines of a journal, with the version before and the highest version before of its aggregate. */
const journalLines = (name: string): string =>
  `WITH lines AS (
    SELECT *, lag(version) OVER in_order AS previous,
      max(version) OVER (in_order ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS reached
    FROM journal WHERE projection = '${name}' WINDOW in_order AS (PARTITION BY aggregate_id ORDER BY seq)
  )`

const lostOrInvented =
  `SELECT 'lost' AS what, concat_ws(' ', e.aggregate_id, e.aggregate_version, 'at', e.global_position) AS fold, '' AS found
  FROM events e LEFT JOIN lines l ON l.position = e.global_position
  WHERE (l.aggregate_id, l.version) IS DISTINCT FROM (e.aggregate_id, e.aggregate_version)
  UNION ALL
  SELECT 'invented', '', concat_ws(' ', l.aggregate_id, l.version, 'at', l.position)
  FROM lines l LEFT JOIN events e ON e.global_position = l.position WHERE e.global_position IS NULL`
