/**
 * Announcements: to which aggregates events were appended, as the payload of a notification. A payload of any other form
 * concerns all readers, because other writers choose their payloads freely.
 */
import * as HashRange from "./HashRange.ts"

/** The hashes of the aggregates; `all` if any aggregate may be concerned. */
export type Announcement = ReadonlySet<number> | typeof all

export const all = "all"

/** More aggregates than this are announced as `all`. A payload, limited to 8,000 bytes by the server, thus has 712 at most. */
export const maxHashes = 64

/** The payload of `all`. The other payloads continue with a colon and the hashes. */
const appended = "appended"

/** The prefix distinguishes hashes from the positions with which Go services notify. */
const list = new RegExp(`^${appended}:(\\d{1,10}(?:,\\d{1,10})*)$`)

export const make = (hashes: Iterable<number>): Announcement => {
  const set = new Set(hashes)
  return set.size > maxHashes ? all : set
}

/** One announcement instead of two. */
export const merge = (a: Announcement, b: Announcement): Announcement =>
  a === all || b === all ? all : make([...a, ...b])

export const encode = (announcement: Announcement): string =>
  announcement === all ? appended : `${appended}:${[...announcement].join(",")}`

export const decode = (payload: string): Announcement => {
  const hashes = list.exec(payload)?.[1]?.split(",").map(Number)
  return hashes === undefined || hashes.some((hash) => !HashRange.includes(HashRange.whole, hash)) ? all : make(hashes)
}

/** Whether the announcement concerns a reader of the range; `undefined` is a reader that every event may concern. */
export const concerns = (announcement: Announcement, range: HashRange.HashRange | undefined): boolean => {
  if (announcement === all || range === undefined) return true
  for (const hash of announcement) if (HashRange.includes(range, hash)) return true
  return false
}
