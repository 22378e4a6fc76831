/** Reports transactions that hold readers back: in the log, and to callers of `EventStore.openWriters`. */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Settled from "../../../schema/Settled.ts"
import type { OpenWriter } from "../../../services/EventStore.ts"
import type { State } from "./ReadSession.ts"

const reportAfterNanos = 10_000_000_000n

/** Logs each writer that has held readers at `positions` back for 10 s, and the end of those that were logged. */
export const report = Effect.fnUntraced(function*(
  { reported, settled: { writers } }: State,
  before: ReadonlyMap<string, Settled.Writer>,
  positions: ReadonlyArray<bigint>
) {
  const now = yield* Clock.monotonicTimeNanos
  for (const writer of positions.length === 0 ? [] : writers.values()) {
    if (reported.has(writer.id) || now - writer.since < reportAfterNanos) continue
    reported.add(writer.id)
    yield* Effect.logWarning(
      `An open transaction (${describe(writer)}) has appended events and keeps readers waiting at position ${
        positions.reduce((least, position) => position < least ? position : least)
      }. ${writer.pid === undefined ? "COMMIT PREPARED or ROLLBACK PREPARED it." : "Commit it or roll it back."}`
    )
  }
  for (const writer of before.values()) {
    if (!writers.has(writer.id) && reported.delete(writer.id)) {
      yield* Effect.logInfo(`The transaction that kept readers waiting (${describe(writer)}) has ended.`)
    }
  }
})

const describe = ({ application, id, pid }: Settled.Writer): string =>
  [...(pid === undefined ? [] : [`pid ${pid}`]), ...(application === undefined ? [] : [application])].join(", ") || id

export const list = ({ writers }: Settled.Settled, now: bigint): ReadonlyArray<OpenWriter> =>
  [...writers.values()].map(({ application, pid, since }) => ({
    pid,
    application,
    openFor: Duration.nanos(now - since)
  }))
