/**
 * The batch window of a projection: how long few events wait for more, so that they are handled together. Decides
 * without effects how many events a page still has room for.
 */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import type { Event } from "./Event.ts"
import { sizeOf } from "./EventSize.ts"

/**
 * How long events wait for more before the handler of batches is called, and what ends the wait before.
 *
 * @category options
 * @since 0.1.0
 */
export interface BatchWindow {
  /** Maximum time that an event waits after it was read; at most an hour. */
  readonly time: Duration.Input
  /** Number of events that ends the wait. Default and maximum: the setting `batchSize`. */
  readonly events?: number | undefined
  /**
   * Total size of payloads and metadata, in bytes, that ends the wait. Default and maximum: the setting `batchBytes`.
   */
  readonly bytes?: number | undefined
}

/** The limits of a read that extends a page. */
export interface Room {
  readonly limit: number
  readonly bytes: number
}

/** Returns what is wrong with a window, as the rest of a sentence that begins with its name. */
export const problem = ({ bytes, events, time }: BatchWindow): string | undefined => {
  const millis = Option.map(Duration.fromInput(time), Duration.toMillis)
  if (Option.isNone(millis) || !(millis.value > 0) || millis.value > longestMillis) {
    return "must have a time that is longer than zero and at most an hour, such as \"500 millis\""
  }
  const isCount = (value: number | undefined) => value === undefined || (Number.isSafeInteger(value) && value >= 1)
  return isCount(events) && isCount(bytes) ? undefined : "must have whole numbers of at least 1 as events and bytes"
}

const longestMillis = 3_600_000

/** Returns how much may be added to the events of a page; undefined if they need not wait for more. */
export const room = (
  { bytes = Infinity, events = Infinity }: BatchWindow,
  settings: { readonly batchSize: number; readonly batchBytes: number },
  page: ReadonlyArray<Sized>
): Room | undefined => {
  const limit = Math.min(events, settings.batchSize) - page.length
  const free = Math.min(bytes, settings.batchBytes) - bytesOf(page)
  return limit > 0 && free > 0 ? { limit, bytes: free } : undefined
}

/** Whether the events may be added to the page. */
export const hasRoom = ({ bytes, limit }: Room, events: ReadonlyArray<Sized>): boolean =>
  events.length <= limit && bytesOf(events) <= bytes

type Sized = Pick<Event, "metadataText" | "payload">

const bytesOf = (events: ReadonlyArray<Sized>): number => events.reduce((sum, event) => sum + sizeOf(event), 0)
