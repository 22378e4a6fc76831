/** Which events a range reads, and when several ranges can read theirs together. */
import type { Event } from "./Event.ts"
import * as EventFilter from "./EventFilter.ts"
import * as HashRange from "./HashRange.ts"
import * as PartitionKey from "./PartitionKey.ts"

/** The events whose key is in the range, and that match the filter. */
export interface EventSelection {
  readonly range: HashRange.HashRange
  readonly partitionBy: PartitionKey.PartitionKey
  readonly filter: EventFilter.EventFilter
}

const lists = ["boundedContexts", "aggregateTypes", "eventTypes"] as const

/** Whether an event with this hash of its key is selected. */
export const includes = ({ filter, range }: EventSelection, event: Event, hash: number): boolean =>
  HashRange.includes(range, hash) && EventFilter.matches(filter, event)

/**
 * Returns the selection that contains both and little more: `a` itself if it contains `b`. Undefined if reading both
 * together would read many events that neither selects: their ranges are apart, their keys differ, or each filter
 * restricts what the other does not.
 */
export const union = (a: EventSelection, b: EventSelection): EventSelection | undefined => {
  const filter = unionOfFilters(a.filter, b.filter)
  const areApart = a.range.end < b.range.start || b.range.end < a.range.start
  if (filter === undefined || areApart || !PartitionKey.equals(a.partitionBy, b.partitionBy)) return undefined
  const range = { start: Math.min(a.range.start, b.range.start), end: Math.max(a.range.end, b.range.end) }
  const isFirst = HashRange.equals(range, a.range) && EventFilter.canonical(filter) === EventFilter.canonical(a.filter)
  return isFirst ? a : { range, partitionBy: a.partitionBy, filter }
}

const unionOfFilters = (
  a: EventFilter.EventFilter,
  b: EventFilter.EventFilter
): EventFilter.EventFilter | undefined => {
  const both = lists.filter((list) => a[list] !== undefined && b[list] !== undefined)
  const isNoWider = (filter: EventFilter.EventFilter) =>
    lists.every((list) => filter[list] === undefined || both.includes(list))
  if (!isNoWider(a) && !isNoWider(b)) return undefined
  return Object.fromEntries(both.map((list) => [list, [...new Set([...a[list]!, ...b[list]!])].sort()]))
}
