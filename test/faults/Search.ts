/**
 * The projection of the fenced upsert in docs/ordering-and-delivery.md, unchanged. A worker that holds an event waits
 * after its handler has read the fence, before it sends the write. Under the name `search/unfenced`, the write has no
 * condition.
 */
import * as Console from "effect/Console"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as SqlClient from "effect/sql/SqlClient"
import * as Event from "../../src/schema/Event.ts"
import * as Projection from "../../src/services/Projection.ts"
import * as Pages from "../docs/Pages.ts"
import * as Seam from "../support/Seam.ts"
import * as Projections from "./Projections.ts"

type Search = { readonly _: unique symbol }

interface Block {
  readonly Search: Context.Service<Search, SqlClient.SqlClient>
  readonly search: Projection.Projection<never, Search | Projection.Delivery>
}

const condition = /\s+WHERE p\.position < excluded\.position\s*$/

/** The write of the page, to the table of the projection. */
const rewrite = (name: string) => (text: string): string => {
  if (!text.includes("INSERT INTO products AS p")) return text
  if (!condition.test(text)) throw new Error(`The write has another condition:\n${text}`)
  const write = text.replace("products AS p", `${Projections.productsOf(name)} AS p`)
  return name === "search" ? write : write.replace(condition, "")
}

export const make = Effect.fnUntraced(function*(
  name: string,
  options: { readonly workerId: string; readonly outside: SqlClient.SqlClient; readonly url: string }
) {
  const { outside, url, workerId } = options
  const { Search, search } = yield* Pages.importBlock<Block>("ordering-and-delivery", "delivery")
  const hold = (event: Event.Event, gate: string) => <A, E>(write: Effect.Effect<A, E>) =>
    Projections.pass(name, event, { gate, outside }).pipe(
      Effect.orDie,
      Effect.andThen(write),
      Effect.tap(Console.log(`wrote ${name} at ${event.globalPosition}`)),
      // A write that has been sent to another system cannot be taken back, even if the worker has lost the range.
      Effect.uninterruptible
    )
  let around: ReturnType<typeof hold> = (write) => write
  const client = yield* Layer.build(Seam.client({ url: Redacted.make(url), maxConnections: 1 }, {
    rewrite: ({ text }) => rewrite(name)(text),
    around: ({ text }, send) => text.includes("INSERT INTO") ? around(send) : send
  }))
  return Projection.make(name, {
    delivery: search.delivery,
    handle: Effect.fnUntraced(function*(event) {
      const payload = yield* Event.json(event, Projections.Payload)
      around = payload.hold?.workerId === workerId ? hold(event, payload.hold.gate) : (write) => write
      yield* Effect.provideService(Projection.handle(search, [event]), Search, Context.get(client, SqlClient.SqlClient))
    })
  })
})
