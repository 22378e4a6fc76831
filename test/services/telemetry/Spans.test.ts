/** The spans of workers in memory, as a tracing backend receives them. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Tracer from "effect/Tracer"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import type { Event } from "../../../src/schema/Event.ts"
import * as TraceContext from "../../../src/schema/TraceContext.ts"
import { EventStore } from "../../../src/services/EventStore.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as SpanContract from "../../../src/services/telemetry/SpanContract.ts"
import * as Traces from "../../support/Traces.ts"
import { lower, test, upper } from "../Workers.ts"
import { Broken, event, pass } from "../World.ts"

const traceId = "4bf92f3577b34da6a3ce929d0e0e4736"
const spanId = "00f067aa0ba902b7"

const traced = <A, E, R>({ tracer }: ReturnType<typeof Traces.make>, self: Effect.Effect<A, E, R>) =>
  Effect.provideService(self, Tracer.Tracer, tracer)

const promised = (name: string) => SpanContract.entries.find((entry) => entry.name === name)!

const assertAttributes = (span: Tracer.NativeSpan, entry: SpanContract.Entry) => {
  const names = [...span.attributes.keys()]
  assert.includeMembers(names, entry.attributes.map(({ name }) => name), span.name)
  const allowed = [...entry.attributes, ...entry.sometimes].map(({ name }) => name)
  assert.includeMembers(allowed, names, span.name)
}

test("a batch has one span, which links to the traces of its events", function*({ counting, events, start }) {
  const traces = Traces.make()
  const appended = yield* events.append([
    { ...event("a"), metadata: { traceparent: `00-${traceId}-${spanId}-01` } },
    { ...event("a"), traceId },
    { ...event("a"), traceId },
    { ...event("a"), traceId: "an id of the application" },
    event("a")
  ])
  const worker = start({ workerId: "worker-1", projections: [counting({ name: "users" })] })
  yield* traced(traces, Effect.withSpan(worker, "the caller of run"))
  yield* pass(1_000)

  const [batch, ...others] = traces.named("process users")
  assert.deepStrictEqual(others, [])
  assert.isTrue(Option.isNone(batch!.parent))
  assert.strictEqual(batch!.kind, "consumer")
  assert.strictEqual(Traces.outcomeOf(batch!), "ok")
  assertAttributes(batch!, promised("process <projection>"))
  assert.deepInclude(Traces.attributesOf(batch!), {
    "pupsourcing.replica_set": "main",
    "pupsourcing.worker": "worker-1",
    "pupsourcing.generation": 1,
    "pupsourcing.projection": "users",
    "pupsourcing.position.first": 1,
    "pupsourcing.position.last": 5,
    "pupsourcing.batch.committed": 5,
    "messaging.system": "pupsourcing",
    "messaging.operation.type": "process",
    "messaging.batch.message_count": 5
  })
  const eventId = (yield* events.readStream(appended.stream))[0]!.eventId
  assert.deepStrictEqual(batch!.links.map(({ span }) => [span.traceId, span.spanId]), [
    [traceId, spanId],
    [traceId, "0".repeat(16)]
  ])
  assert.deepStrictEqual(batch!.links[0]!.attributes, { "messaging.message.id": eventId, "pupsourcing.position": 1 })
})

test("a span of a handler is a child of its batch's span", function*({ counting, events, start }) {
  const traces = Traces.make()
  const users = counting({ name: "users", before: () => Effect.withSpan(Effect.void, "sendMail") })
  yield* traced(traces, start({ projections: [users] }))
  yield* events.append([event("a"), event("a")])
  yield* pass(1_000)
  const [batch] = traces.named("process users")
  assert.deepStrictEqual(traces.childrenOf(batch!).map(({ name }) => name), ["sendMail", "sendMail"])
})

test("polling without events makes no span", function*({ start }) {
  const traces = Traces.make()
  yield* traced(traces, start())
  yield* pass(1_000)
  const before = traces.spans.length
  yield* pass(60_000, 250)
  assert.deepStrictEqual(traces.spans.slice(before).map(({ name }) => name), [])
})

test("each attempt of a failing batch has a span with the error, without values of the event", function*(world) {
  const { counting, events, start } = world
  const traces = Traces.make()
  const users = counting({
    name: "users",
    before: ({ aggregateVersion }) =>
      aggregateVersion === 2n ? Effect.fail(new Broken({ message: "the mail server refuses" })) : Effect.void
  })
  yield* traced(traces, start({ projections: [users] }))
  yield* events.append([event("a"), event("a")])
  yield* pass(2_000)
  const batches = traces.named("process users")
  assert.deepStrictEqual(batches.map(Traces.outcomeOf), [
    "HandlerFailure: Broken: the mail server refuses",
    "ok",
    "HandlerFailure: Broken: the mail server refuses"
  ])
  assert.strictEqual(batches[0]!.attributes.get("error.type"), "HandlerFailure")
  const exported = JSON.stringify(batches.map((span) => [Traces.attributesOf(span), span.events]))
  assert.notInclude(exported, "payloads stay out of logs")
})

test("a hand-over has a span from the new generation until all ranges are processed", function*({ start }) {
  const traces = Traces.make()
  const others = Traces.make()
  yield* traced(traces, start({ workerId: "worker-1" }))
  yield* pass(1_000)
  const second = yield* traced(others, start({ workerId: "worker-2" }))
  yield* pass(1_000)
  yield* second.stop
  yield* pass(2_000)

  const switches = traces.named("switch generation")
  for (const span of switches) assertAttributes(span, promised("switch generation"))
  assert.deepStrictEqual(switches.map(Traces.outcomeOf), ["ok", "ok", "ok"])
  const seen = switches.map((span) => {
    const { "pupsourcing.generation": generation, "pupsourcing.members": members, "pupsourcing.reasons": reasons } =
      Traces.attributesOf(span)
    return [generation, members, reasons]
  })
  assert.deepStrictEqual(seen, [[1, 1, []], [2, 2, ["WorkerJoined"]], [3, 1, ["WorkerLeft"]]])
  assert.deepStrictEqual(switches[1]!.events.map(([name]) => name), ["RangeStopped", "RangeClaimed"])
  assert.deepInclude(Traces.attributesOf(switches[1]!), {
    "pupsourcing.ranges.stopped": 1,
    "pupsourcing.ranges.claimed": 1
  })

  const [left] = others.named("leave")
  assert.strictEqual(Traces.outcomeOf(left!), "ok")
  assertAttributes(left!, promised("leave"))
  assert.deepInclude(Traces.attributesOf(left!), {
    "pupsourcing.worker": "worker-2",
    "pupsourcing.ranges.stopped": 1,
    "pupsourcing.formed": true
  })
})

/** A tracer whose spans named `name` throw an error when they are made, or when `method` is called. */
const makeFaulty = (name: string, method: "attribute" | "end" | "event" | "span") =>
  Tracer.make({
    span: (options) => {
      const fail = () => {
        throw new Error("the tracer is broken")
      }
      const isFaulty = options.name === name
      if (isFaulty && method === "span") return fail()
      const span = new Tracer.NativeSpan(options)
      return isFaulty ? Object.assign(span, { [method]: fail }) : span
    }
  })

for (const name of ["process users", "switch generation", "append", "run"]) {
  for (const method of ["span", "attribute", "event", "end"] as const) {
    // The application makes this span itself, and fails if it cannot.
    if (name === "run" && method !== "event") continue
    test(`events are handled although the tracer throws: ${name}, ${method}`, function*({ counting, events, start }) {
      const tracer = makeFaulty(name, method)
      const handled: Array<bigint> = []
      const users = counting({
        name: "users",
        before: ({ globalPosition }) => Effect.sync(() => handled.push(globalPosition))
      })
      yield* start({ projections: [users] }).pipe(
        Effect.withSpan("run"),
        Effect.provideService(Tracer.Tracer, tracer)
      )
      yield* Effect.provideService(events.append([event("a")]), Tracer.Tracer, tracer)
      yield* pass(2_000)
      assert.deepStrictEqual(handled, [1n])
    })
  }
}

test("the span of an append that is interrupted when it begins ends", function*({ events }) {
  const traces = Traces.make()
  const tracer = Tracer.make({
    span: (options) => {
      Fiber.getCurrent()!.interruptUnsafe()
      return traces.tracer.span(options)
    }
  })
  const fiber = yield* Effect.forkChild(Effect.provideService(events.append([event("a")]), Tracer.Tracer, tracer))
  yield* Fiber.await(fiber)
  assert.deepStrictEqual(traces.named("append").map(Traces.outcomeOf), ["interrupted"])
})

test("append stores the id of its trace", function*({ events }) {
  const traces = Traces.make()
  const store = (id: string, fields = {}) => events.append([{ ...event(id), ...fields }])
  yield* traced(traces, Effect.withSpan(store("inside"), "request"))
  yield* traced(traces, store("alone"))
  yield* traced(traces, store("given", { traceId: "own" }))
  yield* traced(traces, Effect.withTracerEnabled(store("disabled"), false))
  yield* Effect.withSpan(store("no backend"), "request")
  const parent = Tracer.externalSpan({ traceId, spanId })
  yield* Effect.withSpan(store("from outside"), "request", { parent })

  const [request] = traces.named("request")
  const [inside, alone] = traces.named("append")
  assert.strictEqual(Option.getOrUndefined(inside!.parent), request)
  assertAttributes(inside!, promised("append"))
  assert.strictEqual(inside!.kind, "producer")
  const page = yield* events.read({ after: 0n })
  assert.deepStrictEqual(page.events.map((event) => [event.aggregateId, event.traceId]), [
    ["inside", request!.traceId],
    ["alone", alone!.traceId],
    ["given", "own"],
    ["disabled", null],
    ["no backend", null],
    ["from outside", traceId]
  ])
  assert.deepStrictEqual(TraceContext.originsOf(page.events).length, 3)
})

test("an append that fails has a span with the error", function*({ events }) {
  const traces = Traces.make()
  yield* Effect.flip(traced(traces, events.append([event("a")], { expectedVersion: 7n })))
  const [span] = traces.named("append")
  assert.include(Traces.outcomeOf(span!), "ConcurrencyConflict")
  assert.strictEqual(span!.attributes.get("error.type"), "ConcurrencyConflict")
})

test("a handler's append is caused by the handled event, each by its own", function*({ events, start }) {
  const ids = (one: Event) => [one.correlationId, one.causationId] as const
  const reactions = Projection.make("reactions", {
    aggregateTypes: ["User"],
    handle: ({ aggregateId }) =>
      events.append([{ ...event(`${aggregateId}-mail`), aggregateType: "Mail" }, {
        ...event(`${aggregateId}-mail`),
        aggregateType: "Mail",
        correlationId: "own",
        causationId: "own"
      }]).pipe(Effect.asVoid)
  })
  yield* events.append([{ ...event(lower), correlationId: "order-1" }])
  yield* events.append([event(upper)])
  yield* start({ projections: [reactions] })
  yield* pass(1_000)
  const { events: all } = yield* events.read({ after: 0n })
  const [first, second] = all
  assert.deepStrictEqual([ids(first!), ids(second!)], [["order-1", null], [null, null]])
  const mails = (id: string) => all.filter(({ aggregateId }) => aggregateId === `${id}-mail`).map(ids)
  assert.deepStrictEqual(mails(lower), [["order-1", first!.eventId], ["own", "own"]])
  assert.deepStrictEqual(mails(upper), [[second!.eventId, second!.eventId], ["own", "own"]])
})

test("a tracer that only the orchestrator's layer has is used for batches and handlers", function*() {
  const traces = Traces.make()
  const users = Projection.make("users", { handle: () => Effect.withSpan(Effect.void, "handler") })
  yield* Effect.gen(function*() {
    const events = yield* EventStore
    yield* events.append([event("a")])
    const orchestrator = yield* traced(traces, Orchestrator.make({ replicaSet: "main", projections: [users] }))
    yield* Effect.forkChild(orchestrator.run)
    yield* pass(1_000)
  }).pipe(Effect.provide(MemoryStores.layer))
  const [batch] = traces.named("process users")
  assert.deepStrictEqual(traces.childrenOf(batch!).map(({ name }) => name), ["handler"])
})

test("a tracer that only the run has is used for handlers, too", function*() {
  const traces = Traces.make()
  const users = Projection.make("users", { handle: () => Effect.withSpan(Effect.void, "handler") })
  yield* Effect.gen(function*() {
    const events = yield* EventStore
    yield* events.append([event("a")])
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [users] })
    yield* Effect.forkChild(traced(traces, orchestrator.run))
    yield* pass(1_000)
  }).pipe(Effect.provide(MemoryStores.layer))
  const [batch] = traces.named("process users")
  assert.deepStrictEqual(traces.childrenOf(batch!).map(({ name }) => name), ["handler"])
})
