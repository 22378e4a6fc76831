/** Faults between workers and server. */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { Driver } from "../Driver.ts"
import { type Fault, nobodyReplaced } from "../Fault.ts"
import type { Direction, Way } from "../Network.ts"
import { takenOver } from "./Signals.ts"

/** The path of a member that uses it now, or that is started for it. */
const taking = Effect.fnUntraced(function*<K extends Way["kind"]>(kind: K) {
  const { fleet, network } = yield* Driver
  const wayOf = (index: number) => network.ways[index % network.ways.length]
  const eligible = fleet.pick(1, ({ place }) => wayOf(place.index)?.kind === kind)
  let [member] = yield* eligible
  if (member === undefined) {
    fleet.resize(Infinity)
    yield* fleet.restore
    member = (yield* eligible)[0]
  }
  const way = member === undefined ? undefined : wayOf(member.place.index)
  if (member === undefined || way?.kind !== kind) return yield* Effect.die(new Error(`no member connects by ${kind}`))
  // The line above narrows the type, which TypeScript cannot express for a type parameter.
  return way as Extract<Way, { readonly kind: K }>
})

/** Ids of the members that use this path. */
const idsOf = (kind: Way["kind"]) =>
  Effect.map(Driver, ({ fleet, network }) =>
    fleet.members()
      .filter(({ place }) => network.ways[place.index % network.ways.length]?.kind === kind)
      .map(({ workerId }) => workerId))

/** Workers on this path are cut off; the others must hold every range as soon as the stale timeout allows. */
const othersTakeOver = Effect.fnUntraced(function*(kind: Way["kind"]) {
  yield* takenOver(yield* idsOf(kind), "were cut off")
})

/** Expects nothing from workers on this path in the meantime. */
const disturbing = Effect.fnUntraced(function*<E, R>(kind: Way["kind"], self: Effect.Effect<unknown, E, R>) {
  const { fleet } = yield* Driver
  yield* fleet.without(yield* idsOf(kind), self)
})

const hasNamespace = Effect.map(Driver, ({ network }) => network.noNamespace)

const dropped = (kind: string, direction: Direction): Fault => ({
  kind,
  on: "namespace",
  unavailable: hasNamespace,
  inject: Effect.gen(function*() {
    const way = yield* taking("namespace")
    yield* Effect.acquireUseRelease(way.drop(direction), () => othersTakeOver("namespace"), () => way.restore)
  })
})

const droppedForAMoment: Fault = {
  kind: "packets dropped for a moment",
  on: "namespace",
  unavailable: hasNamespace,
  inject: Effect.gen(function*() {
    const { settings } = yield* Driver
    const way = yield* taking("namespace")
    yield* Effect.acquireUseRelease(
      way.drop("both"),
      () => disturbing("namespace", Effect.sleep(settings.staleWorkerTimeout * 0.25)),
      () => way.restore
    )
  }),
  judge: nobodyReplaced
}

const impaired = (kind: string, how: { readonly delayMillis: number; readonly loss: number }): Fault => ({
  kind,
  on: "proxy",
  inject: Effect.gen(function*() {
    const { proxy } = yield* taking("proxy")
    yield* Effect.acquireUseRelease(
      proxy.impair(how),
      () => disturbing("proxy", Effect.sleep("3 seconds")),
      () => proxy.impair({ delayMillis: 0, loss: 0 })
    )
  })
})

const refused: Fault = {
  kind: "connections refused",
  on: "proxy",
  inject: Effect.gen(function*() {
    const { proxy } = yield* taking("proxy")
    yield* Effect.acquireUseRelease(
      proxy.refuse(true),
      () => othersTakeOver("proxy"),
      () => proxy.refuse(false)
    )
  })
}

/** Server and worker consider these connections open until TCP gives them up; new connections work. */
const halfOpen: Fault = {
  kind: "connections half open",
  on: "proxy",
  inject: Effect.gen(function*() {
    const { settings } = yield* Driver
    const { proxy } = yield* taking("proxy")
    yield* Effect.acquireUseRelease(
      proxy.silence,
      () => disturbing("proxy", Effect.sleep(settings.staleWorkerTimeout * 1.6)),
      () => proxy.giveUp
    )
  })
}

const answersLost: Fault = {
  kind: "answers to COMMIT lost",
  on: "proxy",
  inject: Effect.gen(function*() {
    const { proxy } = yield* taking("proxy")
    yield* disturbing(
      "proxy",
      Effect.repeat(
        proxy.cutAtEnd,
        Schedule.max([Schedule.spaced("150 millis"), Schedule.during("2 seconds")])
      )
    )
  })
}

export const network: ReadonlyArray<Fault> = [
  dropped("packets dropped", "both"),
  dropped("packets to the worker dropped", "input"),
  dropped("packets from the worker dropped", "output"),
  droppedForAMoment,
  impaired("slow network", { delayMillis: 100, loss: 0 }),
  impaired("lossy network", { delayMillis: 5, loss: 0.02 }),
  refused,
  halfOpen,
  answersLost
]
