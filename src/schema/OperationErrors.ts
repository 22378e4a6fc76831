/** The errors of what operators do with projections. */
import * as Schema from "effect/Schema"
import { id } from "./ErrorId.ts"

/**
 * No projection with this name has progress. A retry helps only after a worker has run it for the first time; usually
 * the caller corrects the name.
 *
 * @category errors
 * @since 0.1.0
 */
export class ProjectionUnknown extends Schema.TaggedError<ProjectionUnknown>(id("ProjectionUnknown"))(
  "ProjectionUnknown",
  {
    projection: Schema.String,
    /** The names of the projections that have progress. */
    known: Schema.Array(Schema.String)
  }
) {
  override get message(): string {
    return `No projection "${this.projection}" has progress in this database. ${
      this.known.length === 0
        ? "No worker has run any projection yet."
        : `Use one of these names: ${this.known.join(", ")}.`
    }`
  }
}

/**
 * No range of the projection is halted at this event, so nothing was requested. A retry does not help: the range has
 * continued, is halted at another event, or the id is wrong. The caller reads the status again.
 *
 * @category errors
 * @since 0.1.0
 */
export class EventNotHalted extends Schema.TaggedError<EventNotHalted>(id("EventNotHalted"))("EventNotHalted", {
  projection: Schema.String,
  eventId: Schema.String,
  /** The events at which the projection is halted. */
  halted: Schema.Array(Schema.String)
}) {
  override get message(): string {
    return `Projection "${this.projection}" is not halted at event ${this.eventId}. ${
      this.halted.length === 0
        ? "None of its ranges is halted."
        : `It is halted at ${this.halted.join(", ")}: use one of these ids.`
    }`
  }
}
