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
import type * as SqlClient from "effect/sql/SqlClient"
import { TestClock } from "effect/testing"
import { describe } from "vitest"
import { Listener } from "../../../../src/layers/postgres/connection/Listener.ts"
import { Database } from "../../../../src/layers/postgres/Database.ts"
import type { ReadSession, State } from "../../../../src/layers/postgres/events/ReadSession.ts"
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
  const state: State = {
    epoch: "1@1",
    sequence: "1",
    files: undefined,
    settled: Settled.unproved,
    reported: new Set()
  }
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
  // Complete for the tracker, which uses only this member; another one would fail as undefined.
  const sql = {
    unsafe: (text: string, [starts]: [ReadonlyArray<bigint>]) => Effect.sync(() => answer(text, starts))
  } as unknown as SqlClient.SqlClient
  const session: ReadSession = { use: (_, f) => f({ sql, state, openedAt: 0n }) as never, endEpoch: () => Effect.void }
  const self: World = { head: 0n, contiguous: 0n, holders: [], statements: 0, messages, tracker: undefined as never }
  self.tracker = yield* SettledTracker.make(session).pipe(
    Effect.provideService(
      Database,
      // Likewise.
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
        isListening: () => true,
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
        assert.isAtLeast(Duration.toMillis(open!.openFor), 8_500)
        for (let step = 0; step < 40; step++) yield* TestClock.adjust("250 millis")
        assert.strictEqual(lines.length, 1)
        assert.match(lines[0]!, /^Warn.*pid 4711.*importer.*position 0/)
        self.holders = []
        yield* TestClock.adjust("250 millis")
        assert.strictEqual(yield* Fiber.join(waiting), 9n)
        assert.strictEqual(lines.length, 2)
        assert.match(lines[1]!, /^Info.*pid 4711.*ended/)
        assert.deepStrictEqual(yield* self.tracker.openWriters, [])
      }).pipe(Effect.provide(Logger.layer([logger])))
    }))
})
