import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Layer from "effect/Layer"
import type { Held } from "../../src/schema/Checkpoint.ts"
import * as EventFilter from "../../src/schema/EventFilter.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import type { Stores } from "../../src/services/Stores.ts"
import * as Hostile from "../support/Hostile.ts"
import * as Tests from "../support/Tests.ts"
import { decide, held, join } from "./Members.ts"
import type { Time } from "./Suite.ts"
import { dead, hasty, unique } from "./Suite.ts"

export interface Options<R> {
  readonly time: Time
  /** The effect of a handler on its read model, which counts keys. */
  readonly effects: {
    readonly record: (key: string) => Effect.Effect<void, unknown, R>
    /** The number of times that committed batches have recorded the key. */
    readonly count: (key: string) => Effect.Effect<number, unknown, R>
  }
}

const idleTimeout = Duration.seconds(20)

export const suite = <R = never>(
  name: string,
  layer: Layer.Layer<Stores | R, unknown>,
  { effects, time }: Options<R>
) =>
  it.layer(layer, { excludeTestServices: time.excludeTestServices })(`CheckpointStore (${name})`, (it) => {
    const commit = Effect.fnUntraced(function*<E, R1>(
      row: Held,
      from: bigint,
      to: bigint,
      work: Effect.Effect<void, E, R1>
    ) {
      return yield* (yield* CheckpointStore).commit(row, { from, idleTimeout }, Effect.as(work, to))
    })

    const position = Effect.fnUntraced(function*(row: Held) {
      const rows = yield* (yield* CheckpointStore).rows(row.projection)
      return rows.find((each) => each.range.start === row.range.start)?.position
    })

    it.effect("a projection that never ran has no rows", () =>
      Effect.gen(function*() {
        assert.deepStrictEqual(yield* (yield* CheckpointStore).rows(yield* unique("projection")), [])
      }))

    it.effect("rows contain the holder, the filter and the position of each range", () =>
      Effect.gen(function*() {
        const rows = yield* held(3)
        const stored = yield* (yield* CheckpointStore).rows(rows[0]!.projection)
        assert.deepStrictEqual(stored, [...rows].sort((a, b) => a.range.start - b.range.start))
        assert.isTrue(HashRange.tiles(stored.map((row) => row.range)))
        for (const row of stored) {
          assert.deepStrictEqual([row.position, row.filter, row.halt], [0n, EventFilter.canonical({}), undefined])
        }
      }))

    it.effect("a committed batch advances the position and stores its effects", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        const key = yield* unique("key")
        yield* commit(row!, 0n, 5n, effects.record(key))
        assert.strictEqual(yield* position(row!), 5n)
        assert.strictEqual(yield* effects.count(key), 1)
        yield* commit(row!, 5n, 9n, Effect.andThen(effects.record(key), effects.record(key)))
        assert.strictEqual(yield* position(row!), 9n)
        assert.strictEqual(yield* effects.count(key), 3)
      }))

    class Boom {
      readonly _tag = "Boom"
    }

    const failures: ReadonlyArray<
      readonly [string, Effect.Effect<void, unknown>, (cause: Cause.Cause<unknown>) => boolean]
    > = [
      [
        "fails",
        Effect.fail(new Boom()),
        (cause) => cause.reasons.some((reason) => Cause.isFailReason(reason) && reason.error instanceof Boom)
      ],
      [
        "dies",
        Effect.die(new Boom()),
        (cause) => cause.reasons.some((reason) => Cause.isDieReason(reason) && reason.defect instanceof Boom)
      ],
      [
        "throws",
        Effect.sync(() => {
          throw new Boom()
        }),
        (cause) => cause.reasons.some((reason) => Cause.isDieReason(reason) && reason.defect instanceof Boom)
      ],
      ["interrupts itself", Effect.interrupt, Cause.hasInterrupts]
    ]
    for (const [what, failing, isExpected] of failures) {
      it.effect(`a handler that ${what} rolls its batch back and is distinguished from a transient failure`, () =>
        Effect.gen(function*() {
          const [row] = yield* held()
          const key = yield* unique("key")
          const failure = yield* Effect.flip(commit(row!, 0n, 5n, Effect.andThen(effects.record(key), failing)))
          assert(failure._tag === "HandlerFailure")
          assert.isTrue(isExpected(failure.cause))
          assert.strictEqual(yield* position(row!), 0n)
          assert.strictEqual(yield* effects.count(key), 0)
          yield* commit(row!, 0n, 5n, effects.record(key))
          assert.strictEqual(yield* position(row!), 5n)
          assert.strictEqual(yield* effects.count(key), 1)
        }))
    }

    it.effect("a handler's failure that throws when inspected is reported as HandlerFailure", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        const key = yield* unique("key")
        for (const [what, value] of Hostile.values) {
          for (
            const failing of [Effect.fail(value), Effect.die(value), Effect.die(new Error("x", { cause: value }))]
          ) {
            const failure = yield* Effect.flip(commit(row!, 0n, 5n, Effect.andThen(effects.record(key), failing)))
            assert.strictEqual(failure._tag, "HandlerFailure", what)
          }
        }
        assert.strictEqual(yield* position(row!), 0n)
        assert.strictEqual(yield* effects.count(key), 0)
        yield* commit(row!, 0n, 5n, effects.record(key))
        assert.strictEqual(yield* effects.count(key), 1)
      }))

    it.effect("a handler that continues with a value that is not an Effect fails", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        for (const other of [undefined, 5, "text", {}, globalThis.Promise.resolve()]) {
          // As from JavaScript, or through `any`.
          const work = Effect.flatMap(Effect.void, () => other as unknown as Effect.Effect<void>)
          assert.strictEqual((yield* Effect.flip(commit(row!, 0n, 5n, work)))._tag, "HandlerFailure")
        }
        yield* commit(row!, 0n, 5n, Effect.void)
      }))

    it.effect("child fibers of a handler are interrupted when it ends, before its batch commits", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        let ended = false
        const child = Effect.ensuring(
          Effect.never,
          Effect.sync(() => {
            ended = true
          })
        )
        yield* commit(row!, 0n, 5n, Effect.forkChild(child, { startImmediately: true }).pipe(Effect.asVoid))
        assert.isTrue(ended)
      }))

    const foreign: ReadonlyArray<readonly [string, (row: Held) => readonly [Held, bigint]]> = [
      ["another worker", (row) => [{ ...row, fence: { ...row.fence, workerId: "other" } }, 7n]],
      [
        "another incarnation",
        (row) => [{ ...row, fence: { ...row.fence, incarnation: row.fence.incarnation + 1n } }, 7n]
      ],
      [
        "another generation",
        (row) => [{ ...row, fence: { ...row.fence, generationId: row.fence.generationId + 1n } }, 7n]
      ],
      ["another end", (row) => [{ ...row, range: { ...row.range, end: row.range.end - 1 } }, 7n]],
      ["another start", (row) => [{ ...row, range: { ...row.range, start: row.range.start + 1 } }, 7n]],
      ["a position before its own", (row) => [row, 6n]],
      ["a position beyond its own", (row) => [row, 8n]]
    ]
    for (const [what, change] of foreign) {
      it.effect(`a write with ${what} is fenced`, () =>
        Effect.gen(function*() {
          const store = yield* CheckpointStore
          const [row] = yield* held()
          const key = yield* unique("key")
          yield* commit(row!, 0n, 7n, Effect.void)
          const before = yield* store.rows(row!.projection)
          const [other, from] = change(row!)
          const fenced = yield* Effect.flip(commit(other, from, 9n, effects.record(key)))
          assert(fenced._tag === "Fenced")
          assert.strictEqual(fenced.projection, row!.projection)
          assert.strictEqual((yield* Effect.flip(store.advance(other, { from, to: 9n })))._tag, "Fenced")
          const halt = {
            at: from,
            error: "no",
            position: 8n,
            eventId: globalThis.crypto.randomUUID(),
            aggregateId: "a"
          }
          assert.strictEqual((yield* Effect.flip(store.halt(other, halt)))._tag, "Fenced")
          assert.deepStrictEqual(yield* store.rows(row!.projection), before)
          assert.strictEqual(yield* effects.count(key), 0)
        }))
    }

    it.effect("advance moves the position without running a handler", () =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        const [row] = yield* held()
        yield* store.advance(row!, { from: 0n, to: 3n })
        yield* store.advance(row!, { from: 3n, to: 12n })
        assert.strictEqual(yield* position(row!), 12n)
        assert.strictEqual((yield* Effect.flip(store.advance(row!, { from: 3n, to: 13n })))._tag, "Fenced")
        assert.strictEqual(yield* position(row!), 12n)
      }))

    it.effect("writes based on reads of another server epoch are refused", () =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        const [row] = yield* held()
        const [key, eventId] = [yield* unique("key"), globalThis.crypto.randomUUID()]
        const epoch = "1@1"
        for (
          const refused of [
            store.commit(row!, { from: 0n, idleTimeout, epoch }, Effect.as(effects.record(key), 5n)),
            store.advance(row!, { from: 0n, to: 3n, epoch }),
            store.halt(row!, { at: 0n, epoch, error: "no", position: 4n, eventId, key: "cart-1" })
          ]
        ) assert.strictEqual((yield* Effect.flip(refused))._tag, "EpochEnded")
        const [stored] = yield* store.rows(row!.projection)
        assert.deepStrictEqual([stored?.position, stored?.halt], [0n, undefined])
        assert.strictEqual(yield* effects.count(key), 0)
        // A position other than the row's is fenced, whatever the epoch.
        assert.strictEqual((yield* Effect.flip(store.advance(row!, { from: 2n, to: 3n })))._tag, "Fenced")
      }))

    it.effect("a halt is recorded on its row only", () =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        const rows = yield* held(2)
        const row = rows[0]!
        yield* store.advance(row, { from: 0n, to: 3n })
        const eventId = globalThis.crypto.randomUUID()
        yield* store.halt(row, { at: 3n, error: "it's \"broken\"", position: 4n, eventId, key: "cart-1" })
        for (const stored of yield* store.rows(row.projection)) {
          if (stored.range.start !== row.range.start) {
            assert.isUndefined(stored.halt)
            continue
          }
          assert.strictEqual(stored.position, 3n)
          assert.deepStrictEqual(
            { ...stored.halt, since: undefined, hash: undefined },
            {
              error: "it's \"broken\"",
              position: 4n,
              eventId,
              since: undefined,
              hash: undefined,
              incarnation: row.fence.incarnation
            }
          )
          assert.instanceOf(stored.halt?.since, Date)
          assert.isTrue(Number.isInteger(stored.halt?.hash) && HashRange.includes(HashRange.whole, stored.halt!.hash))
        }
      }))

    it.effect.each(
      [
        ["a NUL", "a\u0000b", "ab"],
        ["half of a surrogate pair", "a\uD83D", "a\uFFFD"],
        ["too many characters", "x".repeat(10_000), `${"x".repeat(1997)}...`],
        ["a surrogate pair where it is cut", `${"x".repeat(1996)}\u{1F600}${"x".repeat(10)}`, `${"x".repeat(1996)}...`],
        ["characters of every kind", "it's \"…\" – \u{1F600} é 日本\n\t\\", "it's \"…\" – \u{1F600} é 日本\n\t\\"]
      ] as const
    )("records a halt whose error has %s", ([, error, recorded]) =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        const [row] = yield* held()
        const eventId = globalThis.crypto.randomUUID()
        yield* store.halt(row!, { at: 0n, error, position: 1n, eventId, key: "cart-1" })
        assert.strictEqual((yield* store.rows(row!.projection))[0]?.halt?.error, recorded)
      }))

    it.effect("unstorable returns the texts that cannot be stored", () =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        assert.deepStrictEqual(yield* store.unstorable([]), [])
        assert.deepStrictEqual(yield* store.unstorable(["a", "…", "日本", "\u{1F600}", ""]), [])
        assert.deepStrictEqual(yield* store.unstorable(["a", "b\u0000", "é", "\uD83D"]), ["b\u0000", "\uD83D"])
      }))

    it.effect("records a halt without a key at the start of the range", () =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        const [, row] = yield* held(2)
        const eventId = globalThis.crypto.randomUUID()
        yield* store.halt(row!, { at: 0n, error: "unreadable", position: 1n, eventId })
        assert.strictEqual((yield* store.rows(row!.projection))[1]?.halt?.hash, row!.range.start)
      }))

    it.effect("advancing clears a halt whose acknowledgement was lost", () =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        for (
          const progress of [
            (row: Held) => store.advance(row, { from: 0n, to: 1n }),
            (row: Held) => store.commit(row, { from: 0n, idleTimeout }, Effect.succeed(1n))
          ]
        ) {
          const [row] = yield* held()
          const eventId = globalThis.crypto.randomUUID()
          yield* store.halt(row!, { at: 0n, error: "flaky", position: 1n, eventId, key: "cart-1" })
          yield* progress(row!)
          const [stored] = yield* store.rows(row!.projection)
          assert.deepStrictEqual([stored?.position, stored?.halt], [1n, undefined])
        }
      }))

    it.effect("one of two concurrent batches on a range commits", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        const keys = [yield* unique("key"), yield* unique("key")]
        const started = yield* Effect.forEach(keys, () => Deferred.make<void>())
        const outcomes = yield* Effect.forEach(keys, (key, index) =>
          effects.record(key).pipe(
            Effect.andThen(Deferred.succeed(started[index]!, undefined)),
            // Both transactions are open before either ends.
            Effect.andThen(Effect.forEach(started, (other) => Deferred.await(other), { discard: true })),
            (work) => Effect.exit(commit(row!, 0n, BigInt(5 + index), work)),
            // The other one must not wait for a batch that has failed before its handler.
            Effect.ensuring(Deferred.succeed(started[index]!, undefined))
          ), { concurrency: "unbounded" })
        assert.strictEqual(outcomes.filter(Exit.isSuccess).length, 1)
        const winner = outcomes.findIndex(Exit.isSuccess)
        const loser = outcomes[1 - winner]!
        assert(Exit.isFailure(loser))
        const error = loser.cause.reasons.find(Cause.isFailReason)?.error
        assert.isTrue(error?._tag === "Fenced" || error?._tag === "TransientFailure")
        assert.strictEqual(yield* position(row!), BigInt(5 + winner))
        assert.strictEqual(yield* effects.count(keys[winner]!), 1)
        assert.strictEqual(yield* effects.count(keys[1 - winner]!), 0)
      }))

    it.effect("batches of different ranges commit concurrently", () =>
      Effect.gen(function*() {
        const rows = yield* held(2)
        const keys = [yield* unique("key"), yield* unique("key")]
        const started = yield* Effect.forEach(keys, () => Deferred.make<void>())
        yield* Effect.forEach(rows, (row, index) =>
          effects.record(keys[index]!).pipe(
            Effect.andThen(Deferred.succeed(started[index]!, undefined)),
            Effect.andThen(Effect.forEach(started, (other) => Deferred.await(other), { discard: true })),
            (work) => commit(row, 0n, BigInt(5 + index), work)
          ), { concurrency: "unbounded" })
        assert.deepStrictEqual([yield* position(rows[0]!), yield* position(rows[1]!)], [5n, 6n])
        assert.deepStrictEqual([yield* effects.count(keys[0]!), yield* effects.count(keys[1]!)], [1, 1])
      }))

    it.effect("the effects of a batch are not visible before it commits", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        const key = yield* unique("key")
        const recorded = yield* Deferred.make<void>()
        const go = yield* Deferred.make<void>()
        const fiber = yield* Effect.forkChild(
          commit(
            row!,
            0n,
            5n,
            effects.record(key).pipe(
              Effect.andThen(Deferred.succeed(recorded, undefined)),
              Effect.andThen(Deferred.await(go))
            )
          )
        )
        yield* Tests.reached(recorded, fiber)
        assert.strictEqual(yield* effects.count(key), 0)
        assert.strictEqual(yield* position(row!), 0n)
        yield* Deferred.succeed(go, undefined)
        yield* Fiber.join(fiber)
        assert.strictEqual(yield* effects.count(key), 1)
      }))

    it.effect("an interrupted batch is rolled back", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        const key = yield* unique("key")
        const recorded = yield* Deferred.make<void>()
        const fiber = yield* Effect.forkChild(
          commit(
            row!,
            0n,
            5n,
            effects.record(key).pipe(
              Effect.andThen(Deferred.succeed(recorded, undefined)),
              Effect.andThen(Effect.never)
            )
          )
        )
        yield* Tests.reached(recorded, fiber)
        yield* Fiber.interrupt(fiber)
        const exit = yield* Fiber.await(fiber)
        assert(Exit.isFailure(exit))
        assert.isTrue(Cause.hasInterruptsOnly(exit.cause))
        assert.strictEqual(yield* position(row!), 0n)
        assert.strictEqual(yield* effects.count(key), 0)
        yield* commit(row!, 0n, 5n, effects.record(key))
        assert.strictEqual(yield* effects.count(key), 1)
      }))

    it.effect("a running batch is fenced after its range was claimed from its evicted worker", () =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        const [row] = yield* held()
        const key = yield* unique("key")
        const recorded = yield* Deferred.make<void>()
        const go = yield* Deferred.make<void>()
        const fiber = yield* Effect.forkChild(
          commit(
            row!,
            0n,
            5n,
            effects.record(key).pipe(
              Effect.andThen(Deferred.succeed(recorded, undefined)),
              Effect.andThen(Deferred.await(go))
            )
          )
        )
        yield* Tests.reached(recorded, fiber)
        yield* time.advance(dead)
        const { projection, replicaSet } = row!
        const successor = yield* join(replicaSet, "successor", [projection], hasty)
        const { ownedRows: taken } = yield* decide(successor, { rules: hasty })
        assert.deepStrictEqual(taken.map((each) => each.range), [HashRange.whole])
        yield* Deferred.succeed(go, undefined)
        assert.strictEqual((yield* Effect.flip(Fiber.join(fiber)))._tag, "Fenced")
        assert.strictEqual(yield* effects.count(key), 0)
        assert.deepStrictEqual(yield* store.rows(projection), taken)
        yield* commit(taken[0]!, 0n, 5n, effects.record(key))
        assert.strictEqual(yield* effects.count(key), 1)
      }))

    it.effect("checkClient accepts the store's own context", () =>
      Effect.gen(function*() {
        const context = yield* Effect.context<never>()
        yield* (yield* CheckpointStore).checkClient(context, "replica-set")
      }))
  })
