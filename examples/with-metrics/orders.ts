import { Effect } from "effect"
import { EventStore } from "pupsourcing-orchestrator"

/** Appends an order with each of these amounts. */
export const append = (amounts: ReadonlyArray<number>) =>
  Effect.flatMap(EventStore.EventStore, (events) =>
    Effect.forEach(amounts, (amount) =>
      events.append([{
        boundedContext: "sales",
        aggregateType: "Order",
        aggregateId: `order-${crypto.randomUUID()}`,
        eventType: "OrderPlaced",
        payload: { customer: "Ada", amount }
      }]), { discard: true }))
