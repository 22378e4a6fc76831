/** The definition of one event type: the schema of its payload, its version, and the upcasts from its earlier versions. */
import * as Schema from "effect/Schema"
import { InvalidEventSet } from "./Errors.ts"

/**
 * Converts a payload, as parsed from JSON, to the next version. Pure: it may be called more than once for an event. No
 * schema describes the payloads of earlier versions; the function may declare a type for its parameter.
 *
 * @category models
 * @since 0.1.0
 */
// oxlint-disable-next-line typescript/no-explicit-any -- a declared type does not accept unknown
export type Upcast = (old: any) => unknown

/**
 * The declaration of one event type. A schema alone declares version 1.
 *
 * @category options
 * @since 0.1.0
 */
export interface VersionedInput {
  /** The version of the payload that is appended now. Default 1. */
  readonly version?: number | undefined
  /** The schema of that version. Payloads are stored in its JSON form (`Schema.toCodecJson`). */
  readonly payload: Schema.Top
  /**
   * One function for each earlier version, which converts its payload to the next version: exactly 1 to `version` - 1.
   */
  readonly upcast?: Readonly<Record<number, Upcast>> | undefined
  /** Other names under which events of this type are stored, such as the type's earlier name. */
  readonly storedAs?: ReadonlyArray<string> | undefined
}

/**
 * The declaration of one event type: a schema, or a schema with its version.
 *
 * @category options
 * @since 0.1.0
 */
export type Input = Schema.Top | VersionedInput

type Below<V extends number, Found extends ReadonlyArray<unknown> = [unknown]> = Found["length"] extends V | 100 ? never
  : Found["length"] | Below<V, [...Found, unknown]>

/**
 * What an input must also satisfy: an upcast from exactly the versions below the declared one.
 *
 * @category utility types
 * @since 0.1.0
 */
export type Checked<I> = I extends Schema.Top ? unknown
  : I extends { readonly version: infer V extends number } ? number extends V ? unknown
    : [Below<V>] extends [never] ? NoUpcasts
    : { readonly upcast: { readonly [K in Below<V>]: Upcast } & OnlyBelow<V, I> }
  : NoUpcasts

interface NoUpcasts {
  readonly upcast?: Readonly<Record<number, "There is no version below 1 to upcast from">>
}

type OnlyBelow<V extends number, I> = I extends { readonly upcast: infer U }
  ? { readonly [K in Exclude<keyof U, Below<V>>]: `Upcasts are from the versions below ${V}` }
  : unknown

/**
 * The schema of an input.
 *
 * @category utility types
 * @since 0.1.0
 */
export type SchemaOf<I> = I extends Schema.Top ? I : I extends { readonly payload: infer P extends Schema.Top } ? P
: never

/**
 * One event type of a set.
 *
 * @category models
 * @since 0.1.0
 */
export interface Definition<out S extends Schema.Top = Schema.Top> {
  readonly tag: string
  /** The version that is appended. */
  readonly version: number
  readonly payload: S
  /** The upcasts from versions 1, 2, and so on. */
  readonly upcasts: ReadonlyArray<Upcast>
  /** The names under which its events are stored; the tag is the first. */
  readonly storedAs: ReadonlyArray<string>
  /** Whether `with` has replaced the schema, which is then for decoding only. */
  readonly isNarrowed: boolean
}

/** Returns the definition that an input declares. Throws `InvalidEventSet` if its version and its upcasts do not match. */
export const define = (tag: string, input: Input): Definition => {
  const { payload, storedAs = [], upcast = {}, version = 1 }: VersionedInput = Schema.isSchema(input)
    ? { payload: input }
    : input
  const upcasts = Object.keys(upcast).length === version - 1
    ? Array.from({ length: version - 1 }, (_, index) => upcast[index + 1])
    : [undefined]
  if (upcasts.some((one) => typeof one !== "function")) {
    throw new InvalidEventSet({
      problem: `Event type "${tag}" has version ${version} and upcasts from: ${
        Object.keys(upcast).join(", ") || "none"
      }. Give it a version of 1 or more, and one upcast from each version below that.`
    })
  }
  return {
    tag,
    version,
    payload,
    upcasts: upcasts as ReadonlyArray<Upcast>,
    storedAs: [tag, ...storedAs.filter((name) => name !== tag)],
    isNarrowed: false
  }
}
