/**
 * Decodes stored events with an event set, and encodes new ones. The errors name the path in a payload, never its
 * content: keys that the schema does not name, as in a record, may be content and are replaced by `*`.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SchemaAST from "effect/SchemaAST"
import type * as SchemaIssue from "effect/SchemaIssue"
import { EventUndecodable, EventVersionTooNew, InvalidEvents } from "./Errors.ts"
import { type Event, type NewEvent, text } from "./Event.ts"
import type { Definition } from "./EventDefinition.ts"
import type * as EventSet from "./EventSet.ts"
import { pathText } from "./Json.ts"

/** The errors of decoding an event. */
export type DecodeError = EventUndecodable | EventVersionTooNew

/** A definition with the parsers of its schema. */
interface Codec {
  readonly definition: Definition
  readonly decode: (json: unknown) => Effect.Effect<unknown, Schema.SchemaError, unknown>
  readonly encode: (payload: unknown) => Effect.Effect<unknown, Schema.SchemaError, unknown>
}

/** What is looked up for every event of a set. */
interface Codecs {
  readonly byTag: ReadonlyMap<string, Codec>
  readonly byStoredName: ReadonlyMap<string, Codec>
  readonly ignored: ReadonlySet<string>
}

const cache = new WeakMap<EventSet.Any, Codecs>()

const codecsOf = (set: EventSet.Any): Codecs => {
  const cached = cache.get(set)
  if (cached !== undefined) return cached
  const all = Object.values<Definition>(set.definitions).map((definition): Codec => {
    const json = Schema.toCodecJson(definition.payload)
    return { definition, decode: Schema.decodeUnknownEffect(json), encode: Schema.encodeUnknownEffect(json) }
  })
  const codecs: Codecs = {
    byTag: new Map(all.map((codec) => [codec.definition.tag, codec])),
    byStoredName: new Map(all.flatMap((codec) => codec.definition.storedAs.map((name) => [name, codec]))),
    ignored: new Set(set.ignored)
  }
  cache.set(set, codecs)
  return codecs
}

/** Returns the decoded event; none if the set ignores its type. */
export const decode = (
  set: EventSet.Any,
  event: Event
): Effect.Effect<Option.Option<EventSet.Decoded<string, unknown>>, DecodeError, unknown> => {
  const { byStoredName, ignored } = codecsOf(set)
  const codec = byStoredName.get(event.eventType)
  if (codec === undefined) {
    return set.unknown === "ignore" || ignored.has(event.eventType)
      ? Effect.succeedNone
      : Effect.fail(undecodable(event, "the event set does not contain its type"))
  }
  const json = toCurrentVersion(codec.definition, event)
  if (Result.isFailure(json)) return Effect.fail(json.failure)
  return codec.decode(json.success).pipe(
    Effect.map((payload) => Option.some({ ...event, eventType: codec.definition.tag, payload })),
    Effect.mapError(({ issue }) => undecodable(event, describe(issue)))
  )
}

const undecodable = ({ eventId, eventType, eventVersion }: Event, problem: string) =>
  new EventUndecodable({ eventId, eventType, eventVersion, problem })

/** Parses the payload and applies the upcasts from the stored version on. */
const toCurrentVersion = (
  { upcasts, version }: Definition,
  event: Event
): Result.Result<unknown, DecodeError> => {
  const { eventId, eventType, eventVersion } = event
  if (eventVersion > version) {
    return Result.fail(new EventVersionTooNew({ eventId, eventType, eventVersion, newest: version }))
  }
  if (eventVersion < 1) return Result.fail(undecodable(event, "versions of payloads begin at 1"))
  const parsed = Result.try((): unknown => JSON.parse(text(event)))
  if (Result.isFailure(parsed)) return Result.fail(undecodable(event, "the payload is not JSON"))
  let json = parsed.success
  for (let from = eventVersion; from < version; from++) {
    const next = Result.try({ try: () => upcasts[from - 1]!(json), catch: nameOf })
    if (Result.isFailure(next)) {
      return Result.fail(undecodable(event, `the upcast from version ${from} has thrown ${next.failure}`))
    }
    json = next.success
  }
  return Result.succeed(json)
}

/** The name of an error's class. Its message may contain a part of the payload. */
const nameOf = (error: unknown): string => error instanceof Error ? error.constructor.name : "a value"

/** Encodes the payloads of new events, and adds what the set declares about all of its events. */
export const encode = (
  set: EventSet.Any,
  events: ReadonlyArray<Pick<NewEvent, "eventType" | "payload">>
): Effect.Effect<ReadonlyArray<NewEvent>, InvalidEvents, unknown> => {
  const { byTag } = codecsOf(set)
  const declared = declaredBy(set)
  return Effect.forEach(events, (event, index) => {
    const invalid = (problem: string) =>
      new InvalidEvents({ problem: `Event ${index + 1} of ${events.length} ${problem}` })
    const codec = byTag.get(event.eventType)
    if (codec === undefined) {
      return Effect.fail(
        invalid(`has a type that is not in the event set, which has: ${[...byTag.keys()].join(", ")}.`)
      )
    }
    const { isNarrowed, tag, version } = codec.definition
    if (isNarrowed) {
      return Effect.fail(
        invalid(`(${tag}) has a schema that \`with\` has replaced. Append with the original event set.`)
      )
    }
    return codec.encode(event.payload).pipe(
      Effect.map((payload) => ({ ...event, ...declared, eventVersion: version, payload } as NewEvent)),
      Effect.mapError(({ issue }) => invalid(`(${tag}) does not match its schema: ${describe(issue)}.`))
    )
  })
}

const declaredBy = ({ stream }: EventSet.Any): Partial<NewEvent> =>
  Object.fromEntries(Object.entries(stream).filter(([, value]) => value !== undefined))

/** Describes the first issue: the path, and what kind of problem it is. */
const describe = (issue: SchemaIssue.Issue): string => {
  const path: Array<number | string> = []
  return `${problemOf(issue, undefined, path)} at ${pathText("payload", path)}`
}

/** Returns the problem and appends to `path`. `within` is the schema whose properties a path refers to. */
const problemOf = (
  issue: SchemaIssue.Issue,
  within: SchemaAST.AST | undefined,
  path: Array<number | string>
): string => {
  switch (issue._tag) {
    case "Pointer":
      path.push(...issue.path.map((key) => publicKey(key, within)))
      return problemOf(issue.issue, undefined, path)
    case "Composite":
      return problemOf(issue.issues[0], issue.ast, path)
    case "Encoding":
    case "Filter":
      return problemOf(issue.issue, within, path)
    case "MissingKey":
      return "a key is missing"
    case "UnexpectedKey":
      return "a key is not expected"
    case "AnyOf":
    case "InvalidType":
    case "OneOf":
      return "a value has another type"
    case "Forbidden":
    case "InvalidValue":
      return "a value is not valid"
  }
}

const publicKey = (key: PropertyKey, within: SchemaAST.AST | undefined): number | string =>
  typeof key === "number"
    ? key
    : within !== undefined && SchemaAST.isObjects(within) && within.propertySignatures.some(({ name }) => name === key)
    ? String(key)
    : "*"
