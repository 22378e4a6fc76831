/**
 * When the tracker polls, which readers it answers and what it reports, with a simulated database and a simulated
 * clock.
 */
import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as Queue from "effect/Queue"
import * as Schema from "effect/Schema"
import type * as SqlClient from "effect/sql/SqlClient"
import { TestClock } from "effect/testing"
import { describe } from "vitest"
import { Listener } from "../../../../src/layers/postgres/connection/Listener.ts"
import { Database } from "../../../../src/layers/postgres/Database.ts"
import type { Reader, State } from "../../../../src/layers/postgres/events/Reader.ts"
import * as SettledTracker from "../../../../src/layers/postgres/events/SettledTracker.ts"
import * as Settled from "../../../../src/schema/Settled.ts"

interface World {
  head: bigint
  /** The last position of the gapless run that starts at 0. */
  contiguous: bigint
  holders: ReadonlyArray<Settled.Holder>
  statements: number
  messages: Queue.Queue<string>
  tracker: SettledTracker.SettledTracker
}

/** A database that answers with the world's fields and counts its statements. */
const world = Effect.gen(function*() {
  const messages = yield* Queue.sliding<string>(16)
  const state: State = { epoch: "1@1", sequence: "1", files: undefined, settled: Settled.make() }
  const answer = (text: string, starts: ReadonlyArray<bigint>) => {
    self.statements++
    const common = { recovering: false, sequences: 1, sequence: "1", name: "s", cache: 1n, increment: 1n, cycle: false }
    if (text.includes("AS ends")) {
      return [{
        recovering: false,
        readable: true,
        files: "1/2",
        last: self.head + 10n,
        head: self.head,
        ends: starts.map((start) => start < self.contiguous ? self.contiguous : start)
      }]
    }
    return self.holders.length === 0
      ? [{ ...common, holder: null, pid: null, application: null }]
      : self.holders.map(({ application, id, pid }) => ({ ...common, holder: id, pid: pid ?? null, application }))
  }
  const sql = {
    unsafe: (text: string, [starts]: [ReadonlyArray<bigint>]) => Effect.sync(() => answer(text, starts))
  } as unknown as SqlClient.SqlClient
  const reader: Reader = { use: (_, f) => f({ sql, state, openedAt: 0n }) as never }
  const self: World = { head: 0n, contiguous: 0n, holders: [], statements: 0, messages, tracker: undefined as never }
  self.tracker = yield* SettledTracker.make(reader).pipe(
    Effect.provideService(
      Database,
      {
        qualified: () => "events",
        channels: { events: "e", control: "c" },
        server: { server: "s", database: "d", user: "u" }
      } as unknown as Database["Service"]
    ),
    Effect.provideService(
      Listener,
      Listener.of({
        subscribe: () => Effect.succeed(messages),
        notify: () => Effect.void,
        onConnection: () => Effect.void,
        lost: Effect.never
      })
    )
  )
  return self
})

const fork = <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.forkChild(self, { startImmediately: true })

/** Lets fibers run without letting time pass. */
const turn = TestClock.adjust(0)

const holder = (id: string, ...[pid]: [pid?: number | undefined]): Settled.Holder => ({
  id,
  pid,
  application: "importer"
})

describe("SettledTracker", () => {
  it.effect("sends no statement without waiting readers, and one per poll interval with them", () =>
    Effect.gen(function*() {
      const self = yield* world
      yield* TestClock.adjust("10 minutes")
      assert.strictEqual(self.statements, 0)
      const slow = yield* fork(self.tracker.settledBeyond(0n, Duration.seconds(60)))
      const fast = yield* fork(self.tracker.settledBeyond(0n, Duration.seconds(1)))
      yield* TestClock.adjust("100 millis")
      const begun = self.statements
      for (let second = 0; second < 30; second++) yield* TestClock.adjust("1 seconds")
      assert.isAtMost(self.statements - begun, 30)
      assert.isAtLeast(self.statements - begun, 28)
      yield* Fiber.interrupt(fast)
      for (let second = 0; second < 2; second++) yield* TestClock.adjust("1 seconds")
      const alone = self.statements
      for (let second = 0; second < 50; second++) yield* TestClock.adjust("1 seconds")
      assert.isAtMost(self.statements - alone, 1)
      self.head = 3n
      self.contiguous = 3n
      yield* TestClock.adjust("60 seconds")
      assert.strictEqual(yield* Fiber.join(slow), 3n)
      const after = self.statements
      yield* TestClock.adjust("10 minutes")
      assert.strictEqual(self.statements, after)
    }))

  it.effect("one poll answers all waiting readers, whatever caused it", () =>
    Effect.gen(function*() {
      const self = yield* world
      const wait = (position: bigint) => fork(self.tracker.settledBeyond(position, Duration.minutes(1)))
      const all = yield* Effect.forEach(Array.from({ length: 20 }), () => wait(0n))
      yield* TestClock.adjust("50 millis")
      self.head = 5n
      self.contiguous = 5n
      const before = self.statements
      yield* Queue.offer(self.messages, "appended")
      yield* turn
      for (const fiber of all) assert.strictEqual(yield* Fiber.join(fiber), 5n)
      assert.strictEqual(self.statements - before, 1)
      // A position that is already known to be settled needs no poll.
      assert.strictEqual(yield* self.tracker.settledBeyond(4n, Duration.minutes(1)), 5n)
      assert.strictEqual(self.statements - before, 1)
      const local = yield* wait(5n)
      yield* TestClock.adjust("50 millis")
      self.head = 6n
      self.contiguous = 6n
      self.tracker.wake()
      yield* turn
      assert.strictEqual(yield* Fiber.join(local), 6n)
    }))

  it.effect("polls an open gap every 5 ms at first, and then at least every 250 ms", () =>
    Effect.gen(function*() {
      const self = yield* world
      self.head = 9n
      self.contiguous = 4n
      self.holders = [holder("3/5")]
      const waiting = yield* fork(self.tracker.settledBeyond(4n, Duration.minutes(1)))
      for (let millis = 0; millis < 50; millis++) yield* TestClock.adjust("1 millis")
      // Two statements per poll.
      assert.isAtLeast(self.statements, 8)
      for (let millis = 0; millis < 5000; millis += 10) yield* TestClock.adjust("10 millis")
      const late = self.statements
      for (let millis = 0; millis < 5000; millis += 10) yield* TestClock.adjust("10 millis")
      assert.isAtMost(self.statements - late, 2 * 21)
      assert.isAtLeast(self.statements - late, 2 * 18)
      self.holders = []
      yield* TestClock.adjust("260 millis")
      assert.strictEqual(yield* Fiber.join(waiting), 9n)
    }))

  it.effect("reports a writer that keeps readers waiting for 10 s once, and its end", () =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      const logger = Logger.make<unknown, void>(({ logLevel, message }) => {
        lines.push(`${logLevel} ${String(message)}`)
      })
      yield* Effect.gen(function*() {
        const self = yield* world
        self.head = 9n
        self.holders = [holder("3/5", 4711)]
        const waiting = yield* fork(self.tracker.settledBeyond(0n, Duration.seconds(1)))
        for (let step = 0; step < 36; step++) yield* TestClock.adjust("250 millis")
        assert.deepStrictEqual(lines, [])
        const [open] = yield* self.tracker.openWriters
        assert.strictEqual(open?.pid, 4711)
        assert.isAtLeast(open?.seenForMillis ?? 0, 8_500)
        for (let step = 0; step < 40; step++) yield* TestClock.adjust("250 millis")
        assert.strictEqual(lines.length, 1)
        assert.match(lines[0]!, /^Warn.*pid 4711.*importer.*position 0/)
        self.holders = []
        yield* TestClock.adjust("250 millis")
        assert.strictEqual(yield* Fiber.join(waiting), 9n)
        assert.strictEqual(lines.length, 2)
        assert.match(lines[1]!, /^Info.*pid 4711.*over/)
        assert.deepStrictEqual(yield* self.tracker.openWriters, [])
      }).pipe(Effect.provide(Logger.layer([logger])))
    }))
})

describe("Settled", () => {
  const see = (self: Settled.Settled, contiguous: bigint | undefined, head: bigint, ...ids: ReadonlyArray<string>) => {
    const open = Settled.see(self, contiguous === undefined ? [] : [{ from: self.mark, to: contiguous }], head)
    Settled.prove(self, head, open ? ids.map((id) => holder(id)) : [])
    return self.mark
  }

  it("lets only readers inside a run follow it", () => {
    const self = Settled.make()
    Settled.see(self, [{ from: 0n, to: 3n }, { from: 5n, to: 8n }, { from: 8n, to: 8n }, { from: 20n, to: 30n }], 40n)
    const reached = (afters: ReadonlyArray<bigint>) => afters.map((after) => Settled.reached(self, after))
    assert.deepStrictEqual(reached([0n, 2n, 3n, 4n, 5n, 7n, 8n]), [3n, 3n, 3n, 3n, 8n, 8n, 3n])
    assert.strictEqual(Settled.highest(self), 30n)
    Settled.see(self, [{ from: 8n, to: 12n }], 40n)
    assert.deepStrictEqual(reached([5n, 12n]), [12n, 3n])
    // The gap before it is closed, so the run becomes part of the settled position.
    Settled.see(self, [{ from: 3n, to: 5n }], 40n)
    assert.strictEqual(self.mark, 12n)
    Settled.prove(self, 25n, [])
    assert.strictEqual(self.mark, 30n)
    assert.deepStrictEqual(self.runs, [])
  })

  it.prop(
    "lets no reader pass a position that is committed later, wherever it reads from",
    { steps: Schema.Array(Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum: 0, maximum: 999_999 })))) },
    ({ steps }) => {
      const self = Settled.make()
      const open = new Map<string, ReadonlyArray<number>>()
      const committed = new Set<number>()
      /** Positions that a reader may have passed before they were committed. */
      const passed = new Set<number>()
      let last = 0
      const draw = (id: string) => open.set(id, [...open.get(id) ?? [], ++last])
      const runFrom = (from: number) => {
        let to = from
        while (committed.has(to + 1)) to++
        return { from: BigInt(from), to: BigInt(to) }
      }
      let look: { readonly runs: ReadonlyArray<Settled.Run>; readonly head: bigint } | undefined
      for (const [index, step] of steps.entries()) {
        const ids = [...open.keys()]
        const id = ids[step % Math.max(1, ids.length)]
        const way = (step >> 4) % 8
        if (way < 2 || (id === undefined && way < 5)) draw(`1/${index + 1}`)
        else if (way === 2) draw(id!)
        else if (way < 5) {
          for (const position of way === 3 ? open.get(id!)! : []) {
            committed.add(position)
            assert.isFalse(passed.has(position), `position ${position} was passed before it was committed`)
          }
          open.delete(id!)
        } else if (look === undefined) {
          // What one statement reads, and the holders that a later statement reads.
          const starts = [Number(self.mark), step % (last + 2), (step >> 8) % (last + 2)]
          look = { runs: starts.map(runFrom), head: BigInt(Math.max(0, ...committed)) }
        } else {
          Settled.see(self, look.runs, look.head)
          Settled.prove(self, look.head, [...open.keys()].map((id) => holder(id)))
          look = undefined
          for (let after = 0; after <= last; after++) {
            const to = Number(Settled.reached(self, BigInt(after)))
            for (let position = after + 1; position <= to; position++) {
              if (!committed.has(position)) passed.add(position)
            }
          }
        }
      }
    },
    { arbitrary: { runs: 500, size: 120, seed: "settled" } }
  )

  it("follows positions without a gap while writers are open", () => {
    const self = Settled.make()
    assert.strictEqual(see(self, 3n, 3n), 3n)
    assert.strictEqual(see(self, 5n, 9n, "3/1"), 5n)
    assert.strictEqual(see(self, 7n, 9n, "3/1"), 7n)
  })

  it("crosses a gap once all writers that could fill it have ended, without waiting for later ones", () => {
    const self = Settled.make()
    assert.strictEqual(see(self, undefined, 9n, "3/1", "4/1"), 0n)
    assert.strictEqual(see(self, undefined, 12n, "4/1", "5/1"), 0n)
    assert.strictEqual(see(self, undefined, 15n, "5/1", "6/1"), 9n)
    assert.strictEqual(see(self, undefined, 15n, "6/1"), 12n)
    assert.strictEqual(see(self, undefined, 15n), 15n)
  })

  it("crosses a gap at once when no writer is open", () => {
    assert.strictEqual(see(Settled.make(), 3n, 9n), 9n)
  })

  it("a transaction that continues as a prepared one still holds readers back", () => {
    const self = Settled.make()
    assert.strictEqual(see(self, undefined, 9n, "3/1", "4/1"), 0n)
    assert.strictEqual(see(self, undefined, 9n, "4/0", "3/1"), 0n)
    assert.strictEqual(see(self, undefined, 9n, "-1/77"), 0n)
    // Transactions prepared later cannot have been among the first holders.
    assert.strictEqual(see(self, undefined, 20n, "-1/77", "-1/80"), 0n)
    assert.strictEqual(see(self, undefined, 20n, "-1/80"), 9n)
  })

  it("keeps the time since a writer was first observed when it continues as a prepared transaction", () => {
    const self = Settled.make()
    see(self, undefined, 9n, "3/1")
    Settled.track(self, [holder("3/1", 5)], 1n)
    Settled.track(self, [holder("3/1", undefined), holder("9/9")], 2n)
    assert.deepStrictEqual([...self.writers.values()], [
      { id: "3/1", pid: undefined, application: "importer", since: 1n, reported: false }
    ])
    see(self, undefined, 9n)
    assert.deepStrictEqual(Settled.track(self, [], 3n).map(({ id }) => id), ["3/1"])
    assert.strictEqual(self.writers.size, 0)
  })
})
