/** Finds the position before the first event of a time: see `EventStore.positionBefore`. */
import * as Effect from "effect/Effect"
import type { StoreError } from "../../../schema/Errors.ts"
import type { EventStore } from "../../../services/EventStore.ts"
import type { Database } from "../Database.ts"
import { timeOf } from "./EventSql.ts"
import type { ReadSession } from "./ReadSession.ts"
import type { SettledTracker } from "./SettledTracker.ts"

interface Dependencies {
  readonly database: Database["Service"]
  readonly session: ReadSession
  readonly tracker: SettledTracker
}

/**
 * Number of events that one statement reads. Short statements leave the session to the readers in between, and stay
 * below its time limit.
 */
const eventsPerStatement = 20_000

export const make = (self: Dependencies): EventStore["Service"]["positionBefore"] => {
  const statement = makeStatement(self.database.qualified("events"))
  return Effect.fnUntraced(function*(fromMicros) {
    while (true) {
      const position = yield* search(self, statement, fromMicros)
      if (position !== undefined) return position
    }
  })
}

/**
 * Reads the settled events in parts. Only these decide: an open transaction may still commit an event of that time
 * below one that is already visible. Undefined if the server epoch has ended, after which positions are reissued.
 */
const search = Effect.fnUntraced(function*(
  { session, tracker }: Dependencies,
  statement: string,
  fromMicros: bigint
): Effect.fn.Return<bigint | undefined, StoreError> {
  const { epoch, settled } = yield* tracker.proved
  let after = 0n
  while (true) {
    const part = yield* session.use("find the first event of a time", ({ sql, state }) =>
      state.epoch === epoch
        ? Effect.map(
          sql.unsafe<{ readonly found: bigint | null; readonly last: bigint | null }>(statement, [
            after,
            settled.position,
            String(fromMicros)
          ]),
          ([row]) => row
        )
        : Effect.undefined)
    if (part === undefined) return undefined
    if (part.found !== null) return part.found - 1n
    if (part.last === null) return settled.position
    after = part.last
  }
})

/** The first event from $3 on among the next ones with $1 < position <= $2, and the last one that was read. */
const makeStatement = (events: string): string => `
  SELECT min(global_position) FILTER (WHERE created_at >= ${timeOf("$3::int8")}) AS found, max(global_position) AS last
  FROM (
    SELECT global_position, created_at FROM ${events}
    WHERE global_position > $1::int8 AND global_position <= $2::int8
    ORDER BY global_position LIMIT ${eventsPerStatement}
  ) AS part`
