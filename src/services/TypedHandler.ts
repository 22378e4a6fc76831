/** Handlers of decoded events: their types, and their conversion to handlers of stored events. */
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { Event } from "../schema/Event.ts"
import * as EventCodec from "../schema/EventCodec.ts"
import type * as EventSet from "../schema/EventSet.ts"
import { failAt } from "./FailedEvent.ts"
import { effectOf } from "./HandlerResult.ts"

/**
 * One function for all events of the set, or one function for each tag.
 *
 * @category utility types
 * @since 0.1.0
 */
export type HandlerOf<Set extends EventSet.Any> =
  | ((event: EventSet.Event<Set>) => Effect.Effect<unknown, unknown, unknown>)
  | HandlersOf<Set>

/**
 * One function for each tag of the set.
 *
 * @category utility types
 * @since 0.1.0
 */
export type HandlersOf<Set extends EventSet.Any> = {
  readonly [Tag in EventSet.Tag<Set>]: (event: EventSet.Event<Set, Tag>) => Effect.Effect<unknown, unknown, unknown>
}

/**
 * The type that a misspelt tag must have, so that the compiler's message shows the right ones.
 *
 * @category utility types
 * @since 0.1.0
 */
export interface NotInEventSet<Tags> {
  readonly "~tags": Tags
}

/**
 * Excludes keys that are not tags of the set.
 *
 * @category utility types
 * @since 0.1.0
 */
export type OnlyTags<H, Set extends EventSet.Any> = H extends (...args: never) => unknown ? unknown
  : {
    readonly [K in Exclude<keyof H, EventSet.Tag<Set>>]: NotInEventSet<Extract<keyof EventSet.SchemasOf<Set>, string>>
  }

/**
 * The effects of a handler of single events.
 *
 * @category utility types
 * @since 0.1.0
 */
export type EffectOf<H> = H extends (...args: never) => infer A ? A
  : { [K in keyof H]: H[K] extends (...args: never) => infer A ? A : never }[keyof H]

/**
 * The errors of the handler of single events; if there is none, those of the handler of batches.
 *
 * @category utility types
 * @since 0.1.0
 */
export type ErrorOf<H, Set extends EventSet.Any, E> = [HandlerOf<Set>] extends [H] ? NoInfer<E>
  : Effect.Error<EffectOf<H>>

/**
 * The services of the handler of single events; if there is none, those of the handler of batches.
 *
 * @category utility types
 * @since 0.1.0
 */
export type ServicesOf<H, Set extends EventSet.Any, R> = [HandlerOf<Set>] extends [H] ? NoInfer<R>
  : Effect.Services<EffectOf<H>>

type AnyEffect = Effect.Effect<unknown, unknown, unknown>

/** A decoded event of any set. */
type Decoded = EventSet.Decoded<string, unknown>

/** Converts the handler of one event. It is not called for an event that the set ignores. */
export const one = (set: EventSet.Any, handle: object) => (event: Event): AnyEffect =>
  Effect.flatMap(EventCodec.decode(set, event), (decoded) =>
    Option.match(decoded, {
      onNone: () => Effect.void,
      onSome: (event) => {
        const own: unknown = typeof handle === "function" ? handle : handle[event.eventType as keyof typeof handle]
        return effectOf((own as (event: Decoded) => unknown).call(handle, event))
      }
    }))

/** The tags of the set for which the handler has no function. Only JavaScript code can omit one. */
export const missing = ({ definitions }: EventSet.Any, handle: object): ReadonlyArray<string> =>
  typeof handle === "function"
    ? []
    : Object.keys(definitions).filter((tag) => typeof handle[tag as keyof typeof handle] !== "function")

/** Converts the handler of a batch. Names the event that cannot be decoded. */
export const batch =
  (set: EventSet.Any, handleBatch: (events: never) => unknown) => (events: ReadonlyArray<Event>): AnyEffect =>
    Effect.forEach(events, (event) => EventCodec.decode(set, event).pipe(Effect.catch((error) => failAt(event, error))))
      .pipe(
        Effect.map(Arr.getSomes),
        Effect.flatMap((decoded) =>
          Arr.isReadonlyArrayNonEmpty(decoded) ? effectOf(handleBatch(decoded as never)) : Effect.void
        )
      )
