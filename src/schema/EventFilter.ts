/**
 * Filters that select the events of a projection. The database evaluates them.
 *
 * **Example** (The events that two projections share)
 *
 * ```ts
 * import { EventFilter, Projection } from "pupsourcing-orchestrator"
 * import { Effect } from "effect"
 *
 * const registrations: EventFilter.EventFilter = { aggregateTypes: ["User"], eventTypes: ["UserRegistered"] }
 *
 * const counts = Projection.make("registration_counts", { ...registrations, handle: () => Effect.void })
 * ```
 *
 * @since 0.1.0
 */
import * as PartitionKey from "./PartitionKey.ts"

/**
 * Selects events by lists of names. An absent list matches every event; an event must match all lists that are present.
 *
 * @category models
 * @since 0.1.0
 */
export interface EventFilter {
  readonly boundedContexts?: ReadonlyArray<string> | undefined
  readonly aggregateTypes?: ReadonlyArray<string> | undefined
  readonly eventTypes?: ReadonlyArray<string> | undefined
}

/**
 * A filter, and the partition key by which the selected events are divided. Both are recorded with the progress that is
 * made under them.
 *
 * @category models
 * @since 0.1.0
 */
export interface Selection extends EventFilter {
  /** Default `"aggregateId"`. */
  readonly partitionBy?: PartitionKey.PartitionKey | undefined
}

const sorted = (values: ReadonlyArray<string> | undefined): ReadonlyArray<string> | null =>
  values === undefined ? null : [...new Set(values)].sort()

/**
 * Returns the canonical text of a filter and a partition key. Filters whose lists contain the same names have the same
 * text, regardless of order and repetitions. The text is recorded with the progress that is made under it.
 *
 * @category utils
 * @since 0.1.0
 */
export const canonical = ({ aggregateTypes, boundedContexts, eventTypes, partitionBy }: Selection): string => {
  const lists = [boundedContexts, aggregateTypes, eventTypes].map(sorted)
  // The default is left out, so that it has the same text as before there were partition keys.
  return JSON.stringify(
    partitionBy === undefined || PartitionKey.isDefault(partitionBy)
      ? lists
      : [...lists, typeof partitionBy === "object" ? { metadata: partitionBy.metadata } : partitionBy]
  )
}

/**
 * Describes a canonical text in messages: `eventTypes: A, B; aggregateTypes: C`, or `all events`. A partition key
 * follows: `all events; partitionBy: metadata tenantId`.
 *
 * @category utils
 * @since 0.1.0
 */
export const format = (canonical: string): string => {
  const filter = parse(canonical)
  if (filter === undefined) return canonical
  const { aggregateTypes, boundedContexts, eventTypes, partitionBy } = filter
  const parts = Object.entries({ eventTypes, aggregateTypes, boundedContexts }).flatMap(([name, values]) =>
    values === undefined ? [] : [`${name}: ${values.join(", ")}`]
  )
  return [
    ...(parts.length === 0 ? ["all events"] : parts),
    ...(partitionBy === undefined ? [] : [`partitionBy: ${PartitionKey.format(partitionBy)}`])
  ].join("; ")
}

type Recorded = readonly [List, List, List, PartitionKey.PartitionKey?]
type List = ReadonlyArray<string> | null

const isList = (value: unknown): value is List =>
  value === null || (Array.isArray(value) && value.every((name) => typeof name === "string"))

const isRecorded = (value: unknown): value is Recorded =>
  Array.isArray(value) && value.slice(0, 3).every(isList) &&
  (value.length === 3 ||
    value.length === 4 && PartitionKey.isPartitionKey(value[3]) && !PartitionKey.isDefault(value[3]))

/**
 * Returns the filter and the partition key whose canonical text this is; undefined for any other text. The default
 * partition key is absent.
 *
 * @category constructors
 * @since 0.1.0
 */
export const parse = (canonical: string): Selection | undefined => {
  try {
    const value: unknown = JSON.parse(canonical)
    if (!isRecorded(value)) return undefined
    const [boundedContexts, aggregateTypes, eventTypes, partitionBy] = value
    return {
      boundedContexts: boundedContexts ?? undefined,
      aggregateTypes: aggregateTypes ?? undefined,
      eventTypes: eventTypes ?? undefined,
      ...(partitionBy === undefined ? {} : { partitionBy })
    }
  } catch {
    return undefined
  }
}

/**
 * Returns the partition key of a canonical text; the default one for any other text.
 *
 * @category utils
 * @since 0.1.0
 */
export const partitionKey = (canonical: string): PartitionKey.PartitionKey =>
  parse(canonical)?.partitionBy ?? PartitionKey.byDefault

/**
 * Whether the filter selects the event.
 *
 * @category guards
 * @since 0.1.0
 */
export const matches = (
  filter: EventFilter,
  event: { readonly boundedContext: string; readonly aggregateType: string; readonly eventType: string }
): boolean =>
  (filter.boundedContexts?.includes(event.boundedContext) ?? true) &&
  (filter.aggregateTypes?.includes(event.aggregateType) ?? true) &&
  (filter.eventTypes?.includes(event.eventType) ?? true)
