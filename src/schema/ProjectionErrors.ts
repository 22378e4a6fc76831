/** The errors of a projection: its definition, what is recorded with its progress, and its handler. */
import * as Duration from "effect/Duration"
import * as Schema from "effect/Schema"
import { id } from "./ErrorId.ts"
import type { EventVersionTooNew } from "./EventErrors.ts"
import * as EventFilter from "./EventFilter.ts"
import * as PartitionKey from "./PartitionKey.ts"
import { sentence } from "./Text.ts"

/**
 * Two projections of one orchestrator have the same name, under which progress is stored. A retry does not help. The
 * caller renames one of them.
 *
 * @category errors
 * @since 0.1.0
 */
export class DuplicateProjection extends Schema.TaggedError<DuplicateProjection>(id("DuplicateProjection"))(
  "DuplicateProjection",
  { projection: Schema.String }
) {
  override get message(): string {
    return `Two projections are named "${this.projection}". Progress is stored by name; give each projection its own.`
  }
}

/**
 * A live worker of another replica set carries the projection, and this worker ends. A retry helps only after the
 * projection was stopped there. The operator stops the other worker, or the caller gives one of the projections another
 * name.
 *
 * @category errors
 * @since 0.1.0
 */
export class ProjectionInOtherReplicaSet
  extends Schema.TaggedError<ProjectionInOtherReplicaSet>(id("ProjectionInOtherReplicaSet"))(
    "ProjectionInOtherReplicaSet",
    {
      projection: Schema.String,
      replicaSet: Schema.String,
      otherReplicaSet: Schema.String,
      workerId: Schema.String
    }
  )
{
  override get message(): string {
    return `Projection "${this.projection}" of replica set "${this.replicaSet}" is being run by replica set "${this.otherReplicaSet}" (worker "${this.workerId}"). Stop it there first, or give this projection another name.`
  }
}

const selectionFields = {
  projection: Schema.String,
  /** The filter and partition key under which progress was made, in the form of `EventFilter.canonical`. */
  recorded: Schema.String,
  /** Those of this worker, in the same form. */
  given: Schema.String,
  /** Those under which other ranges of the projection made progress. */
  alsoRecorded: Schema.optionalKey(Schema.Array(Schema.String)),
  /** Set if another worker changed what is recorded while this one was running. */
  whileRunning: Schema.optionalKey(Schema.Boolean)
}

const changedByNewer = (property: string, projection: string, given: string, recorded: string) =>
  `Another worker, probably of a newer version, has changed the ${property} of projection "${projection}" from ${given}, which this worker has, to ${recorded}. Run the newer version here, too.`

/**
 * The filter of a projection differs from the one under which its progress was made, and does not replace it. A retry
 * does not help. The caller names the recorded filter in `replacesFilter`, renames the projection or runs the newer
 * version. A running worker does not end but gives up this projection; a starting worker and `catchUp` fail.
 *
 * @category errors
 * @since 0.1.0
 */
export class FilterChanged
  extends Schema.TaggedError<FilterChanged>(id("FilterChanged"))("FilterChanged", selectionFields)
{
  override get message(): string {
    const all = [this.recorded, ...this.alsoRecorded ?? []]
    const given = `"${EventFilter.format(this.given)}"`
    const recorded = all.map((filter) => `"${EventFilter.format(filter)}"`).join(" and ")
    // The text of another version of the library may have another form.
    const filters = all.flatMap((text) => EventFilter.parse(text) ?? [])
    const replaced = filters.length === 1 ? code(filters[0]!) : `[${filters.map(code).join(", ")}]`
    return this.whileRunning === true
      ? changedByNewer("filter", this.projection, given, recorded)
      : `Projection "${this.projection}" has the filter ${given}, but its progress was made under ${recorded}, so that past events which only the new filter selects are missing. ${
        filters.length < all.length ? "" : `To continue from its present position, set replacesFilter: ${replaced}. `
      }To build it from the beginning, give the projection a new name. If a newer version has changed the filter, run that version.`
  }
}

/** The code of a filter, to be copied from a message. */
const code = ({ aggregateTypes, boundedContexts, eventTypes }: EventFilter.EventFilter): string => {
  const lists = Object.entries({ boundedContexts, aggregateTypes, eventTypes }).flatMap(([name, values]) =>
    values === undefined ? [] : [`${name}: [${values.map((value) => JSON.stringify(value)).join(", ")}]`]
  )
  return lists.length === 0 ? "{}" : `{ ${lists.join(", ")} }`
}

/**
 * The partition key of a projection differs from the one under which its progress was made. The ranges of its progress
 * would contain other events, so unlike a changed filter it cannot be accepted. A retry does not help. The caller
 * restores the partition key, renames the projection or runs the newer version. A running worker does not end but gives
 * up this projection; a starting worker and `catchUp` fail.
 *
 * @category errors
 * @since 0.1.0
 */
export class PartitionKeyChanged extends Schema.TaggedError<PartitionKeyChanged>(id("PartitionKeyChanged"))(
  "PartitionKeyChanged",
  selectionFields
) {
  override get message(): string {
    const given = `"${PartitionKey.format(EventFilter.partitionKey(this.given))}"`
    const recorded = `"${PartitionKey.format(EventFilter.partitionKey(this.recorded))}"`
    return this.whileRunning === true
      ? changedByNewer("partition key", this.projection, given, recorded)
      : `Projection "${this.projection}" has the partition key ${given}, but its progress was made under ${recorded}, so that its ranges would contain other events. Give the projection a new name to build it from the beginning, or restore partitionBy; if a newer version has changed it, run that version.`
  }
}

/**
 * A change of what is recorded with the progress of a projection.
 *
 * @category errors
 * @since 0.1.0
 */
export type SelectionChanged = FilterChanged | PartitionKeyChanged

/**
 * Why a running worker gives up a projection: a newer version of the application, which other workers run, has changed
 * its selection or appends events that this worker cannot decode.
 *
 * @category errors
 * @since 0.1.0
 */
export type GivenUp = EventVersionTooNew | SelectionChanged

/**
 * Returns the error about two canonical texts that differ: about their partition keys if these differ.
 *
 * @category utils
 * @since 0.1.0
 */
export const selectionChanged = (
  options: Omit<ConstructorParameters<typeof FilterChanged>[0], "_tag">
): SelectionChanged =>
  PartitionKey.equals(EventFilter.partitionKey(options.recorded), EventFilter.partitionKey(options.given))
    ? new FilterChanged(options)
    : new PartitionKeyChanged(options)

/**
 * A projection with `ordering: "global"` was divided among workers before, and cannot become one range now. A retry
 * helps once the workers that have divided it have stopped, if their ranges then are at the same position. Otherwise
 * the operator lets the former version catch up, or the caller gives the projection another name.
 *
 * @category errors
 * @since 0.1.0
 */
export class OrderingChanged extends Schema.TaggedError<OrderingChanged>(id("OrderingChanged"))("OrderingChanged", {
  projection: Schema.String,
  /** The number of its ranges, and the positions that these have reached. */
  ranges: Schema.Int,
  lowest: Schema.BigInt,
  highest: Schema.BigInt,
  /** Whether one of the ranges is halted. */
  isHalted: Schema.Boolean,
  /** A live worker that owns one of the ranges; absent if none does. */
  workerId: Schema.optionalKey(Schema.String)
}) {
  override get message(): string {
    const projection = `Projection "${this.projection}" has ordering "global"`
    if (this.workerId !== undefined) {
      return `${projection}, but worker "${this.workerId}" runs it with ordering "aggregate" and owns one of its ${this.ranges} ranges. Stop all workers that run it with this ordering before this one starts.`
    }
    const positions = this.lowest === this.highest
      ? `at position ${this.lowest}`
      : `at positions from ${this.lowest} to ${this.highest}`
    return `${projection}, but it was divided into ${this.ranges} ranges, which are ${positions}${
      this.isHalted ? ", and one of them is halted" : ""
    }. Let the former version catch up while nothing is appended (Orchestrator.catchUp), or give the projection a new name to build it from the beginning.`
  }
}

/**
 * A range of a projection is halted because its handler failed, or because an event cannot be received or read. Only
 * `catchUp` fails with it; a running worker logs the same message and continues with other ranges. A worker that starts
 * later retries the event, which helps once the caller has fixed the handler, or the operator the event.
 *
 * @category errors
 * @since 0.1.0
 */
export class ProjectionHalted extends Schema.TaggedError<ProjectionHalted>(id("ProjectionHalted"))("ProjectionHalted", {
  projection: Schema.String,
  range: Schema.String,
  position: Schema.BigInt,
  eventId: Schema.String,
  /** Type, aggregate and version of the event, and the error. */
  error: Schema.String,
  /** By the database's clock. */
  since: Schema.optionalKey(Schema.Date)
}) {
  override get message(): string {
    const since = this.since === undefined ? "" : ` since ${this.since.toISOString()}`
    // An event that cannot be received or read never reaches the handler.
    const wrong = /\bEvent(TooLarge|Unreadable): /.test(this.error) ? "cause" : "handler"
    return `Projection "${this.projection}" is halted in range ${this.range}${since}: event ${this.eventId} at position ${this.position}, ${
      sentence(this.error)
    } Fix the ${wrong} and restart the worker: a worker that starts after the failure retries the event. Other ranges and projections continue.`
  }
}

/**
 * A projection would have more parked keys or events than `parkingLimits` permits, so the range is halted instead, with
 * this error in the halt's text. The range continues by itself after parked events were retried or dropped.
 *
 * @category errors
 * @since 0.1.0
 */
export class ParkingLimitReached extends Schema.TaggedError<ParkingLimitReached>(id("ParkingLimitReached"))(
  "ParkingLimitReached",
  {
    projection: Schema.String,
    /** The parked keys and events that there would be. */
    keys: Schema.Int,
    events: Schema.Int,
    limits: Schema.Struct({ keys: Schema.Int, events: Schema.Int })
  }
) {
  override get message(): string {
    const { events, keys } = this.limits
    return `Projection "${this.projection}" would have ${this.keys} parked keys and ${this.events} parked events; parkingLimits permits ${keys} keys and ${events} events. Fix the handler and retry the parked events, or drop them; or raise parkingLimits and restart the worker.`
  }
}

/**
 * A handler repeatedly took so long to handle one event that its batches were rolled back. The library has retried the
 * event; now its range is halted, with this error in the halt's text. A restart retries the event, but helps only after
 * the caller has fixed the handler.
 *
 * @category errors
 * @since 0.1.0
 */
export class HandlerOverran extends Schema.TaggedError<HandlerOverran>(id("HandlerOverran"))("HandlerOverran", {
  times: Schema.Int,
  /** The time that every one of these attempts exceeded. */
  longerThan: Schema.Duration
}) {
  override get message(): string {
    return `The handler took longer than ${
      Duration.format(this.longerThan)
    } at this event and lost its transaction, ${this.times} times. It blocks the process's heartbeats, or waits without a limit: move long computations to a worker thread, and set a time limit on every wait.`
  }
}

/**
 * A handler returned, or succeeded with, a value that nothing runs, awaits or raises. Its work would be lost, or would
 * be done outside the batch's transaction. The range is halted, with this error in the halt's text. A retry does not
 * help until the caller has fixed the handler.
 *
 * @category errors
 * @since 0.1.0
 */
export class HandlerResultUnused extends Schema.TaggedError<HandlerResultUnused>(id("HandlerResultUnused"))(
  "HandlerResultUnused",
  { result: Schema.Literals(["Effect", "failure", "Stream", "Promise", "not an Effect"]) }
) {
  override get message(): string {
    switch (this.result) {
      case "Effect":
        return "The handler succeeded with an Effect, which nothing runs. Use yield* on it, or Effect.flatMap or Effect.all; the diagnostic floatingEffect of @effect/language-service finds others that are not run at all."
      case "failure":
        return "The handler succeeded with a failure, which it did not raise. Use return yield* on it; to ignore a failure, use Effect.ignore."
      case "Stream":
        return "The handler succeeded with a Stream, which nothing runs. Run it, for example with Stream.runDrain."
      case "Promise":
        return "The handler succeeded with a Promise or another thenable, which nothing awaits. Use Effect.promise or Effect.tryPromise."
      case "not an Effect":
        return "The handler did not return an Effect. Use Effect.fnUntraced instead of a generator function, and Effect.tryPromise around an async function."
    }
  }
}
