/** The event store on PostgreSQL, in the tables that pupsourcing creates. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Announcement from "../../../schema/Announcement.ts"
import * as AppendDefaults from "../../../services/AppendDefaults.ts"
import { EventStore } from "../../../services/EventStore.ts"
import { Listener } from "../connection/Listener.ts"
import { isUnreadable } from "../connection/SqlErrors.ts"
import { Database } from "../Database.ts"
import * as EventAppend from "./EventAppend.ts"
import * as EventSql from "./EventSql.ts"
import * as PageReader from "./PageReader.ts"
import * as PositionBefore from "./PositionBefore.ts"
import * as ReadSession from "./ReadSession.ts"
import * as SequenceCheck from "./SequenceCheck.ts"
import * as SettledTracker from "./SettledTracker.ts"

export const make: Effect.Effect<EventStore["Service"], never, Database | Listener | Scope.Scope> = Effect.gen(
  function*() {
    const database = yield* Database
    const listener = yield* Listener
    const session = yield* ReadSession.make
    const tracker = yield* SettledTracker.make(session)
    const statements = EventSql.readStatements(database.qualified("events"))
    const reader = PageReader.make({ database, session, tracker, statements })
    const appends = EventAppend.make({
      database,
      session,
      announce: (hash) =>
        Effect.suspend(() => {
          const announcement = Announcement.make([hash])
          tracker.announce(announcement)
          return listener.notify(database.channels.events, announcement)
        })
    })
    return EventStore.of({
      append: (events, options) =>
        AppendDefaults.run(
          events,
          (defaults) => EventAppend.append(appends, events, { ...options, defaults })
        ),
      readStream: readStream(database, statements),
      read: (options) => PageReader.read(reader, options),
      endEpoch: session.endEpoch,
      settledPosition: Effect.map(tracker.proved, ({ settled }) => settled.position),
      positionBefore: PositionBefore.make({ database, session, tracker }),
      settledBeyond: tracker.settledBeyond,
      headPosition: headPosition({ database, session, tracker, statements }),
      openWriters: tracker.openWriters
    })
  }
)

const readStream = (
  { refail, sql }: Database["Service"],
  statements: EventSql.ReadStatements
): EventStore["Service"]["readStream"] =>
(stream, options) =>
  sql.unsafe(statements.stream, [
    ...EventSql.streamParameters(stream),
    EventSql.versionText(options?.from ?? 1n),
    options?.to === undefined ? null : EventSql.versionText(options.to),
    options?.limit === undefined ? null : String(EventSql.rowCount(Math.max(0, options.limit || 0)))
  ]).values.pipe(
    Effect.map((rows) => (rows as unknown as ReadonlyArray<EventSql.StreamRow>).map(EventSql.toEventOfStream)),
    refail("read a stream", ["appender", "worker"])
  )

const headPosition = ({ database, session, statements, tracker }: {
  readonly database: Database["Service"]
  readonly session: ReadSession.ReadSession
  readonly tracker: SettledTracker.SettledTracker
  readonly statements: EventSql.ReadStatements
}): EventStore["Service"]["headPosition"] =>
  session.use(
    "read the head",
    ({ sql }) => sql.unsafe<{ readonly head: bigint; readonly recovering: boolean }>(statements.head)
  ).pipe(
    // A standby that has not replayed everything that it received would return a head that is too low.
    Effect.flatMap(([row]) =>
      row?.recovering === true
        ? SequenceCheck.readOnly(database)
        : Effect.succeed(row?.head ?? 0n)
    ),
    // The last event cannot be read; the last value of the sequence is an upper bound.
    Effect.catchIf(isUnreadable, () => Effect.map(tracker.observe(0n, 0n), ({ head }) => head))
  )
