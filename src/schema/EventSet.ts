/**
 * Event sets: the types of the events of an aggregate, each with the schema of its payload, its version, and the
 * upcasts from its earlier versions. `services/EventSet.ts` is the public module.
 */
import * as Schema from "effect/Schema"
import { InvalidEventSet } from "./Errors.ts"
import type * as StoredEvent from "./Event.ts"
import { type Checked, define, type Definition, type Input, type SchemaOf } from "./EventDefinition.ts"
import type { EventFilter } from "./EventFilter.ts"

/**
 * The schemas of an event set by tag.
 *
 * @category utility types
 * @since 0.1.0
 */
export type Schemas = Readonly<Record<string, Schema.Top>>

/**
 * The parts of a stream's identity that an event set can declare for all of its events.
 *
 * @category utility types
 * @since 0.1.0
 */
export type StreamKey = "aggregateType" | "boundedContext"

/**
 * The options of an event set.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /** The aggregate type of all events of the set. `append` adds it, and a projection selects only its events. */
  readonly aggregateType?: string | undefined
  /** The bounded context of all events of the set. `append` adds it, and a projection selects only its events. */
  readonly boundedContext?: string | undefined
  /** Types that are stored but no longer of interest: ignored by projections, and never appended. */
  readonly retired?: ReadonlyArray<string> | undefined
  /**
   * What a projection does with an event whose type is neither in the set nor retired. `"ignore"` (the default) selects
   * events by their types, so that such an event is never read. `"fail"` selects all events of the aggregate type and
   * the bounded context (give at least one), and fails with `EventUndecodable`.
   */
  readonly unknown?: "fail" | "ignore" | undefined
}

/**
 * The types of the events of an aggregate. `S` contains the schema of each, `Missing` the parts of a stream's identity
 * that the set does not declare, so that `append` requires them.
 *
 * @category models
 * @since 0.1.0
 */
export interface EventSet<S extends Schemas, Missing extends StreamKey = never> {
  readonly definitions: { readonly [Tag in keyof S & string]: Definition<S[Tag]> }
  readonly stream: { readonly [K in StreamKey]: string | undefined }
  /** Stored types that are not decoded: the retired ones, and those that `pick` has left out. */
  readonly ignored: ReadonlyArray<string>
  readonly unknown: "fail" | "ignore"
  /** Selects the events of the set. */
  readonly filter: EventFilter
  /** Never set: for the type of `append`, which requires these parts of a stream's identity of each event. */
  readonly "~missing"?: Missing
  /** Returns the set with some of its types only. */
  readonly pick: <Tag extends keyof S & string>(...tags: readonly [Tag, ...Array<Tag>]) => EventSet<
    { readonly [K in Tag]: S[K] },
    Missing
  >
  /**
   * Returns the set with other schemas for some of its types, such as narrower ones for a projection that uses a part
   * of a payload. Upcasts run first. The result decodes only; `append` refuses it.
   */
  readonly with: <const N extends { readonly [Tag in keyof S & string]?: Schema.Top }>(
    schemas: N
  ) => EventSet<
    { readonly [Tag in keyof S & string]: Tag extends keyof N ? N[Tag] extends Schema.Top ? N[Tag] : S[Tag] : S[Tag] },
    Missing
  >
}

/**
 * Any event set.
 *
 * @category models
 * @since 0.1.0
 */
// oxlint-disable-next-line typescript/no-explicit-any -- the methods make an event set invariant in its schemas
export type Any = EventSet<any, any>

/**
 * The schemas of a set by tag.
 *
 * @category utility types
 * @since 0.1.0
 */
export type SchemasOf<Set extends Any> = Set extends EventSet<infer S, infer _M> ? S : never

/**
 * The tags of a set.
 *
 * @category utility types
 * @since 0.1.0
 */
export type Tag<Set extends Any> = keyof SchemasOf<Set> & string

/**
 * A stored event with its payload decoded. `eventType` is the tag, under whatever name the event is stored, and
 * `eventVersion` the version that is stored.
 *
 * @category models
 * @since 0.1.0
 */
export interface Decoded<out Tag extends string, out Payload> extends Omit<StoredEvent.Event, "eventType" | "payload"> {
  readonly eventType: Tag
  readonly payload: Payload
}

/**
 * The decoded events of a set: the union over its tags, or the event of some tags.
 *
 * @category utility types
 * @since 0.1.0
 */
export type Event<Set extends Any, Tags extends Tag<Set> = Tag<Set>> = {
  readonly [T in Tags]: Decoded<T, SchemasOf<Set>[T]["Type"]>
}[Tags]

/**
 * The payload of a tag.
 *
 * @category utility types
 * @since 0.1.0
 */
export type Payload<Set extends Any, T extends Tag<Set>> = SchemasOf<Set>[T]["Type"]

/**
 * The services that decoding an event of the set requires.
 *
 * @category utility types
 * @since 0.1.0
 */
export type DecodingServices<Set extends Any> = SchemasOf<Set>[Tag<Set>]["DecodingServices"]

/**
 * The services that encoding an event of the set requires.
 *
 * @category utility types
 * @since 0.1.0
 */
export type EncodingServices<Set extends Any> = SchemasOf<Set>[Tag<Set>]["EncodingServices"]

/**
 * The parts of a stream's identity that the options of a set do not declare.
 *
 * @category utility types
 * @since 0.1.0
 */
export type MissingIn<O extends Options> = Exclude<
  StreamKey,
  { [K in keyof O]: O[K] extends string ? K : never }[keyof O]
>

/**
 * Declares the types of the events of an aggregate. Throws `InvalidEventSet` if the declaration contradicts itself.
 *
 * **Example**
 *
 * ```ts
 * import { Schema } from "effect"
 * import { EventSet } from "pupsourcing-orchestrator"
 *
 * export const UserEvents = EventSet.make({
 *   UserRegistered: {
 *     version: 2,
 *     payload: Schema.Struct({ email: Schema.String, name: Schema.String }),
 *     upcast: { 1: (old) => ({ ...old, name: "" }) },
 *     storedAs: ["UserCreated"]
 *   },
 *   UserRenamed: Schema.Struct({ name: Schema.String })
 * }, { boundedContext: "identity", aggregateType: "User", retired: ["UserPinged"] })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <const I extends Readonly<Record<string, Input>>, const O extends Options = {}>(
  events: I & { readonly [Tag in keyof I]: Checked<I[Tag]> },
  options?: O
): EventSet<{ readonly [Tag in keyof I & string]: SchemaOf<I[Tag]> }, MissingIn<O>> => {
  const { aggregateType, boundedContext, retired = [], unknown = "ignore" }: Options = options ?? {}
  const definitions = Object.fromEntries(Object.entries(events).map(([tag, input]) => [tag, define(tag, input)]))
  const problem = problemOf(definitions, { aggregateType, boundedContext, retired, unknown })
  if (problem !== undefined) throw new InvalidEventSet({ problem })
  return of({ definitions, stream: { aggregateType, boundedContext }, ignored: retired, unknown }) as never
}

const problemOf = (
  definitions: Readonly<Record<string, Definition>>,
  { aggregateType, boundedContext, retired = [], unknown }: Options
): string | undefined => {
  const names = [...Object.values(definitions).flatMap(({ storedAs }) => storedAs), ...retired]
  const repeated = names.find((name, index) => names.indexOf(name) !== index)
  if (Object.keys(definitions).length === 0) return "An event set needs at least one event type."
  if (repeated !== undefined) {
    return `The stored type "${repeated}" occurs twice in the event set. Use each name only once: as a tag, in storedAs, or in retired.`
  }
  if ([...names, aggregateType, boundedContext].includes("")) return "A name in the event set is empty."
  return unknown === "fail" && aggregateType === undefined && boundedContext === undefined
    ? "An event set with unknown: \"fail\" selects all events of its aggregate type or bounded context. Give it one of them."
    : undefined
}

/** A set without its types and methods. */
type Parts = Pick<Any, "ignored" | "stream" | "unknown"> & {
  readonly definitions: Readonly<Record<string, Definition>>
}

const of = (parts: Parts): EventSet<Schemas> => ({
  ...parts,
  filter: filterOf(parts),
  pick: (...tags) => of(pick(parts, tags)),
  with: (schemas) => of({ ...parts, definitions: narrow(parts.definitions, schemas) })
} as EventSet<Schemas>)

const filterOf = ({ definitions, stream, unknown }: Parts): EventFilter => ({
  boundedContexts: stream.boundedContext === undefined ? undefined : [stream.boundedContext],
  aggregateTypes: stream.aggregateType === undefined ? undefined : [stream.aggregateType],
  eventTypes: unknown === "fail" ? undefined : Object.values(definitions).flatMap(({ storedAs }) => storedAs)
})

const pick = (parts: Parts, tags: ReadonlyArray<string>): Parts => {
  const [kept, left] = [true, false].map((isPicked) =>
    Object.values(parts.definitions).filter(({ tag }) => tags.includes(tag) === isPicked)
  ) as [Array<Definition>, Array<Definition>]
  return {
    ...parts,
    definitions: Object.fromEntries(kept.map((definition) => [definition.tag, definition])),
    ignored: [...parts.ignored, ...left.flatMap(({ storedAs }) => storedAs)]
  }
}

const narrow = (
  definitions: Readonly<Record<string, Definition>>,
  schemas: { readonly [tag: string]: unknown }
): Readonly<Record<string, Definition>> =>
  Object.fromEntries(
    Object.entries(definitions).map(([tag, definition]) => {
      const payload = schemas[tag]
      return [tag, Schema.isSchema(payload) ? { ...definition, payload, isNarrowed: true } : definition]
    })
  )
