/**
 * The feed of a process: ranges that are near each other share their reads, and the next page is read while the
 * handlers work.
 *
 * A range takes its pages from reads that include it. If there is none at its position, it begins one for itself and for
 * all ranges nearby, which divide the page by the hashes that the database has computed. Ranges at different positions
 * meet by themselves: a read ends where another one begins, and a range may take the rest of a page.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type { CheckpointAheadOfEvents, EventError, StoreError } from "../../schema/Errors.ts"
import type { Event } from "../../schema/Event.ts"
import * as EventFilter from "../../schema/EventFilter.ts"
import * as EventSelection from "../../schema/EventSelection.ts"
import { sizeOf } from "../../schema/EventSize.ts"
import * as HashRange from "../../schema/HashRange.ts"
import * as Abandonable from "../Abandonable.ts"
import type { EventStore, Page, ReadOptions, ServerEpoch } from "../EventStore.ts"
import type * as RangeState from "./RangeState.ts"

export interface Feed {
  readonly events: EventStore["Service"]
  readonly members: Set<Member>
  /** In the order in which they began. */
  readonly reads: Set<Read>
  /** The server epoch that has ended last. */
  endedEpoch: ServerEpoch | undefined
}

/** A range that reads. */
export interface Member {
  readonly job: RangeState.Job
  readonly selection: EventSelection.EventSelection
  /** Identifies the selection. */
  readonly key: string
  /** The position after which it will read next, as far as is known. */
  after: bigint
  /** Whether its last read asked for hashes. */
  hashes: boolean
  /** Up to this position, it reads for itself and not ahead, because a read from here has failed. */
  aloneUpTo: bigint
}

/** The members of a read, and what it reads for them. */
interface Group {
  readonly members: Set<Member>
  /** Contains the selections of the members. */
  readonly selection: EventSelection.EventSelection
  /** Whether not all members select the same events. */
  readonly isDivided: boolean
}

/** A read, in flight or with its page. */
interface Read {
  readonly after: bigint
  readonly upTo: bigint
  /** The members that have not taken the page. */
  readonly members: Set<Member>
  readonly isDivided: boolean
  readonly isShared: boolean
  readonly hashes: boolean
  readonly result: Deferred.Deferred<Page, ReadError>
  /** The fiber that reads; undefined only while it starts. */
  fiber: Fiber.Fiber<unknown, unknown> | undefined
  page: Page | undefined
  /** Whether a member has taken the page. */
  isTaken: boolean
  /** The size of the page, or its maximum before it is known. */
  bytes: number
}

type ReadError = CheckpointAheadOfEvents | EventError | StoreError

/** What a member asks for. */
export interface Request {
  readonly after: bigint
  /** A settled position. */
  readonly upTo: bigint
  readonly hashes: boolean
}

/** The largest total size of the pages that are kept for slower ranges or read ahead, in full pages of `batchBytes`. */
const keptPages = 4

/** What an event costs in memory besides its payload and its metadata, in bytes. */
const eventOverhead = 1024

/** Ranges are near each other if at most this number of full pages lies between them. */
const nearPages = 2n

export const make = (events: EventStore["Service"]): Feed => ({
  events,
  members: new Set(),
  reads: new Set(),
  endedEpoch: undefined
})

export const join = (feed: Feed, job: RangeState.Job): Member => {
  const { projection: { filter, partitionBy }, state: { handledUpTo, held } } = job
  const selection = { range: held.range, filter, partitionBy }
  const key = `${HashRange.format(held.range)} ${EventFilter.canonical({ ...filter, partitionBy })}`
  const member: Member = { job, selection, key, after: handledUpTo, hashes: false, aloneUpTo: -1n }
  feed.members.add(member)
  return member
}

export const leave = (feed: Feed, member: Member): void => {
  feed.members.delete(member)
  for (const read of feed.reads) release(feed, read, member)
}

/**
 * Returns the events of the member after a position, as `EventStore.read` does, and reads the next page ahead if events
 * are left.
 *
 * An event that cannot be read need not concern every member of a shared read: one of them may not select it. Therefore
 * each member then reads for itself. After other failures it does so when the caller repeats the read.
 */
export const read = Effect.fnUntraced(function*(
  feed: Feed,
  member: Member,
  request: Request
): Effect.fn.Return<Page, ReadError> {
  member.hashes = request.hashes
  moveTo(feed, member, request.after)
  while (true) {
    const read = readAt(feed, member, request.after) ?? (yield* begin(feed, member, request))
    const result = yield* Effect.result(Deferred.await(read.result))
    if (result._tag === "Failure") {
      if (read.isShared && result.failure._tag !== "StoreError") continue
      return yield* result.failure
    }
    const page = take(feed, read, result.success, member, request.after)
    if (page === undefined) continue
    moveTo(feed, member, page.position)
    // A page without any position shows that those up to `upTo` are not settled any more.
    if (page.position > request.after) yield* readAhead(feed, member, request)
    return page
  }
})

/** The server epoch has ended: pages that were read in it are invalid. */
export const endEpoch = (feed: Feed, epoch: ServerEpoch): Effect.Effect<void> =>
  Effect.suspend(() => {
    feed.endedEpoch = epoch
    for (const read of feed.reads) if (read.page?.epoch === epoch) feed.reads.delete(read)
    return feed.events.endEpoch(epoch)
  })

// Which reads a member takes its pages from.

/** Where the page of a read ends, as far as is known. */
const endOf = ({ page, upTo }: Read): bigint => page?.position ?? upTo

const isUsable = ({ hashes, members }: Read, member: Member): boolean =>
  members.has(member) && (hashes || !member.hashes)

/** Returns the read whose page contains the positions after this one. */
const readAt = ({ reads }: Feed, member: Member, after: bigint): Read | undefined => {
  for (const read of reads) {
    if (read.after <= after && after < endOf(read) && isUsable(read, member)) return read
  }
  return undefined
}

/**
 * Returns the last position of a new read for the member: that of the request, or the position at which a page begins
 * that the member can take.
 */
const endFor = ({ reads }: Feed, member: Member, { after, upTo }: Request): bigint => {
  let end = upTo
  for (const read of reads) if (after < read.after && read.after < end && isUsable(read, member)) end = read.after
  return end
}

/**
 * Returns the events of the page that the member selects; undefined if the page was begun for another member and ends at
 * or before `after`.
 */
const take = (feed: Feed, read: Read, page: Page, member: Member, after: bigint): Page | undefined => {
  release(feed, read, member)
  if (page.position <= after && read.after < after) return undefined
  read.isTaken = true
  if (!read.isDivided && after === read.after) return page
  const { selection } = member
  const events: Array<Event> = []
  const hashes: Array<number> = []
  for (const [index, event] of page.events.entries()) {
    if (event.globalPosition <= after) continue
    if (read.isDivided && !EventSelection.includes(selection, event, page.hashes![index]!)) continue
    events.push(event)
    if (page.hashes !== undefined) hashes.push(page.hashes[index]!)
  }
  return { ...page, events, ...(page.hashes === undefined ? {} : { hashes }) }
}

/** The member reads after this position next, so that it does not need the pages that end there or before. */
const moveTo = (feed: Feed, member: Member, after: bigint): void => {
  member.after = after
  for (const read of feed.reads) if (endOf(read) <= after) release(feed, read, member)
}

/** The member does not need the page any more. A read that no member needs ends. */
const release = ({ reads }: Feed, read: Read, member: Member): void => {
  read.members.delete(member)
  if (read.members.size > 0) return
  reads.delete(read)
  if (read.page === undefined) read.fiber?.interruptUnsafe()
}

// Beginning a read.

/**
 * Begins to read the next page of the member, if events are left and there is room for it besides the pages that no
 * range has taken. Pages that are only kept for slower ranges make room when it arrives: see `arrived`.
 */
const readAhead = (feed: Feed, member: Member, { hashes, upTo }: Request): Effect.Effect<unknown> => {
  const { after, job: { settings: { batchBytes } } } = member
  if (after >= upTo || !mayShare(member, after) || readAt(feed, member, after) !== undefined) return Effect.void
  if (!hasRoom(feed, batchBytes)) releaseStopped(feed)
  return hasRoom(feed, batchBytes) ? begin(feed, member, { after, hashes, upTo }) : Effect.void
}

const hasRoom = ({ reads }: Feed, batchBytes: number): boolean => {
  const ahead = sum(reads, ({ bytes, isTaken }) => isTaken ? 0 : bytes)
  return ahead + batchBytes <= keptPages * batchBytes
}

/** Ranges that have halted or drain do not take the pages that were read ahead for them. */
const releaseStopped = (feed: Feed): void => {
  for (const read of feed.reads) {
    for (const member of read.members) if (!isReading(member)) release(feed, read, member)
  }
}

/**
 * Begins a read for the member and those nearby. It is not interrupted before its fiber runs, because the members wait
 * for its result.
 */
const begin = Effect.fnUntraced(function*(feed: Feed, member: Member, { after, ...request }: Request) {
  const { batchBytes: bytes, batchSize: limit } = member.job.settings
  const upTo = endFor(feed, member, { after, ...request })
  const { isDivided, members, selection } = groupOf(feed, member, after, upTo)
  const hashes = isDivided || [...members].some((member) => member.hashes)
  const read: Read = {
    after,
    upTo,
    members,
    isDivided,
    isShared: members.size > 1,
    hashes,
    result: Deferred.makeUnsafe(),
    fiber: undefined,
    page: undefined,
    isTaken: false,
    bytes
  }
  feed.reads.add(read)
  const options: ReadOptions = { after, upTo, ...selection, limit, bytes, ...(hashes ? { hashes } : {}) }
  read.fiber = yield* Abandonable.startWith(feed.events.read(options), (exit) => {
    if (exit._tag === "Success") arrived(feed, read, exit.value, keptPages * bytes)
    else failed(feed, read)
    return Deferred.done(read.result, exit)
  })
  return read
}, Effect.uninterruptible)

const groupOf = (feed: Feed, member: Member, after: bigint, upTo: bigint): Group => {
  const { batchSize } = member.job.settings
  const distance = nearPages * BigInt(batchSize)
  const isNear = (other: Member) =>
    other.after < upTo && other.after <= after + distance && after <= other.after + distance
  const near = !mayShare(member, after) ?
    [] :
    [...feed.members].filter((other) => other !== member && mayShare(other, after) && isNear(other))
  const members = new Set([member])
  const keys = new Set([member.key])
  const union = EventSelection.unionOf(member.selection)
  // A range may touch the union only after others have extended it.
  for (let size = 0; size < members.size;) {
    size = members.size
    for (const other of near) {
      // A range that is ahead has already read the first events of this read, so the union must not grow for it.
      const isIncluded = members.has(other) || EventSelection.contains(union, other.selection) ||
        (other.after <= after && EventSelection.extend(union, other.selection))
      if (!isIncluded) continue
      members.add(other)
      keys.add(other.key)
    }
  }
  return { members, selection: EventSelection.toSelection(union), isDivided: keys.size > 1 }
}

/** Whether reads from this position may be shared with the member, and begun before it asks. */
const mayShare = (member: Member, after: bigint): boolean => after > member.aloneUpTo && isReading(member)

/** Whether the range reads on after its current page. */
const isReading = ({ job: { draining, state } }: Member): boolean => !draining.isOpen() && state.halt === undefined

/**
 * The page of a read has arrived: pages of another server epoch are invalid, and the oldest ones make room for it,
 * first those that a range has taken. The ranges that have not taken those read them again.
 */
const arrived = (feed: Feed, read: Read, page: Page, maxBytes: number): void => {
  const { endedEpoch, reads } = feed
  read.page = page
  if (page.epoch === endedEpoch) return void reads.delete(read)
  read.bytes = sum(page.events, (event) => sizeOf(event) + eventOverhead)
  for (const member of read.members) if (page.position <= member.after) release(feed, read, member)
  const kept = [...reads].filter((other) => other !== read && other.page !== undefined)
    .sort((a, b) => Number(b.isTaken) - Number(a.isTaken))
  let bytes = sum(kept, ({ bytes }) => bytes)
  for (const other of kept) {
    if (other.page!.epoch === page.epoch && bytes <= maxBytes) continue
    reads.delete(other)
    bytes -= other.bytes
  }
}

/**
 * A read has failed. It is not repeated ahead, only when a member asks for it: if the client cannot decode an event,
 * each attempt to read it ends the server epoch, and with it the page before it, which has not been committed.
 */
const failed = ({ reads }: Feed, read: Read): void => {
  reads.delete(read)
  for (const member of read.members) member.aloneUpTo = read.after
}

const sum = <A>(values: Iterable<A>, of: (value: A) => number): number => {
  let sum = 0
  for (const value of values) sum += of(value)
  return sum
}
