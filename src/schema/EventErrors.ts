/** The errors of appending, reading and decoding events. */
import * as Schema from "effect/Schema"
import { id } from "./ErrorId.ts"

/**
 * The aggregate is not at the version that the append expected; nothing was appended. Repeating the same append does
 * not help. The caller reads the stream again and decides again; nothing else has to be fixed.
 *
 * @category errors
 * @since 0.1.0
 */
export class ConcurrencyConflict extends Schema.TaggedError<ConcurrencyConflict>(id("ConcurrencyConflict"))(
  "ConcurrencyConflict",
  {
    boundedContext: Schema.String,
    aggregateType: Schema.String,
    aggregateId: Schema.String,
    expected: Schema.String,
    /** The last version found; absent if only a violated constraint revealed a concurrent append. */
    actual: Schema.optionalKey(Schema.BigInt)
  }
) {
  override get message(): string {
    return `${this.aggregateType} "${this.aggregateId}" was expected at version ${this.expected} but ${
      this.actual === undefined ? "was appended to at the same time" : `is at version ${this.actual}`
    }. Read the stream again and repeat the decision.`
  }
}

/**
 * An event with this id is already stored. When an append is retried with the same `eventId`s, this means that the
 * earlier attempt was committed, and nothing has to be fixed. Otherwise a retry does not help, and the caller gives
 * each event its own id. It is reported in preference to `ConcurrencyConflict`.
 *
 * @category errors
 * @since 0.1.0
 */
export class DuplicateEvent extends Schema.TaggedError<DuplicateEvent>(id("DuplicateEvent"))("DuplicateEvent", {
  detail: Schema.String
}) {
  override get message(): string {
    return `An event with the same id is already stored: ${this.detail}. If this append repeats an earlier one, that one was committed; otherwise give each event a UUID of its own.`
  }
}

/**
 * The events cannot be appended as given; nothing was sent to the database. A retry does not help. The caller corrects
 * the events.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidEvents extends Schema.TaggedError<InvalidEvents>(id("InvalidEvents"))("InvalidEvents", {
  problem: Schema.String
}) {
  override get message(): string {
    return this.problem
  }
}

/**
 * An event is larger than the client can receive, which halts the ranges that would receive it. A retry does not help
 * until `maxMessageSize` of `PgClient` is raised in the configuration and the worker restarted.
 *
 * @category errors
 * @since 0.1.0
 */
export class EventTooLarge extends Schema.TaggedError<EventTooLarge>(id("EventTooLarge"))("EventTooLarge", {
  position: Schema.BigInt,
  eventId: Schema.String,
  aggregateId: Schema.String,
  aggregateType: Schema.optionalKey(Schema.String),
  aggregateVersion: Schema.optionalKey(Schema.BigInt),
  eventType: Schema.optionalKey(Schema.String),
  bytes: Schema.Int,
  limit: Schema.Int,
  /** The event's key, if it can be read and the read used a partition key other than the aggregate id. */
  key: Schema.optionalKey(Schema.String),
  /** The server epoch in which it was read. */
  epoch: Schema.optionalKey(Schema.String)
}) {
  override get message(): string {
    return `The event at position ${this.position} (${this.eventId}) has ${this.bytes} bytes, more than the ${this.limit} that the client receives. Raise maxMessageSize of PgClient.`
  }
}

/**
 * The stored bytes of an event cannot be read: they are damaged, are not valid text in the database's encoding, or
 * exceed a limit of the server. This halts only the ranges that would receive it. A retry does not help: the operator
 * restores or corrects the row, then restarts a worker.
 *
 * @category errors
 * @since 0.1.0
 */
export class EventUnreadable extends Schema.TaggedError<EventUnreadable>(id("EventUnreadable"))("EventUnreadable", {
  position: Schema.BigInt,
  /** Absent if it cannot be read either. The same applies to the type and to the fields about the aggregate. */
  eventId: Schema.optionalKey(Schema.String),
  aggregateId: Schema.optionalKey(Schema.String),
  aggregateType: Schema.optionalKey(Schema.String),
  aggregateVersion: Schema.optionalKey(Schema.BigInt),
  eventType: Schema.optionalKey(Schema.String),
  /** SQLSTATE; absent if the server sent the row and the client could not decode it. */
  code: Schema.optionalKey(Schema.String),
  detail: Schema.String,
  /** The event's key, if it can be read and the read used a partition key other than the aggregate id. */
  key: Schema.optionalKey(Schema.String),
  /** The server epoch in which it was read. */
  epoch: Schema.optionalKey(Schema.String)
}) {
  override get message(): string {
    const advice = this.code === "XX002"
      ? "Run REINDEX TABLE on the events table"
      : "Restore its row from a backup, or correct it with UPDATE"
    return `The event at position ${this.position} (${this.eventId ?? "id unreadable"}) cannot be read: ${this.detail}${
      this.code === undefined ? "" : ` (SQLSTATE ${this.code})`
    }. ${advice}, then restart the worker.`
  }
}

/**
 * An error that concerns a single event and halts the ranges that would receive it. A retry does not help until the
 * event can be read and a worker has been restarted.
 *
 * @category errors
 * @since 0.1.0
 */
export type EventError = EventTooLarge | EventUnreadable

/**
 * A checkpoint lies beyond the last position that was assigned: the events table lost events, or belongs to another
 * database. The worker ends; a retry does not help. The operator restores the events or corrects the configuration; or
 * the caller rebuilds the projection under a new name.
 *
 * @category errors
 * @since 0.1.0
 */
export class CheckpointAheadOfEvents
  extends Schema.TaggedError<CheckpointAheadOfEvents>(id("CheckpointAheadOfEvents"))("CheckpointAheadOfEvents", {
    /** The projection of the checkpoint, if it is known. */
    projection: Schema.optionalKey(Schema.String),
    position: Schema.BigInt,
    lastPosition: Schema.BigInt
  })
{
  override get message(): string {
    const subject = this.projection === undefined ? "A projection" : `Projection "${this.projection}"`
    return `${subject} has handled events up to position ${this.position}, but the events table has only issued positions up to ${this.lastPosition}. The database has lost events that were already handled (restored backup, failover with lost commits), or the events are of another database. Restore the events, or rebuild the projection under a new name.`
  }
}

/** Names an event in the messages of event sets: its id, its stored type and the version of its payload. */
const storedEvent = (event: { readonly eventId: string; readonly eventType: string; readonly eventVersion: number }) =>
  `Event ${event.eventId} (type "${event.eventType}", event version ${event.eventVersion})`

/**
 * The payload of an event is not what its event set declares: it is not JSON, an upcast has thrown, the payload does
 * not match the schema, or, in a set with `unknown: "fail"`, the set has no such type. Its message contains no part of
 * the payload. A retry does not help. It is a failure of this event, which follows the projection's failure policy; the
 * caller corrects the schema or the upcast.
 *
 * @category errors
 * @since 0.1.0
 */
export class EventUndecodable extends Schema.TaggedError<EventUndecodable>(id("EventUndecodable"))("EventUndecodable", {
  eventId: Schema.String,
  /** The type under which the event is stored. */
  eventType: Schema.String,
  eventVersion: Schema.Int,
  /** What is wrong, with the path in the payload; keys that the schema does not name are replaced by `*`. */
  problem: Schema.String
}) {
  override get message(): string {
    return `${
      storedEvent(this)
    } cannot be decoded: ${this.problem}. Correct its schema or its upcasts in the event set.`
  }
}

/**
 * The version of an event is above the one that this program's event set declares, as in a deployment where a newer
 * version of the application has appended it. The worker gives up the projection, so that a worker of the newer version
 * continues with this event; nothing is halted. `catchUp` fails with it. A retry does not help. The operator runs the
 * newer version here, too.
 *
 * @category errors
 * @since 0.1.0
 */
export class EventVersionTooNew
  extends Schema.TaggedError<EventVersionTooNew>(id("EventVersionTooNew"))("EventVersionTooNew", {
    eventId: Schema.String,
    /** The type under which the event is stored. */
    eventType: Schema.String,
    eventVersion: Schema.Int,
    /** The newest version that the event set declares. */
    newest: Schema.Int,
    /** The projection that a worker has given up; absent where an event is decoded by other code. */
    projection: Schema.optionalKey(Schema.String)
  })
{
  override get message(): string {
    const problem = `${storedEvent(this)} is newer than version ${this.newest}, the newest one in the event set`
    return this.projection === undefined
      ? `${problem} of this program. Run the version of the application that declares it.`
      : `${problem} of projection "${this.projection}" in this worker. Run the newer version here, too.`
  }
}

/**
 * An event set contradicts itself. `EventSet.make` throws it when the module is loaded. A retry does not help. The
 * caller corrects the declaration.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidEventSet extends Schema.TaggedError<InvalidEventSet>(id("InvalidEventSet"))("InvalidEventSet", {
  problem: Schema.String
}) {
  override get message(): string {
    return this.problem
  }
}
