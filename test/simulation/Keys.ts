/** The aggregates of a scenario, and the keys by which its projections partition their events. */
import type { PartitionKey } from "../../src/schema/PartitionKey.ts"

export interface Aggregate {
  readonly id: string
  readonly type: string
  readonly correlationId: string | null
  /**
   * The member `key` of the metadata of events, by their type; null without metadata. An aggregate's events may differ in
   * it, and aggregates may share one, as a number or as a text.
   */
  readonly key: { readonly Odd: string | number; readonly Even: string | number } | null
}

/** A partition key, and the key that the events have under it, computed without the library. */
export interface Keys {
  readonly partitionBy: PartitionKey
  readonly of: (event: Keyed) => string
}

/** The parts of an event that can be its key. */
export interface Keyed {
  readonly aggregateId: string
  readonly correlationId: string | null
  readonly metadataText: string | null
}

export const keys: ReadonlyArray<Keys> = [
  { partitionBy: "aggregateId", of: ({ aggregateId }) => aggregateId },
  { partitionBy: "correlationId", of: ({ aggregateId, correlationId }) => correlationId ?? aggregateId },
  { partitionBy: "boundedContext", of: () => "app" },
  {
    partitionBy: { metadata: "key" },
    of: ({ aggregateId, metadataText }) =>
      metadataText === null ? aggregateId : String((JSON.parse(metadataText) as { readonly key: unknown }).key)
  }
]

/** A partition key other than the given one. */
export const otherKey = ({ partitionBy }: Keys): PartitionKey =>
  partitionBy === "correlationId" ? "aggregateId" : "correlationId"

/** The metadata of an event of the aggregate, as JSON. */
export const metadataOf = ({ key }: Aggregate, eventType: string): string | null =>
  key === null ? null : JSON.stringify({ key: eventType === "Odd" ? key.Odd : key.Even })
