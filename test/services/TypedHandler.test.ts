import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type { Event } from "../../src/schema/Event.ts"
import * as EventSet from "../../src/services/EventSet.ts"
import * as Projection from "../../src/services/Projection.ts"

const Users = EventSet.make({ UserRenamed: Schema.Struct({ name: Schema.String }) })

class Names {
  readonly #seen: Array<string> = []
  UserRenamed({ payload }: EventSet.Event<typeof Users>) {
    return Effect.sync(() => this.#seen.push(payload.name))
  }
  seen() {
    return this.#seen
  }
}

it.effect("calls the functions of an object as its methods", () =>
  Effect.gen(function*() {
    const names = new Names()
    const handle: Pick<Names, "UserRenamed"> = names
    const projection = Projection.make("names", Users, { handle })
    const payload = new TextEncoder().encode("{\"name\":\"A\"}")
    yield* Projection.handle(projection, [{ eventType: "UserRenamed", eventVersion: 1, payload } as Event])
    assert.deepStrictEqual(names.seen(), ["A"])
  }))
