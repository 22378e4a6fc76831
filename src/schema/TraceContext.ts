/** Which traces a batch links to: those in which its events were appended. */
import type { Event } from "./Event.ts"

/** A trace in which events of a batch were appended, with the first of these events. */
export interface Origin {
  /** 32 lower-case hexadecimal digits. */
  readonly traceId: string
  /** 16 lower-case hexadecimal digits; all zero if only the trace is known. */
  readonly spanId: string
  readonly sampled: boolean
  readonly event: Event
}

/** Maximum number of links of one span. The default limit of OpenTelemetry SDKs is the same. */
export const maxLinks = 128

/** The id of a span that is not known. OpenTelemetry records a link with it as long as the link has attributes. */
const unknownSpanId = "0".repeat(16)

const shortOrLong = /^(?:[0-9a-f]{16}){1,2}$/
const traceparentForm = /^00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})$/
const onlyZeros = /^0*$/

/** Returns a trace id in its form of 32 digits; undefined if the text is not the id of a trace. */
export const traceIdOf = (text: string | null): string | undefined =>
  text === null || !shortOrLong.test(text) || onlyZeros.test(text) ? undefined : text.padStart(32, "0")

/**
 * Returns the distinct spans or traces in which the events were appended, in the order of the events, at most `maxLinks`.
 * A `traceparent` in an event's metadata takes precedence over its trace id, because it also names the span.
 */
export const originsOf = (events: ReadonlyArray<Event>): ReadonlyArray<Origin> => {
  const origins = new Map<string, Origin>()
  for (const event of events) {
    const origin = ofTraceparent(event) ?? ofTraceId(event)
    if (origin === undefined) continue
    const key = `${origin.traceId} ${origin.spanId}`
    if (!origins.has(key)) origins.set(key, origin)
    if (origins.size === maxLinks) break
  }
  return [...origins.values()]
}

const ofTraceparent = (event: Event): Origin | undefined => {
  const { metadata } = event
  if (typeof metadata !== "object" || metadata === null || !Object.hasOwn(metadata, "traceparent")) return undefined
  const { traceparent } = metadata as { readonly traceparent: unknown }
  const [, traceId = "", spanId = "", flags = ""] = typeof traceparent === "string"
    ? traceparentForm.exec(traceparent) ?? []
    : []
  return onlyZeros.test(traceId) || onlyZeros.test(spanId)
    ? undefined
    : { traceId, spanId, sampled: (Number.parseInt(flags, 16) & 1) === 1, event }
}

const ofTraceId = (event: Event): Origin | undefined => {
  const traceId = traceIdOf(event.traceId)
  return traceId === undefined ? undefined : { traceId, spanId: unknownSpanId, sampled: true, event }
}
