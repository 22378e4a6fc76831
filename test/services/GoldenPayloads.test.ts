import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert, it } from "@effect/vitest"
import { Effect, FileSystem, Schema } from "effect"
import * as EventSet from "../../src/services/EventSet.ts"

const Users = EventSet.make({
  Registered: {
    version: 2,
    payload: Schema.Struct({ name: Schema.String }),
    upcast: { 1: (old) => ({ ...old, name: "" }) },
    storedAs: ["Created"]
  },
  Renamed: Schema.Struct({ name: Schema.String })
}, { retired: ["Pinged"] })

/** The problems that are found in a folder with these files. */
const problems = Effect.fnUntraced(function*(files: Readonly<Record<string, unknown>>) {
  const fs = yield* FileSystem.FileSystem
  const folder = yield* fs.makeTempDirectoryScoped()
  yield* Effect.forEach(
    Object.entries(files),
    ([name, content]) => fs.writeFileString(`${folder}/${name}`, JSON.stringify(content))
  )
  return yield* EventSet.golden(Users, folder)
}, Effect.provide(NodeFileSystem.layer))

const complete = { "Created.v1.json": {}, "Registered.v2.json": { name: "A" }, "Renamed.v1.json": { name: "B" } }

it.effect("a payload of every version, under any stored name, has no problem", () =>
  Effect.gen(function*() {
    assert.deepStrictEqual(
      yield* problems({
        ...complete,
        "Pinged.v1.json": {},
        "Renamed.v1.long-name.json": { name: "CC" },
        "README.md": ""
      }),
      []
    )
  }))

it.effect("reports what does not decode, what is missing, and files of other types", () =>
  Effect.gen(function*() {
    const { "Created.v1.json": _, ...incomplete } = complete
    assert.deepStrictEqual(
      yield* problems({
        ...incomplete,
        "Renamed.v1.number.json": { name: 5 },
        "Renamed.v2.json": { name: "B" },
        "Deleted.v1.json": {},
        "Renamed.json": {}
      }),
      [
        "Deleted.v1.json: the event set does not contain this type. Restore it, add the name to storedAs, or retire it.",
        "Registered.v1.json: missing. Add a payload as this version stores it.",
        "Renamed.json: the name is not of the form EventType.v1.json or EventType.v1.anything.json.",
        "Renamed.v1.number.json: a value has another type at payload.name.",
        "Renamed.v2.json: the newest version of this type is 1."
      ]
    )
  }))
