/**
 * Partition keys: which events of a projection are handled in order, by one worker at a time.
 *
 * **Example** (A view of customers, whose events belong to several aggregates)
 *
 * ```ts
 * import { PartitionKey, Projection } from "pupsourcing-orchestrator"
 * import { Effect } from "effect"
 *
 * const byCustomer: PartitionKey.PartitionKey = { metadata: "customerId" }
 *
 * const customers = Projection.make("customer_view", { partitionBy: byCustomer, handle: () => Effect.void })
 * ```
 *
 * @since 0.1.0
 */
import type { Event } from "./Event.ts"
import * as Jsonb from "./Jsonb.ts"
import { textProblem } from "./Text.ts"

/**
 * What determines the partition of an event. Events with the same key are handled in position order, by one worker at a
 * time.
 *
 * - `"aggregateId"`: the id of the aggregate, which is the default;
 * - `"correlationId"`: the correlation id;
 * - `"boundedContext"`: the bounded context;
 * - `{ metadata: "tenantId" }`: the member `tenantId` of the event's metadata, as text. The text of a number or a
 *   boolean is its JSON, so `7` and `"7"` are the same key. An empty text is a key, too.
 *
 * An event without the key (the correlation id is absent, the metadata is not an object, the member is absent or null)
 * is partitioned by its aggregate id.
 *
 * @category models
 * @since 0.1.0
 */
export type PartitionKey = "aggregateId" | "correlationId" | "boundedContext" | { readonly metadata: string }

/**
 * The partition key of a projection that does not set one.
 *
 * @category models
 * @since 0.1.0
 */
export const byDefault: PartitionKey = "aggregateId"

/**
 * Returns the key of an event, as the database computes it.
 *
 * @category utils
 * @since 0.1.0
 */
export const of = (
  partitionBy: PartitionKey,
  event: Pick<Event, "aggregateId" | "boundedContext" | "correlationId" | "metadataText">
): string => {
  if (typeof partitionBy === "object") {
    const { aggregateId, metadataText } = event
    return (metadataText === null ? undefined : Jsonb.member(metadataText, partitionBy.metadata)) ?? aggregateId
  }
  return event[partitionBy] ?? event.aggregateId
}

/**
 * Whether two partition keys are the same.
 *
 * @category guards
 * @since 0.1.0
 */
export const equals = (a: PartitionKey, b: PartitionKey): boolean =>
  typeof a === "object" && typeof b === "object" ? a.metadata === b.metadata : a === b

/**
 * Whether the partition key is the one of a projection that does not set one.
 *
 * @category guards
 * @since 0.1.0
 */
export const isDefault = (partitionBy: PartitionKey): boolean => partitionBy === byDefault

/**
 * Whether an unknown value is a partition key that the database can evaluate.
 *
 * @category guards
 * @since 0.1.0
 */
export const isPartitionKey = (value: unknown): value is PartitionKey => problem(value) === undefined

/**
 * Returns why a value is not a partition key, worded to follow its name in a message; undefined if it is one.
 *
 * @category utils
 * @since 0.1.0
 */
export const problem = (value: unknown): string | undefined => {
  if (value === "aggregateId" || value === "correlationId" || value === "boundedContext") return undefined
  if (typeof value !== "object" || value === null || !("metadata" in value) || typeof value.metadata !== "string") {
    return "must be \"aggregateId\", \"correlationId\", \"boundedContext\" or { metadata: name }"
  }
  if (Object.keys(value).length > 1) return "must have no property other than metadata"
  if (value.metadata === "") return "has an empty name for the metadata member"
  const found = textProblem(value.metadata)
  return found === undefined ? undefined : `has a name for the metadata member that ${found}`
}

/**
 * Describes a partition key in messages: `correlationId`, or `metadata tenantId`.
 *
 * @category utils
 * @since 0.1.0
 */
export const format = (partitionBy: PartitionKey): string =>
  typeof partitionBy === "object" ? `metadata ${partitionBy.metadata}` : partitionBy
