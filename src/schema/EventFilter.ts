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

const sorted = (values: ReadonlyArray<string> | undefined): ReadonlyArray<string> | null =>
  values === undefined ? null : [...new Set(values)].sort()

/**
 * Returns the canonical text of a filter. Filters whose lists contain the same names have the same text, regardless of
 * order and repetitions. The text is recorded with the progress that is made under the filter.
 *
 * @category utils
 * @since 0.1.0
 */
export const canonical = (filter: EventFilter): string =>
  JSON.stringify([sorted(filter.boundedContexts), sorted(filter.aggregateTypes), sorted(filter.eventTypes)])

/**
 * Describes a canonical filter in messages: `eventTypes: A, B; aggregateTypes: C`, or `all events`.
 *
 * @category utils
 * @since 0.1.0
 */
export const format = (canonical: string): string => {
  const filter = parse(canonical)
  if (filter === undefined) return canonical
  const { aggregateTypes, boundedContexts, eventTypes } = filter
  const parts = Object.entries({ eventTypes, aggregateTypes, boundedContexts }).flatMap(([name, values]) =>
    values === undefined ? [] : [`${name}: ${values.join(", ")}`]
  )
  return parts.length === 0 ? "all events" : parts.join("; ")
}

type Lists = readonly [List, List, List]
type List = ReadonlyArray<string> | null

const isList = (value: unknown): value is List =>
  value === null || (Array.isArray(value) && value.every((name) => typeof name === "string"))

const isLists = (value: unknown): value is Lists => Array.isArray(value) && value.length === 3 && value.every(isList)

/**
 * Returns the filter whose canonical text this is; undefined for any other text.
 *
 * @category constructors
 * @since 0.1.0
 */
export const parse = (canonical: string): EventFilter | undefined => {
  try {
    const value: unknown = JSON.parse(canonical)
    if (!isLists(value)) return undefined
    const [boundedContexts, aggregateTypes, eventTypes] = value.map((list) => list ?? undefined)
    return { boundedContexts, aggregateTypes, eventTypes }
  } catch {
    return undefined
  }
}

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
