/**
 * Which events a projection wants; evaluated by the database.
 *
 * @since 0.1.0
 */

/**
 * A list that is absent lets everything through; lists that are given must all match.
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
 * One text for all filters that let the same events through, whatever the order their lists were written in. It is
 * recorded with the progress made under the filter.
 *
 * @category utils
 * @since 0.1.0
 */
export const canonical = (filter: EventFilter): string =>
  JSON.stringify([sorted(filter.boundedContexts), sorted(filter.aggregateTypes), sorted(filter.eventTypes)])

/**
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
