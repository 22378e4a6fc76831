/**
 * Sends notifications, always in a separate transaction, because a NOTIFY can fail at the commit (all databases of the
 * server share one queue, which any session can fill) and must not roll back other work.
 */
import * as Effect from "effect/Effect"
import type * as SqlError from "effect/sql/SqlError"
import { meaningOf } from "./SqlErrors.ts"

/** A channel and a payload. */
export type Message = readonly [channel: string, payload: string]

/** Runs one statement on the sending session. */
export type Query = (
  text: string,
  params: ReadonlyArray<unknown>
) => Effect.Effect<unknown, SqlError.SqlError>

/**
 * The commit of a notification waits for a lock that all notifications of a server share. `lock_timeout` bounds the
 * wait, because the session has other work; a commit ignores `statement_timeout`. `synchronous_commit` is off, because
 * a notification need not survive the server.
 */
const text = `SELECT set_config('lock_timeout', '1000', true), set_config('synchronous_commit', 'off', true),
    pg_notify(m.channel, m.payload)
  FROM unnest($1::text[], $2::text[]) AS m (channel, payload)`

const isQueueFull = (error: SqlError.SqlError): boolean => meaningOf(error).isQueueFull === true

/**
 * Returns a function that sends messages. A full queue is logged once and is not a failure. Callers that detect the end
 * of the session should ignore other failures, too: a lost notification delays its receivers by at most one poll
 * interval.
 */
export const makeSender = (): (
  query: Query,
  messages: ReadonlyArray<Message>
) => Effect.Effect<void, SqlError.SqlError> => {
  let reported = false
  return (query, messages) => {
    const send = query(text, [messages.map(([channel]) => channel), messages.map(([, payload]) => payload)])
    return send.pipe(
      // The server removes entries that every listener has read only after it has queued a notification, so a full
      // queue would stay full after its cause has ended. This function also removes them.
      Effect.catchIf(
        isQueueFull,
        () => Effect.andThen(query("SELECT pg_notification_queue_usage()", []), send)
      ),
      Effect.tap(() =>
        Effect.sync(() => {
          reported = false
        })
      ),
      Effect.catchIf(isQueueFull, () => {
        if (reported) return Effect.void
        reported = true
        return Effect.logWarning(
          "The notification queue of the database server is full; until it has space, workers find events by polling only. End the session, in any database of the server, that listens inside an open transaction (in pg_stat_activity: state \"idle in transaction\"); the server's log names its process id."
        )
      }),
      Effect.asVoid
    )
  }
}
