/**
 * Announcements that wait to be sent. Those of a few milliseconds are sent as one message, and always in a transaction
 * of their own.
 */
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Semaphore from "effect/Semaphore"
import * as Announcement from "../../../schema/Announcement.ts"
import * as Notifications from "./Notifications.ts"

export interface Outbox {
  /** By channel. */
  readonly pending: Map<string, Announcement.Announcement>
  /** Open while announcements wait. */
  readonly waiting: Latch.Latch
  readonly sending: Semaphore.Semaphore
  readonly send: ReturnType<typeof Notifications.makeSender>
}

export const make = (): Outbox => ({
  pending: new Map(),
  waiting: Latch.makeUnsafe(false),
  sending: Semaphore.makeUnsafe(1),
  send: Notifications.makeSender()
})

export const put = (
  { pending, waiting }: Outbox,
  channel: string,
  announcement: Announcement.Announcement
): void => {
  const earlier = pending.get(channel)
  pending.set(channel, earlier === undefined ? announcement : Announcement.merge(earlier, announcement))
  waiting.openUnsafe()
}

/** Sends what waits, after a send that is in progress. Without a query it is discarded. */
export const flush = (outbox: Outbox, query: () => Notifications.Query | undefined): Effect.Effect<void> =>
  outbox.sending.withPermit(Effect.suspend(() => {
    const messages = [...outbox.pending].map(([channel, announcement]): Notifications.Message => [
      channel,
      Announcement.encode(announcement)
    ])
    outbox.pending.clear()
    outbox.waiting.closeUnsafe()
    const send = query()
    return send === undefined || messages.length === 0
      ? Effect.void
      // The session that sends detects its own loss, and a receiver that misses a message finds the change by polling.
      : Effect.ignoreCause(outbox.send(send, messages))
  }))
