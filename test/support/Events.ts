import { dateOfMicros, type Event } from "../../src/schema/Event.ts"

/** An event as a store returns it. */
export const storedEvent = (fields: Partial<Event> = {}): Event => ({
  globalPosition: 1n,
  boundedContext: "app",
  aggregateType: "User",
  aggregateId: "a",
  aggregateVersion: 1n,
  eventId: "00000000-0000-4000-8000-000000000001",
  eventType: "Created",
  eventVersion: 1,
  payload: new Uint8Array(),
  traceId: null,
  correlationId: null,
  causationId: null,
  metadata: null,
  metadataText: null,
  createdAt: dateOfMicros(0n),
  createdAtMicros: 0n,
  ...fields
})
