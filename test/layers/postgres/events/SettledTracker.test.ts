/**
 * When the tracker polls, which readers it answers and what it reports, with a simulated database and a simulated
 * clock.
 */
import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Logger from "effect/Logger"
import * as Queue from "effect/Queue"
import type * as SqlClient from "effect/sql/SqlClient"
import { TestClock } from "effect/testing"
import { describe } from "vitest"
import { Listener, queueCapacity } from "../../../../src/layers/postgres/connection/Listener.ts"
import { Database } from "../../../../src/layers/postgres/Database.ts"
import type { ReadSession, State } from "../../../../src/layers/postgres/events/ReadSession.ts"
import * as SettledTracker from "../../../../src/layers/postgres/events/SettledTracker.ts"
import * as Announcement from "../../../../src/schema/Announcement.ts"
import type { HashRange } from "../../../../src/schema/HashRange.ts"
import * as Settled from "../../../../src/schema/Settled.ts"
import { unavailable } from "../../../support/StoreErrors.ts"

interface World {
  head: bigint
  /** The last position of the gapless run that starts at 0. */
  contiguous: bigint
  holders: ReadonlyArray<Settled.Holder>
  statements: number
  /** Closed while the database does not answer. */
  readonly answers: Latch.Latch
  isListening: boolean
  isFailing: boolean
  messages: Queue.Queue<string>
  tracker: SettledTracker.SettledTracker
}

/** A database that answers with the world's fields and counts its statements. */
const world = Effect.gen(function*() {
  const messages = yield* Queue.sliding<string>(queueCapacity)
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
    unsafe: (text: string, [starts]: [ReadonlyArray<bigint>]) =>
      Effect.andThen(self.answers.await, Effect.sync(() => answer(text, starts)))
  } as unknown as SqlClient.SqlClient
  const session: ReadSession = {
    use: (_, f) =>
      Effect.suspend(() =>
        self.isFailing ? Effect.fail(unavailable("connection lost")) : f({ sql, state, openedAt: 0n }) as never
      ),
    endEpoch: () => Effect.void
  }
  const self: World = {
    head: 0n,
    contiguous: 0n,
    holders: [],
    statements: 0,
    answers: Latch.makeUnsafe(true),
    isListening: true,
    isFailing: false,
    messages,
    tracker: undefined as never
  }
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
        isListening: () => self.isListening,
        lost: Effect.never
      })
    )
  )
  return self
})

const fork = <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.forkChild(self, { startImmediately: true })

/** The answer that the reader has received. */
const answerTo = <A, E>(reader: Fiber.Fiber<A, E>) =>
  Effect.suspend(() => reader.pollUnsafe() ?? Effect.die(new Error("The reader still waits.")))

/** Lets fibers run without letting time pass. */
const turn = TestClock.adjust(0)

const holder = (id: string, ...[pid]: [pid?: number | undefined]): Settled.Holder => ({
  id,
  pid,
  application: "importer"
})

const range: HashRange = { start: 100, end: 200 }

/** A world with a reader that waits for the events of `range` and polls every 10 s; 0.5 s after its observation. */
const waitingForRange = Effect.gen(function*() {
  const self = yield* world
  const waiting = yield* fork(self.tracker.settledBeyond(0n, Duration.seconds(10), range))
  yield* TestClock.adjust("500 millis")
  self.statements = 0
  return { self, waiting }
})

/** Lets the time pass in small steps, and returns the number of statements. */
const statementsWithin = Effect.fnUntraced(function*(self: World, millis: number) {
  const before = self.statements
  for (let step = 0; step < millis; step += 10) yield* TestClock.adjust("10 millis")
  return self.statements - before
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
      assert.strictEqual(yield* answerTo(slow), 3n)
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
      for (const fiber of all) assert.strictEqual(yield* answerTo(fiber), 5n)
      assert.strictEqual(self.statements - before, 1)
      // A position that is already known to be settled needs no poll.
      assert.strictEqual(yield* self.tracker.settledBeyond(4n, Duration.minutes(1)), 5n)
      assert.strictEqual(self.statements - before, 1)
      const local = yield* wait(5n)
      yield* TestClock.adjust("50 millis")
      self.head = 6n
      self.contiguous = 6n
      self.tracker.announce(Announcement.all)
      yield* turn
      assert.strictEqual(yield* answerTo(local), 6n)
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
      assert.strictEqual(yield* answerTo(waiting), 9n)
    }))

  it.effect("does not poll a gap for a reader that has passed the head", () =>
    Effect.gen(function*() {
      const self = yield* world
      self.head = 9n
      self.contiguous = 4n
      self.holders = [holder("3/5")]
      yield* fork(self.tracker.settledBeyond(9n, Duration.seconds(10)))
      yield* turn
      assert.strictEqual(yield* statementsWithin(self, 5_000), 0)
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
        assert.strictEqual(yield* answerTo(waiting), 9n)
        assert.strictEqual(lines.length, 2)
        assert.match(lines[1]!, /^Info.*pid 4711.*ended/)
        assert.deepStrictEqual(yield* self.tracker.openWriters, [])
      }).pipe(Effect.provide(Logger.layer([logger])))
    }))

  for (
    const [name, payload] of [
      ["with one of the hashes for which a reader waits", "appended:1,199"],
      ["without hashes", "appended"],
      ["after a reconnection", ""],
      ["of a Go service, which is a position", "1"],
      ["of another writer", "{\"position\":\"1\"}"]
    ] as const
  ) {
    it.effect(`a payload ${name} causes an observation at once`, () =>
      Effect.gen(function*() {
        const { self, waiting } = yield* waitingForRange
        self.head = self.contiguous = 1n
        yield* Queue.offer(self.messages, payload)
        yield* turn
        assert.strictEqual(yield* answerTo(waiting), 1n)
      }))
  }

  it.effect("payloads that concern no waiting reader cause one observation, a second after the first of them", () =>
    Effect.gen(function*() {
      const { self, waiting } = yield* waitingForRange
      for (let second = 0; second < 5; second++) {
        for (let step = 0; step < 9; step++) {
          yield* Queue.offer(self.messages, `appended:99,200,${step}`)
          assert.strictEqual(yield* statementsWithin(self, 100), 0)
        }
        assert.strictEqual(yield* statementsWithin(self, 110), 1)
      }
      self.head = self.contiguous = 1n
      yield* Queue.offer(self.messages, "appended:99")
      yield* TestClock.adjust("1 seconds")
      assert.strictEqual(yield* answerTo(waiting), 1n)
    }))

  it.effect("an append of the same process causes an observation at once only if it concerns a waiting reader", () =>
    Effect.gen(function*() {
      const { self, waiting } = yield* waitingForRange
      self.tracker.announce(Announcement.make([99]))
      yield* turn
      assert.strictEqual(self.statements, 0)
      self.head = self.contiguous = 1n
      self.tracker.announce(Announcement.make([100]))
      yield* turn
      assert.strictEqual(yield* answerTo(waiting), 1n)
    }))

  it.effect("every payload concerns a reader without a range", () =>
    Effect.gen(function*() {
      const { self, waiting } = yield* waitingForRange
      const other = yield* fork(self.tracker.settledBeyond(0n, Duration.seconds(10)))
      yield* TestClock.adjust("500 millis")
      self.head = self.contiguous = 1n
      yield* Queue.offer(self.messages, "appended:99")
      yield* turn
      assert.strictEqual(yield* answerTo(other), 1n)
      assert.strictEqual(yield* answerTo(waiting), 1n)
    }))

  it.effect("more messages than the queue keeps cause an observation at once, whatever they contain", () =>
    Effect.gen(function*() {
      const { self } = yield* waitingForRange
      yield* Queue.offerAll(self.messages, Array.from({ length: queueCapacity - 1 }, () => "appended:99"))
      assert.strictEqual(yield* statementsWithin(self, 500), 0)
      yield* Queue.offerAll(self.messages, [
        "appended:100",
        ...Array.from({ length: queueCapacity }, () => "appended:99")
      ])
      yield* turn
      assert.strictEqual(self.statements, 1)
    }))

  it.effect("every payload concerns readers that an open writer holds back", () =>
    Effect.gen(function*() {
      const { self, waiting } = yield* waitingForRange
      self.head = 9n
      self.holders = [holder("3/5")]
      yield* Queue.offer(self.messages, "appended:100")
      yield* statementsWithin(self, 5_000)
      self.holders = []
      self.contiguous = 9n
      // Before the next poll of the gap.
      assert.strictEqual(yield* statementsWithin(self, 20), 0)
      yield* Queue.offer(self.messages, "appended:99")
      yield* turn
      assert.strictEqual(yield* answerTo(waiting), 9n)
    }))

  for (const [hash, millis] of [[100, 10], [99, 1010]] as const) {
    it.effect(`a payload with ${hash} that arrives during an observation causes another one within ${millis} ms`, () =>
      Effect.gen(function*() {
        const { self, waiting } = yield* waitingForRange
        self.answers.closeUnsafe()
        yield* Queue.offer(self.messages, "appended:100")
        yield* TestClock.adjust("100 millis")
        yield* Queue.offer(self.messages, `appended:${hash}`)
        yield* turn
        self.answers.openUnsafe()
        yield* turn
        assert.strictEqual(self.statements, 1)
        self.head = self.contiguous = 1n
        yield* TestClock.adjust(millis)
        assert.strictEqual(yield* answerTo(waiting), 1n)
      }))
  }

  describe("a reader that waits for a range again, at the head of the last observation", () => {
    /** Waits for `range` after position 1, which the last observation has found. */
    const waitAgain = (self: World, range: HashRange | undefined) =>
      Effect.tap(fork(self.tracker.settledBeyond(1n, Duration.seconds(10), range)), () => turn)

    /** Another reader has received position 1. */
    const observed = Effect.gen(function*() {
      const { self, waiting } = yield* waitingForRange
      self.head = self.contiguous = 1n
      yield* Queue.offer(self.messages, "appended:100")
      yield* turn
      assert.strictEqual(yield* answerTo(waiting), 1n)
      self.statements = 0
      return self
    })

    it.effect("relies on it, and polls after its interval", () =>
      Effect.gen(function*() {
        const self = yield* observed
        yield* Queue.offer(self.messages, "appended:99,200")
        yield* turn
        const waiting = yield* waitAgain(self, range)
        assert.strictEqual(yield* statementsWithin(self, 900), 0)
        assert.strictEqual(yield* statementsWithin(self, 200), 1)
        assert.strictEqual(yield* statementsWithin(self, 9_800), 0)
        self.head = self.contiguous = 2n
        yield* TestClock.adjust("300 millis")
        assert.strictEqual(yield* answerTo(waiting), 2n)
      }))

    it.effect("polls after its own interval, although another reader has a longer one", () =>
      Effect.gen(function*() {
        const self = yield* observed
        yield* waitAgain(self, range)
        yield* TestClock.adjust("500 millis")
        yield* fork(self.tracker.settledBeyond(1n, Duration.seconds(1), range))
        assert.strictEqual(yield* statementsWithin(self, 450), 0)
        assert.strictEqual(yield* statementsWithin(self, 60), 1)
      }))

    it.effect("observes at once if an append that concerns it was announced", () =>
      Effect.gen(function*() {
        const self = yield* observed
        self.head = self.contiguous = 2n
        yield* Queue.offerAll(self.messages, ["appended:99", "appended:199", "appended:98"])
        yield* turn
        const waiting = yield* waitAgain(self, range)
        assert.strictEqual(yield* answerTo(waiting), 2n)
      }))

    it.effect("observes at once if it was announced during that observation", () =>
      Effect.gen(function*() {
        const { self, waiting } = yield* waitingForRange
        self.head = self.contiguous = 1n
        self.answers.closeUnsafe()
        yield* Queue.offer(self.messages, "appended:100")
        yield* TestClock.adjust("100 millis")
        yield* Queue.offer(self.messages, "appended:100")
        yield* turn
        self.answers.openUnsafe()
        assert.strictEqual(yield* answerTo(waiting), 1n)
        self.head = self.contiguous = 2n
        assert.strictEqual(yield* answerTo(yield* waitAgain(self, range)), 2n)
      }))

    it.effect("observes at once while nothing is listened to, and without a range", () =>
      Effect.gen(function*() {
        const self = yield* observed
        yield* waitAgain(self, undefined)
        assert.strictEqual(self.statements, 1)
        self.isListening = false
        yield* waitAgain(self, range)
        yield* TestClock.adjust("2 millis")
        assert.strictEqual(self.statements, 2)
      }))

    it.effect("observes at once after an observation that failed", () =>
      Effect.gen(function*() {
        const self = yield* observed
        self.isFailing = true
        const failing = yield* waitAgain(self, undefined)
        assert.strictEqual((yield* Effect.flip(answerTo(failing)))._tag, "StoreError")
        self.isFailing = false
        yield* waitAgain(self, range)
        assert.strictEqual(self.statements, 1)
      }))

    it.effect("relies on one that found a gap after it, and polls the gap", () =>
      Effect.gen(function*() {
        const self = yield* observed
        self.head = 3n
        self.holders = [holder("3/5")]
        const other = yield* waitAgain(self, undefined)
        yield* TestClock.adjust("2 millis")
        yield* Fiber.interrupt(other)
        self.statements = 0
        const waiting = yield* waitAgain(self, range)
        assert.strictEqual(self.statements, 0)
        self.contiguous = 3n
        yield* TestClock.adjust("5 millis")
        assert.strictEqual(yield* answerTo(waiting), 3n)
      }))

    it.effect("observes at once if any append after one that found a gap was announced", () =>
      Effect.gen(function*() {
        const self = yield* observed
        self.head = 3n
        self.holders = [holder("3/5")]
        const other = yield* waitAgain(self, undefined)
        yield* Fiber.interrupt(other)
        yield* TestClock.adjust("2 millis")
        self.contiguous = 3n
        yield* Queue.offer(self.messages, "appended:99")
        yield* turn
        assert.strictEqual(yield* answerTo(yield* waitAgain(self, range)), 3n)
      }))

    it.effect("observes at once if it waits for another position", () =>
      Effect.gen(function*() {
        const self = yield* observed
        self.head = self.contiguous = 3n
        const waiting = yield* fork(self.tracker.settledBeyond(2n, Duration.seconds(10), range))
        yield* turn
        assert.strictEqual(yield* answerTo(waiting), 3n)
      }))
  })
})
