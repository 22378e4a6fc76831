/** Writers of the fault tests: through the event store, or as a service that does not use this library. */
import { Effect, Fiber } from "effect"
import { SqlClient } from "effect/sql"
import { EventStore } from "../../src/services/EventStore.ts"
import type * as Projections from "./Projections.ts"

/** Which events to append. */
export interface AppendOptions {
  /** Concurrent transactions. Default 4. */
  readonly writers?: number
  /** Aggregates, divided among the writers. Default 40. */
  readonly aggregates?: number
  /** Events of one aggregate per transaction. Default 5. */
  readonly each?: number
  /**
   * The number of customers. The events of each aggregate belong to them in turn, and every fourth event to none.
   * Default: all events belong to none.
   */
  readonly customers?: number
  /** The version of the events' payloads. Default 1. */
  readonly eventVersion?: number
  /** Prefix of the aggregates' ids. Default `a`. */
  readonly prefix?: string
  /** `sql` writes as a Go service with pupsourcing does, and sends no notification. Default `store`. */
  readonly through?: "sql" | "store"
  /** Makes a worker wait inside the transactions that handle the first event, until `openGate`. */
  readonly hold?: { readonly workerId: string; readonly gate: string }
  /** The gate that the handlers need for an event: of the `n`th event, where all calls of a test are counted. */
  readonly failsUntil?: (n: number) => string | undefined
}

export const make = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const store = yield* EventStore

  const appendThroughSql = Effect.fnUntraced(function*(
    aggregateId: string,
    events: ReadonlyArray<{ readonly payload: string; readonly metadata: string }>
  ) {
    // The statements of pupsourcing's own store: head read, events inserted, head written; no notification.
    const [head] = yield* sql<{ readonly aggregate_version: bigint }>`
      SELECT aggregate_version FROM aggregate_heads
      WHERE bounded_context = 'faults' AND aggregate_type = 'Thing' AND aggregate_id = ${aggregateId}`
    let version = head?.aggregate_version ?? 0n
    for (const { metadata, payload } of events) {
      version++
      yield* sql`
        INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type,
          event_version, payload, metadata)
        VALUES ('faults', 'Thing', ${aggregateId}, ${version}::bigint, gen_random_uuid(), 'Happened', 1,
          convert_to(${payload}, 'UTF8'), ${metadata}::text::jsonb)`
    }
    yield* sql`
      INSERT INTO aggregate_heads (bounded_context, aggregate_type, aggregate_id, aggregate_version, updated_at)
      VALUES ('faults', 'Thing', ${aggregateId}, ${version}::bigint, now())
      ON CONFLICT (bounded_context, aggregate_type, aggregate_id)
      DO UPDATE SET aggregate_version = EXCLUDED.aggregate_version, updated_at = now()`
  }, sql.withTransaction)

  const metadataOf = ({ weight }: typeof Projections.Payload.Type, customers: number) =>
    customers === 0 || weight % 4 === 0 ? {} : { customer: `customer ${weight % customers}` }

  let weight = 0
  const append = Effect.fnUntraced(function*(count: number, options: AppendOptions = {}) {
    const {
      aggregates = 40,
      customers = 0,
      each = 5,
      eventVersion = 1,
      failsUntil = () => undefined,
      hold,
      prefix = "a",
      through = "store",
      writers = 4
    } = options
    let left = count
    const write = Effect.fnUntraced(function*(writer: number) {
      for (let turn = 0; left > 0; turn++) {
        const size = Math.min(each, left)
        left -= size
        // Aggregates are divided among the writers, so that no writer waits for another.
        const aggregateId = `${prefix}-${(writer + turn * writers) % aggregates}`
        const payloads = Array.from({ length: size }, (_, index): typeof Projections.Payload.Type => {
          const gate = failsUntil(++weight)
          return {
            weight: weight % 1000,
            ...(hold !== undefined && writer === 0 && turn === 0 && index === 0 ? { hold } : {}),
            ...(gate === undefined ? {} : { failsUntil: gate })
          }
        })
        yield* through === "sql"
          ? appendThroughSql(
            aggregateId,
            payloads.map((payload) => ({
              payload: JSON.stringify(payload),
              metadata: JSON.stringify(metadataOf(payload, customers))
            }))
          )
          : store.append(payloads.map((payload) => ({
            boundedContext: "faults",
            aggregateType: "Thing",
            aggregateId,
            eventType: "Happened",
            eventVersion,
            payload,
            metadata: metadataOf(payload, customers)
          })))
      }
    })
    yield* Effect.forEach(Array.from({ length: writers }, (_, writer) => writer), write, {
      concurrency: "unbounded",
      discard: true
    })
  })

  /** Appends in the background, a few events every few milliseconds, until the returned effect is run. */
  const load = Effect.fnUntraced(function*(options: AppendOptions & { readonly perSecond: number }) {
    let stopped = false
    const fiber = yield* append(Math.ceil(options.perSecond / 20), options).pipe(
      Effect.andThen(Effect.sleep(50)),
      Effect.repeat({ until: () => stopped }),
      Effect.forkScoped
    )
    return Effect.suspend(() => {
      stopped = true
      return Effect.asVoid(Fiber.join(fiber))
    })
  })

  return { append, load }
})
