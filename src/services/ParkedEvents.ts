/**
 * The store of parked events.
 *
 * The worker that holds a range owns the parked events whose key hash is in the range. Only the owner inserts and
 * removes them, in the transaction of a batch (`CheckpointStore.commit`), so that the fence of the range covers them.
 * Other processes list them and leave requests, which the owner executes.
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type { Held } from "../schema/Checkpoint.ts"
import type { StoreError } from "../schema/Errors.ts"
import type { Event } from "../schema/Event.ts"
import type { HaltRequest, Limits, ParkedEvent, Request, Selection } from "../schema/ParkedEvent.ts"
import type { PartitionKey } from "../schema/PartitionKey.ts"
import type { EpochEnded, Fenced } from "./CheckpointStore.ts"
import type { ServerEpoch } from "./EventStore.ts"
import type { Stores } from "./Stores.ts"

/** Why an event is parked. */
export interface Failure {
  /** How often the handler has failed at the event. */
  readonly attempts: number
  /** Time since it failed first. */
  readonly since: Duration.Duration
  readonly errorTag: string
  /** Reduced to what the database can store, so that it never prevents the write. */
  readonly errorMessage: string
}

/** The requests that the owner of a range can execute now. */
export interface Requests {
  /** Parked events with a request, in position order, at most 100; see `ParkedEvent.executable`. */
  readonly parked: ReadonlyArray<
    Pick<ParkedEvent, "eventId" | "key" | "keyHash" | "position" | "requestedAt"> & {
      readonly request: Request
    }
  >
  /** The request about the event at which the range is halted; undefined if there is none. */
  readonly halt: { readonly request: HaltRequest; readonly eventId: string; readonly position: bigint } | undefined
}

export interface ParkedEvents {
  /**
   * Returns the hashes of the keys in the range that have parked events, and how many events each has. Fails if the range
   * is not held, or another server epoch than the given one is current: the database might lack events that are parked.
   */
  readonly keys: (
    held: Held,
    epoch?: ServerEpoch
  ) => Effect.Effect<ReadonlyMap<number, number>, EpochEnded | Fenced | StoreError>

  /** Returns the requests that concern the range. */
  readonly requests: (held: Held) => Effect.Effect<Requests, StoreError>

  // The next four are called by the owner in the transaction of a batch. Their error is that of the transaction.

  /**
   * Parks events of the range, in position order. Without a failure, they queue behind earlier events of their key. A
   * row that already exists is not changed, and an event that no longer exists is not parked. Returns the hashes of the
   * keys of the events that it has parked. Fails with `ParkingLimitReached` if the projection then has more parked
   * keys or events than permitted; batches of other ranges that commit at the same time are not counted.
   */
  readonly park: (
    held: Held,
    options: {
      readonly events: ReadonlyArray<Event>
      /** The failure of the first event, which is then the only one. */
      readonly failure?: Failure | undefined
      /** The projection's partition key. */
      readonly partitionBy: PartitionKey
      readonly limits: Limits
    }
  ) => Effect.Effect<ReadonlyArray<number>, unknown>

  /** Removes a parked event whose request has been executed. Returns false if it no longer has that request. */
  readonly remove: (
    held: Held,
    options: { readonly position: bigint; readonly request: Request }
  ) => Effect.Effect<boolean, unknown>

  /** Records that a retry has failed, and withdraws the other retries of the event's key. */
  readonly recordFailure: (
    held: Held,
    options: { readonly position: bigint } & Pick<Failure, "errorMessage" | "errorTag">
  ) => Effect.Effect<void, unknown>

  /** Returns whether the range is still halted at the event, with a request to skip it. */
  readonly isSkipRequested: (held: Held, eventId: string) => Effect.Effect<boolean, unknown>

  // The next three are for any process.

  /** Returns the parked events of a projection in position order, after a position, at most `limit` (default all). */
  readonly list: (
    projection: string,
    options?: { readonly after?: bigint | undefined; readonly limit?: number | undefined }
  ) => Effect.Effect<ReadonlyArray<ParkedEvent>, StoreError>

  /**
   * Requests a retry or removal of the selected events, which replaces earlier requests, and returns these events in
   * position order. With `dryRun`, only returns them. Their owners find the request within their `pollInterval`.
   */
  readonly request: (
    projection: string,
    options: {
      readonly request: Request
      readonly selection: Selection
      /** Recorded with the request, for people to read. */
      readonly requestedBy?: string | undefined
      readonly dryRun?: boolean | undefined
    }
  ) => Effect.Effect<ReadonlyArray<ParkedEvent>, StoreError>

  /**
   * Requests that a range that is halted at this event retries or skips it. Returns false if no range of the projection
   * is halted at the event. The request is dropped if the halt ends in another way before it is executed.
   */
  readonly requestOnHalt: (
    projection: string,
    options: { readonly eventId: string; readonly request: HaltRequest }
  ) => Effect.Effect<boolean, StoreError>
}

export const ParkedEvents = Context.Service<Stores, ParkedEvents>(
  "pupsourcing-orchestrator/services/ParkedEvents"
)
