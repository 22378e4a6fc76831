/**
 * Typed events: declares the event types of an aggregate once, with schemas, versions and upcasts, for appending,
 * decoding and projecting them.
 *
 * **Example** (Declare and append)
 *
 * ```ts
 * import { Effect, Schema } from "effect"
 * import { EventSet } from "pupsourcing-orchestrator"
 *
 * const UserEvents = EventSet.make({
 *   UserRegistered: Schema.Struct({ email: Schema.String }),
 *   UserRenamed: Schema.Struct({ name: Schema.String })
 * }, { boundedContext: "identity", aggregateType: "User" })
 *
 * const register = (aggregateId: string, email: string) =>
 *   EventSet.append(UserEvents, [{ eventType: "UserRegistered", aggregateId, payload: { email } }], {
 *     expectedVersion: "none"
 *   })
 * ```
 *
 * @since 0.1.0
 */
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import type * as FileSystem from "effect/FileSystem"
import type * as Option from "effect/Option"
import type { PlatformError } from "effect/PlatformError"
import type { ConcurrencyConflict, DuplicateEvent, InvalidEvents, StoreError } from "../schema/Errors.ts"
import type { Appended, Event as StoredEvent, NewEvent as StoredNewEvent } from "../schema/Event.ts"
import * as EventCodec from "../schema/EventCodec.ts"
import type { Any, DecodingServices, EncodingServices, Event, SchemasOf, Tag } from "../schema/EventSet.ts"
import { EventStore } from "./EventStore.ts"
import * as GoldenPayloads from "./GoldenPayloads.ts"

export type { Checked, Definition, Input, SchemaOf, Upcast, VersionedInput } from "../schema/EventDefinition.ts"
export {
  type Any,
  type Decoded,
  type DecodingServices,
  type EncodingServices,
  type Event,
  type EventSet,
  make,
  type MissingIn,
  type Options,
  type Payload,
  type Schemas,
  type SchemasOf,
  type StreamKey,
  type Tag
} from "../schema/EventSet.ts"

/**
 * The errors of decoding an event.
 *
 * @category errors
 * @since 0.1.0
 */
export type { DecodeError } from "../schema/EventCodec.ts"

/**
 * An event to be appended, with its payload as the schema's type. The set provides its version, and what it declares of
 * the aggregate type and the bounded context.
 *
 * @category models
 * @since 0.1.0
 */
export type NewEvent<Set extends Any> = {
  readonly [T in Tag<Set>]:
    & Omit<StoredNewEvent, "aggregateType" | "boundedContext" | "eventType" | "eventVersion" | "payload">
    & { readonly [K in NonNullable<Set["~missing"]>]: string }
    & { readonly eventType: T; readonly payload: SchemasOf<Set>[T]["Type"] }
}[Tag<Set>]

/**
 * Encodes an event with its schema: returns it as `EventStore.append` expects it, with the JSON value of its payload, its
 * current version, and what the set declares. Fails with `InvalidEvents` if the payload does not match its schema.
 *
 * **When to use**
 *
 * To append without `append`: together with events of another set, or with a writer of your own.
 *
 * @category appending
 * @since 0.1.0
 */
export const encode = <Set extends Any>(
  set: Set,
  event: NewEvent<Set>
): Effect.Effect<StoredNewEvent, InvalidEvents, EncodingServices<Set>> =>
  Effect.map(EventCodec.encode(set, [event]), ([encoded]) => encoded) as never

/**
 * Encodes events with the schemas of the set, then appends them as `EventStore.append` does. Fails with `InvalidEvents`
 * if a payload does not match its schema. The current version of each type is stored.
 *
 * @category appending
 * @since 0.1.0
 */
export const append = <Set extends Any>(
  set: Set,
  events: ReadonlyArray<NewEvent<Set>>,
  options?: Parameters<EventStore["Service"]["append"]>[1]
): Effect.Effect<
  Appended,
  ConcurrencyConflict | DuplicateEvent | InvalidEvents | StoreError,
  EncodingServices<Set> | EventStore
> =>
  Effect.gen(function*() {
    const encoded = yield* EventCodec.encode(set, events)
    const store = yield* EventStore
    return yield* store.append(encoded, options)
  }) as never

/**
 * Decodes a stored event: applies the upcasts from its version on, then the schema. None if the set ignores the type.
 *
 * @category decoding
 * @since 0.1.0
 */
export const decode = <Set extends Any>(
  set: Set,
  event: StoredEvent
): Effect.Effect<Option.Option<Event<Set>>, EventCodec.DecodeError, DecodingServices<Set>> =>
  EventCodec.decode(set, event) as never

/**
 * Decodes stored events in their order, such as those of `EventStore.readStream`, without those that the set ignores.
 *
 * @category decoding
 * @since 0.1.0
 */
export const decodeAll = <Set extends Any>(
  set: Set,
  events: ReadonlyArray<StoredEvent>
): Effect.Effect<ReadonlyArray<Event<Set>>, EventCodec.DecodeError, DecodingServices<Set>> =>
  Effect.map(Effect.forEach(events, (event) => decode(set, event)), Arr.getSomes) as never

/**
 * Checks that every stored version of every type still decodes. `folder` contains one or more payloads of each version
 * as JSON files named `UserRegistered.v1.json` or `UserRegistered.v1.without-name.json`, by the stored type. Returns
 * the problems: payloads that do not decode, files of types that the set neither contains nor ignores, and versions
 * without a file.
 *
 * **When to use**
 *
 * In a test. Commit a file when a version is introduced, and never change it.
 *
 * **Example**
 *
 * ```ts
 * import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
 * import { assert, it } from "@effect/vitest"
 * import { Effect, Schema } from "effect"
 * import { EventSet } from "pupsourcing-orchestrator"
 *
 * const UserEvents = EventSet.make({ UserRenamed: Schema.Struct({ name: Schema.String }) })
 *
 * it.effect("every stored payload decodes", () =>
 *   Effect.gen(function*() {
 *     assert.deepStrictEqual(yield* EventSet.golden(UserEvents, "test/golden/users"), [])
 *   }).pipe(Effect.provide(NodeFileSystem.layer)))
 * ```
 *
 * @category testing
 * @since 0.1.0
 */
export const golden = <Set extends Any>(
  set: Set,
  folder: string
): Effect.Effect<ReadonlyArray<string>, PlatformError, DecodingServices<Set> | FileSystem.FileSystem> =>
  GoldenPayloads.check(set, folder) as never
