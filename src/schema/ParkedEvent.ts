/**
 * Parked events: events that a projection's handler could not handle, and the later events with the same key, which
 * queue behind them so that the order of the key is preserved.
 *
 * @since 0.1.0
 */

/**
 * An event that a projection has parked.
 *
 * @category models
 * @since 0.1.0
 */
export interface ParkedEvent {
  readonly projection: string
  /** The event's global position. Parked events of one key are retried in this order. */
  readonly position: bigint
  /** The key that determines the event's order for this projection: its aggregate id, unless `partitionBy` is set. */
  readonly key: string
  readonly keyHash: number
  readonly eventId: string
  readonly eventType: string
  readonly aggregateType: string
  readonly aggregateId: string
  readonly aggregateVersion: bigint
  /** By the database's clock, like the other times. */
  readonly parkedAt: Date
  /** How often the handler has failed at this event; 0 for an event that queues behind another one of its key. */
  readonly attempts: number
  readonly firstAttemptAt: Date | undefined
  readonly lastAttemptAt: Date | undefined
  /** The tag or name of the last error. */
  readonly errorTag: string | undefined
  /** The last error, in the form in which a halt records it; never the payload. */
  readonly errorMessage: string | undefined
  /** The request to the worker that owns the event's range; absent if there is none. */
  readonly request: Request | undefined
  readonly requestedAt: Date | undefined
  readonly requestedBy: string | undefined
}

/**
 * What can be done with a parked event: the handler is called for it again, or it is removed without being handled.
 *
 * @category models
 * @since 0.1.0
 */
export type Request = "retry" | "drop"

/**
 * What can be done with the event at which a range is halted: its handler is called again, or the range continues after
 * the event without handling it.
 *
 * @category models
 * @since 0.1.0
 */
export type HaltRequest = "retry" | "skip"

/**
 * Selects parked events of a projection:
 *
 * - `"all"`.
 * - `key`: the events of one key.
 * - `errorTag`: the events whose last error has this tag. A retry selects all parked events of their keys.
 * - `first`: this many events with the lowest positions.
 *
 * @category models
 * @since 0.1.0
 */
export type Selection =
  | "all"
  | { readonly key: string }
  | { readonly errorTag: string }
  | { readonly first: number }

/**
 * How many keys and events a projection may have parked before it halts instead.
 *
 * @category models
 * @since 0.1.0
 */
export interface Limits {
  readonly keys: number
  readonly events: number
}

/**
 * The limits of a projection that sets none.
 *
 * @category models
 * @since 0.1.0
 */
export const defaultLimits: Limits = { keys: 1000, events: 10_000 }

/**
 * Returns the selected events, in position order. `events` are all parked events of a projection in this order.
 *
 * @category utils
 * @since 0.1.0
 */
export const select = <E extends Pick<ParkedEvent, "errorTag" | "key">>(
  events: ReadonlyArray<E>,
  selection: Selection,
  request: Request
): ReadonlyArray<E> => {
  if (selection === "all") return events
  if ("first" in selection) return events.slice(0, selection.first)
  if ("key" in selection) return events.filter(({ key }) => key === selection.key)
  const failed = events.filter(({ errorTag }) => errorTag === selection.errorTag)
  if (request === "drop") return failed
  const keys = new Set(failed.map(({ key }) => key))
  return events.filter(({ key }) => keys.has(key))
}

/**
 * Returns the requests that can be executed now, in position order: every `drop`, and each `retry` of an event that has
 * no earlier event of its key without a request. `events` are in position order.
 *
 * @category utils
 * @since 0.1.0
 */
export const executable = <E extends Pick<ParkedEvent, "key" | "request">>(
  events: ReadonlyArray<E>
): ReadonlyArray<E> => {
  const blocked = new Set<string>()
  return events.filter(({ key, request }) => {
    if (request === undefined) blocked.add(key)
    return request === "drop" || (request === "retry" && !blocked.has(key))
  })
}
