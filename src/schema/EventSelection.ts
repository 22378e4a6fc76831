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

/** A selection that is extended by others, in place: a process can have thousands of projections. */
export interface Union {
  range: HashRange.HashRange
  readonly partitionBy: PartitionKey.PartitionKey
  /** The lists of the filter that restrict it. */
  readonly lists: Map<typeof lists[number], Set<string>>
}

export const unionOf = ({ filter, partitionBy, range }: EventSelection): Union => ({
  range,
  partitionBy,
  lists: new Map(listsOf(filter).map((list) => [list, new Set(filter[list])]))
})

const listsOf = (filter: EventFilter.EventFilter) => lists.filter((list) => filter[list] !== undefined)

/** Whether the union contains everything that is selected. */
export const contains = (union: Union, { filter, partitionBy, range }: EventSelection): boolean =>
  union.range.start <= range.start && range.end <= union.range.end &&
  PartitionKey.equals(union.partitionBy, partitionBy) &&
  [...union.lists].every(([list, names]) => filter[list]?.every((name) => names.has(name)) === true)

/**
 * Extends the union by the selection. Returns false, and changes nothing, if it would contain many events that neither
 * selects: their ranges are apart, their keys differ, or each filter restricts what the other does not.
 */
export const extend = (union: Union, { filter, partitionBy, range }: EventSelection): boolean => {
  const restricting = listsOf(filter)
  const both = restricting.filter((list) => union.lists.has(list))
  const areApart = union.range.end < range.start || range.end < union.range.start
  const isEachNarrower = both.length < union.lists.size && both.length < restricting.length
  if (areApart || isEachNarrower || !PartitionKey.equals(union.partitionBy, partitionBy)) return false
  union.range = { start: Math.min(union.range.start, range.start), end: Math.max(union.range.end, range.end) }
  for (const [list, names] of union.lists) {
    if (filter[list] === undefined) union.lists.delete(list)
    else for (const name of filter[list]) names.add(name)
  }
  return true
}

export const toSelection = ({ lists, partitionBy, range }: Union): EventSelection => ({
  range,
  partitionBy,
  filter: Object.fromEntries(Array.from(lists, ([list, names]) => [list, [...names].sort()]))
})
