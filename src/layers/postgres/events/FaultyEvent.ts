/** Events that cannot be returned: how they are found, and the errors that describe them. */
import * as Effect from "effect/Effect"
import { EventTooLarge, EventUnreadable, type StatementFailed, type StoreError } from "../../../schema/Errors.ts"
import type { Event } from "../../../schema/Event.ts"
import * as PartitionKey from "../../../schema/PartitionKey.ts"
import type { ServerEpoch } from "../../../services/EventStore.ts"
import * as ServerEpochSql from "../connection/ServerEpochSql.ts"
import { isUnreadable, unsupported } from "../connection/SqlErrors.ts"
import type { Database } from "../Database.ts"
import type { ReadStatements } from "./EventSql.ts"
import type { ReadSession } from "./ReadSession.ts"

/** An event that cannot be read. */
export interface Unreadable {
  readonly position: bigint
  readonly failure: StatementFailed
}

/** Reads the events above `after` up to `upTo`. Returns why they cannot be read; undefined if all can be read. */
type Check = (after: bigint, upTo: bigint) => Effect.Effect<StatementFailed | "timeout" | undefined, StoreError>

/** A window whose events cannot all be read. */
interface Failing {
  readonly after: bigint
  readonly upTo: bigint
  readonly failure: StatementFailed
}

/**
 * The first event above `after` that cannot be read, or undefined if all can be read or the search takes too long. Each
 * statement stops at the first such event, so none reads far beyond it.
 */
export const find = Effect.fnUntraced(function*(check: Check, after: bigint, upTo: bigint) {
  const failing = yield* findWindow(check, after, upTo)
  const narrowed = failing === undefined ? undefined : yield* narrow(check, failing)
  return narrowed === undefined ? undefined : yield* confirm(check, narrowed.upTo)
})

/**
 * Doubles the window until a statement fails. A statement that takes too long, because of large events, is repeated
 * with a smaller window.
 */
const findWindow = Effect.fnUntraced(function*(check: Check, after: bigint, upTo: bigint) {
  let low = after
  let size = 1n
  while (low < upTo) {
    const high = low + size < upTo ? low + size : upTo
    const found = yield* check(low, high)
    if (found === "timeout") {
      size = size > 4n ? size / 4n : 1n
    } else if (found !== undefined) {
      return { after: low, upTo: high, failure: found } satisfies Failing
    } else {
      low = high
      size *= 2n
    }
  }
  return undefined
})

/** Halves a window until it contains only the first event that cannot be read. */
const narrow = Effect.fnUntraced(function*(check: Check, failing: Failing) {
  let { after, failure, upTo } = failing
  while (upTo - after > 1n) {
    const middle = (after + upTo) / 2n
    const sooner: StatementFailed | "timeout" | undefined = yield* check(after, middle)
    if (sooner === "timeout") return undefined
    if (sooner === undefined) {
      after = middle
    } else {
      upTo = middle
      failure = sooner
    }
  }
  return { after, upTo, failure } satisfies Failing
})

/** The event is the cause only if reading it alone fails, and a statement that reads no row succeeds. */
const confirm = Effect.fnUntraced(function*(check: Check, position: bigint) {
  const alone = yield* check(position - 1n, position)
  return typeof alone === "object" && (yield* check(position, position)) === undefined
    ? { position, failure: alone } satisfies Unreadable
    : undefined
})

interface Dependencies {
  readonly database: Database["Service"]
  readonly session: ReadSession
  readonly statements: ReadStatements
  /** Maximum size in bytes of an event that the client can receive. */
  readonly largestEvent: number
}

/** How the event was read. */
interface Read {
  readonly partitionBy?: PartitionKey.PartitionKey | undefined
  readonly epoch: ServerEpoch
}

/** The error for an event that the client cannot receive. */
export const toTooLarge = Effect.fnUntraced(function*(self: Dependencies, position: bigint, read: Read) {
  const { epoch } = read
  const [row] = yield* self.session.use(
    "measure an event",
    ({ sql, state }) =>
      // After a failover, its position may belong to another event, or to none yet.
      state.epoch !== epoch
        ? Effect.fail(ServerEpochSql.epochEnded(self.database.sessionServer))
        : sql.unsafe<Pick<Event, "eventId"> & Label & { readonly bytes: number }>(self.statements.measure, [position])
  )
  return row === undefined
    ? unsupported({
      problem: `The event at position ${position} of ${
        self.database.qualified("events")
      } disappeared while it was read.`,
      advice: "Delete no events while projections run."
    })
    : new EventTooLarge({ ...row, ...(yield* keyAt(self, position, read)), position, limit: self.largestEvent, epoch })
})

type Label = Pick<Event, "aggregateId" | "aggregateType" | "aggregateVersion" | "eventType">

/** The error for an event that cannot be read, with those parts of its description that can be read. */
export const toUnreadable = Effect.fnUntraced(function*(
  self: Dependencies,
  { failure: { code, detail }, position }: Unreadable,
  read: Read
) {
  const identity = yield* part<Pick<Event, "eventId">>(self, self.statements.eventId, position)
  const label = yield* part<Label>(self, self.statements.label, position)
  return new EventUnreadable({
    position,
    detail,
    epoch: read.epoch,
    ...identity,
    ...label,
    ...(yield* keyAt(self, position, read)),
    ...(code === undefined ? {} : { code })
  })
})

/** A part of an event's description; empty if it cannot be read. */
const part = <A extends object>({ session }: Dependencies, statement: string, position: bigint) =>
  session.use("identify an unreadable event", ({ sql }) => sql.unsafe<A>(statement, [position])).pipe(
    Effect.map(([row]): Partial<A> => row ?? {}),
    Effect.catchIf(isUnreadable, () => Effect.succeed<Partial<A>>({}))
  )

/** The event's key, unless it is the aggregate id, which is part of the description. */
const keyAt = (
  self: Dependencies,
  position: bigint,
  { partitionBy = PartitionKey.byDefault }: Read
): Effect.Effect<{ readonly key?: string }, StoreError> =>
  PartitionKey.isDefault(partitionBy)
    ? Effect.succeed({})
    : part<{ readonly key: string }>(self, self.statements.key(partitionBy), position)
