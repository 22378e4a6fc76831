/** The size of an event, as the limits of batches count it. */
import type { Event } from "./Event.ts"

const encoder = new TextEncoder()

/** Returns the number of bytes of the payload and of the metadata's text. */
export const sizeOf = ({ metadataText, payload }: Pick<Event, "metadataText" | "payload">): number =>
  payload.length + (metadataText === null ? 0 : encoder.encode(metadataText).length)
