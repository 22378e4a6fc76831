/** The delays of appended events, once every event is committed. */
import { Effect, Schedule } from "effect"
import * as Database from "./Database.ts"
import type * as Hosts from "./Hosts.ts"
import type { Appended } from "./Messages.ts"
import * as Timeline from "./Timeline.ts"

/** Waits until each event has a reported commit; dies if one has none after 10 seconds. */
export const all = Effect.fnUntraced(function*(hosts: Hosts.Hosts, appended: Appended, projection: string) {
  const hashes = yield* Database.hashes
  const expected = appended.due.length
  const delays = yield* Effect.sync(() => Timeline.delays(appended.due, appended, hashes, hosts.entries, projection))
    .pipe(
      Effect.repeat({
        until: ({ length }) => length === expected,
        schedule: Schedule.spaced("500 millis"),
        times: 20
      })
    )
  if (delays.length === expected) return delays
  return yield* Effect.die(new Error(`${delays.length} of ${expected} events have a reported commit`))
})
