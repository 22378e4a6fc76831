/** How the handler of a batch names the event that cannot be handled. */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type { Event } from "../schema/Event.ts"

/**
 * Fails with `error`, and names the event of the batch that cannot be handled: the events before it are committed, and
 * `onFailure` applies to that event only. If no event is named, a `handleBatch` that fails is called again with halves
 * of its events until the event is found.
 *
 * **Example**
 *
 * ```ts
 * import { Effect, Schema } from "effect"
 * import { SqlClient } from "effect/sql"
 * import { Event, Projection } from "pupsourcing-orchestrator"
 *
 * const User = Schema.Struct({ name: Schema.String })
 *
 * export const names = Projection.make("names", {
 *   handleBatch: Effect.fnUntraced(function*(events) {
 *     const sql = yield* SqlClient.SqlClient
 *     const names: Array<string> = []
 *     for (const event of events) {
 *       const { name } = yield* Event.json(event, User).pipe(
 *         Effect.catch((error) => Projection.failAt(event, error))
 *       )
 *       names.push(name)
 *     }
 *     yield* sql`INSERT INTO names (name) SELECT unnest(${names}::text[]) ON CONFLICT DO NOTHING`
 *   })
 * })
 * ```
 *
 * @category utils
 * @since 0.1.0
 */
export const failAt = <E>(event: Pick<Event, "globalPosition">, error: E): Effect.Effect<never, E> =>
  Effect.failCause(Cause.annotate(Cause.fail(error), Context.make(FailedPosition, event.globalPosition)))

/** The position of the event that `failAt` has named, in the annotations of the failure. */
class FailedPosition extends Context.Service<FailedPosition, bigint>()("pupsourcing-orchestrator/FailedPosition") {}

/** Returns the position of the event that `failAt` has named, if any. */
export const position = (cause: Cause.Cause<unknown>): bigint | undefined =>
  Context.getOrUndefined(Cause.annotations(cause), FailedPosition)
