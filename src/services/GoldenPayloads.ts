/** Checks an event set against stored payloads in files: the regression test of its schemas and upcasts. */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import type { PlatformError } from "effect/PlatformError"
import type { Event } from "../schema/Event.ts"
import * as EventCodec from "../schema/EventCodec.ts"
import type { Definition } from "../schema/EventDefinition.ts"
import type * as EventSet from "../schema/EventSet.ts"

/** `UserRegistered.v1.json`, or `UserRegistered.v1.without-name.json`. */
const fileName = /^(?<eventType>.+)\.v(?<eventVersion>\d+)(?:\.[^.]+)?\.json$/

interface File {
  readonly name: string
  readonly eventType: string
  readonly eventVersion: number
}

/** Returns what is wrong, sorted by file: payloads that do not decode, and versions without a file. */
export const check = Effect.fnUntraced(function*(
  set: EventSet.Any,
  folder: string
): Effect.fn.Return<ReadonlyArray<string>, PlatformError, unknown> {
  const fs = yield* FileSystem.FileSystem
  const names = (yield* fs.readDirectory(folder)).filter((name) => name.endsWith(".json"))
  const files = names.map(parse)
  const problems = yield* Effect.forEach(files, (file) =>
    file.eventVersion === 0
      ? Effect.succeed([`${file.name}: the name is not of the form EventType.v1.json or EventType.v1.anything.json.`])
      : Effect.flatMap(fs.readFile(`${folder}/${file.name}`), (payload) => problemsOf(set, file, payload)))
  return [...problems.flat(), ...missing(set, files)].sort()
})

const parse = (name: string): File => {
  const { eventType = "", eventVersion = "0" } = fileName.exec(name)?.groups ?? {}
  return { name, eventType, eventVersion: Number(eventVersion) }
}

const problemsOf = (set: EventSet.Any, file: File, payload: Uint8Array) =>
  EventCodec.decode(set, stored(file, payload)).pipe(
    Effect.map((decoded) =>
      Option.isSome(decoded) || set.ignored.includes(file.eventType)
        ? []
        : [
          `${file.name}: the event set does not contain this type. Restore it, add the name to storedAs, or retire it.`
        ]
    ),
    Effect.catch((error) =>
      Effect.succeed([
        `${file.name}: ${
          error._tag === "EventUndecodable" ? error.problem : `the newest version of this type is ${error.newest}`
        }.`
      ])
    )
  )

/** A stored event; only its type, version and payload matter. */
const stored = ({ eventType, eventVersion, name }: File, payload: Uint8Array): Event => ({
  globalPosition: 1n,
  boundedContext: "golden",
  aggregateType: "golden",
  aggregateId: "golden",
  aggregateVersion: 1n,
  eventId: name,
  eventType,
  eventVersion,
  payload,
  traceId: null,
  correlationId: null,
  causationId: null,
  metadata: null,
  metadataText: null,
  createdAt: new Date(0),
  createdAtMicros: 0n
})

const missing = ({ definitions }: EventSet.Any, files: ReadonlyArray<File>): ReadonlyArray<string> =>
  Object.values<Definition>(definitions).flatMap(({ storedAs, tag, version }) =>
    Array.from({ length: version }, (_, index) => index + 1)
      .filter((eventVersion) =>
        !files.some((file) => file.eventVersion === eventVersion && storedAs.includes(file.eventType))
      )
      .map((eventVersion) => `${tag}.v${eventVersion}.json: missing. Add a payload as this version stores it.`)
  )
