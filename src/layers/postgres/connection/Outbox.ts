/**
 * Notifications that wait to be sent. Equal messages within a few milliseconds are sent once, and always in a
 * transaction of their own.
 */
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Semaphore from "effect/Semaphore"
import * as Notifications from "./Notifications.ts"

/** Different messages that are kept between two sends; more are discarded, because every receiver is woken anyway. */
const capacity = 1000

export interface Outbox {
  readonly pending: Map<string, Notifications.Message>
  /** Open while messages wait. */
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

export const put = ({ pending, waiting }: Outbox, [channel, payload]: Notifications.Message): void => {
  if (pending.size < capacity) pending.set(`${channel}\u0000${payload}`, [channel, payload])
  waiting.openUnsafe()
}

/**
 * Sends the messages that wait, after a send that is in progress. Without a query they are discarded.
 */
export const flush = (outbox: Outbox, query: () => Notifications.Query | undefined): Effect.Effect<void> =>
  outbox.sending.withPermit(Effect.suspend(() => {
    const messages = [...outbox.pending.values()]
    outbox.pending.clear()
    outbox.waiting.closeUnsafe()
    const send = query()
    return send === undefined || messages.length === 0
      ? Effect.void
      // The session that sends detects its own loss, and a receiver that misses a message finds the change by polling.
      : Effect.ignoreCause(outbox.send(send, messages))
  }))
