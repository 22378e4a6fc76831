import { assert, describe, it } from "@effect/vitest"
import { Arbitrary, Array, Schema } from "effect"
import * as BatchPolicy from "../../src/schema/BatchPolicy.ts"

const int = (minimum: number, maximum: number) => Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum, maximum })))

const reasons = ["handler", "conflict", "refusal", "connection", "server fault", "unavailable"] as const
const transient = Schema.Literals(["conflict", "refusal", "connection", "server fault", "unavailable"])

type Outcome = BatchPolicy.Outcome<string>

const committed = (handled: number): Outcome => ({
  _tag: "Committed",
  handled,
  handlerNanos: 0n,
  tookNanos: 0n
})

/** A failure of a batch: in the handler of one event or of all, or after all handlers. */
const failed = (
  reason: BatchPolicy.Reason,
  batch: ReadonlyArray<bigint>,
  failedAt?: number | "unknown"
): Outcome => ({
  _tag: "Failed",
  reason,
  begun: typeof failedAt === "number" ? batch.slice(0, failedAt + 1) : batch,
  failedAt,
  failure: reason
})

/**
 * The loop of a runner over the events 1 to `count`, without effects: `outcomeOf` returns how an attempt of a batch
 * ends. Returns the events that were committed and where the range was halted.
 */
const drive = (options: {
  readonly count: number
  readonly batchSize: number
  readonly outcomeOf: (batch: ReadonlyArray<bigint>, attempt: number) => Outcome
  readonly overruns?: (position: bigint) => number
  readonly maxAttempts?: number
  readonly handler?: "Batch" | "One"
}) => {
  const { batchSize, count, handler = "One", maxAttempts = 10_000, outcomeOf, overruns = () => 0 } = options
  let state = BatchPolicy.initial(batchSize, handler)
  let done = 0
  let attempt = 0
  for (; done < count && attempt < maxAttempts; attempt++) {
    const rest = eventsFrom(done + 1, Math.min(batchSize, count - done))
    const batch = BatchPolicy.select(state, rest, (position) => overruns(position) > 0)
    const positions = batch.map(({ globalPosition }) => globalPosition)
    const decision = BatchPolicy.next(
      state,
      BatchPolicy.isBlocking(overruns(positions[0]!))
        ? { _tag: "Overran", failure: "overrun" }
        : outcomeOf(positions, attempt)
    )
    state = decision.state
    if (decision.action._tag === "Continue") done += decision.action.handled
    if (decision.action._tag === "GiveUp") {
      return { committed: done, haltedAt: done + 1, circumstance: decision.action.circumstance, attempt }
    }
  }
  return { committed: done, haltedAt: undefined, circumstance: undefined, attempt }
}

/** As many events from a position on, at least one. */
const eventsFrom = (position: number, count: number) =>
  Array.makeBy(count, (index) => ({ globalPosition: BigInt(position + index) }))

const range = { count: int(1, 60), batchSize: int(1, 20) }
const Fault = Schema.Struct({ reason: transient, at: int(0, 20), isAfterHandlers: Schema.Boolean })
/** Fewer failures between two attempts without one than connections may be lost in a row. */
const faults = Arbitrary.array(Arbitrary.schema(Fault), { maxLength: 3 })

/** Every attempt fails by the next fault; after the last fault an attempt ends by itself, then they start over. */
const disturbed =
  (list: ReadonlyArray<typeof Fault.Type>, undisturbed: (batch: ReadonlyArray<bigint>) => Outcome) =>
  (batch: ReadonlyArray<bigint>, attempt: number): Outcome => {
    const fault = list[attempt % (list.length + 1)]
    return fault === undefined
      ? undisturbed(batch)
      : failed(fault.reason, batch, fault.isAfterHandlers ? undefined : fault.at % batch.length)
  }

describe("halts", () => {
  it.prop("exactly at an event whose handler fails, after the events before it, whatever else fails", {
    ...range,
    poison: int(1, 60),
    faults
  }, ({ batchSize, count, faults, poison }) => {
    const bad = BigInt(poison)
    const outcomeOf = disturbed(
      faults,
      (batch) => batch.includes(bad) ? failed("handler", batch, batch.indexOf(bad)) : committed(batch.length)
    )
    const result = drive({ count, batchSize, outcomeOf })
    assert.deepStrictEqual(
      [result.committed, result.haltedAt],
      poison > count ? [count, undefined] : [poison - 1, poison]
    )
  })

  it.prop("never for failures that are transient, as long as some attempts succeed", { ...range, faults }, ({
    batchSize,
    count,
    faults
  }) => {
    const result = drive({ count, batchSize, outcomeOf: disturbed(faults, (batch) => committed(batch.length)) })
    assert.deepStrictEqual([result.committed, result.haltedAt], [count, undefined])
  })

  it.prop("exactly at an event that loses the connection in its handler ten times in a row", {
    ...range,
    poison: int(1, 60)
  }, ({ batchSize, count, poison }) => {
    const bad = BigInt(poison)
    let alone = 0
    const result = drive({
      count,
      batchSize,
      outcomeOf: (batch) => {
        if (batch[0] === bad) alone++
        return batch.includes(bad) ? failed("connection", batch, batch.indexOf(bad)) : committed(batch.length)
      }
    })
    if (poison > count) return assert.isUndefined(result.haltedAt)
    assert.deepStrictEqual([result.committed, result.haltedAt, alone], [poison - 1, poison, 10])
    assert.strictEqual(result.circumstance, "the connection was lost 10 times in a row in the handler: ")
  })

  it.prop("exactly at an event that loses the connection after its handler thirty times in a row", {
    ...range,
    poison: int(1, 60)
  }, ({ batchSize, count, poison }) => {
    const bad = BigInt(poison)
    const outcomeOf = (batch: ReadonlyArray<bigint>) =>
      batch.includes(bad) ? failed("connection", batch) : committed(batch.length)
    const result = drive({ count, batchSize, outcomeOf })
    if (poison > count) return assert.isUndefined(result.haltedAt)
    assert.deepStrictEqual([result.committed, result.haltedAt], [poison - 1, poison])
    const rounds = 1 + Math.ceil(Math.log2(Math.min(batchSize, count)))
    if (poison === 1) assert.isAtMost(result.attempt, 30 * rounds, "halving finds the event")
    assert.strictEqual(result.circumstance, "the connection was lost 30 times in a row after the handler had ended: ")
  })

  it.prop("exactly at an event that overruns three times, after the events before it", {
    ...range,
    poison: int(1, 60)
  }, ({ batchSize, count, poison }) => {
    const bad = BigInt(poison)
    let overruns = 0
    const result = drive({
      count,
      batchSize,
      overruns: (position) => position === bad ? overruns : 0,
      outcomeOf: (batch) => {
        if (!batch.includes(bad)) return committed(batch.length)
        if (overruns > 0) assert.deepStrictEqual(batch, [bad], "an event that has overrun is handled alone")
        overruns++
        return failed("connection", batch, batch.indexOf(bad))
      }
    })
    assert.deepStrictEqual(
      [result.committed, result.haltedAt, overruns],
      poison > count ? [count, undefined, 0] : [poison - 1, poison, 3]
    )
  })

  it.prop("never because the server ends transactions that are too long", { ...range, longest: int(1, 5) }, ({
    batchSize,
    count,
    longest
  }) => {
    // The limit hits another event each time.
    const outcomeOf = (batch: ReadonlyArray<bigint>, attempt: number) => {
      const most = longest + attempt % 2
      return batch.length > most ? failed("connection", batch, most) : committed(batch.length)
    }
    assert.strictEqual(drive({ count, batchSize, outcomeOf }).committed, count)
  })

  it.prop("never because large batches conflict or are refused", {
    ...range,
    most: int(1, 5),
    reason: Schema.Literals(["conflict", "refusal"])
  }, ({ batchSize, count, most, reason }) => {
    const outcomeOf = (batch: ReadonlyArray<bigint>) =>
      batch.length > most ? failed(reason, batch) : committed(batch.length)
    assert.strictEqual(drive({ count, batchSize, outcomeOf }).committed, count)
  })

  it.prop("never at an event for which the server fails; the events before it are committed", {
    ...range,
    bad: int(1, 60)
  }, ({ bad, batchSize, count }) => {
    const outcomeOf = (batch: ReadonlyArray<bigint>) => {
      const at = batch.indexOf(BigInt(bad))
      return at < 0 ? committed(batch.length) : failed("server fault", batch, at)
    }
    const result = drive({ count, batchSize, outcomeOf, maxAttempts: 200 })
    assert.deepStrictEqual([result.committed, result.haltedAt], [Math.min(count, bad - 1), undefined])
  })

  it("never for connections lost before a handler begins, or in the handlers of different events", () => {
    const batch = [1n, 2n]
    const losses: ReadonlyArray<(attempt: number) => Outcome> = [
      () => failed("connection", []),
      (attempt) => failed("connection", batch, attempt % 2)
    ]
    for (const lossAt of losses) {
      let state = BatchPolicy.initial(8, "One")
      for (let attempt = 1; attempt <= 100; attempt++) {
        const decision = BatchPolicy.next(state, lossAt(attempt))
        assert.deepStrictEqual(decision.action, { _tag: "BackOff", attempt, failure: "connection" })
        state = decision.state
      }
      assert.strictEqual(BatchPolicy.next(state, failed("connection", batch)).action._tag, "BackOff")
    }
  })
})

it("a range is contended after three conflicts, until its batches are back at their full size", () => {
  const conflict = failed("conflict", [1n, 2n, 3n, 4n])
  const after = (...outcomes: ReadonlyArray<Outcome>) =>
    BatchPolicy.isContended(
      outcomes.reduce((state, outcome) => BatchPolicy.next(state, outcome).state, BatchPolicy.initial(8, "One"))
    )
  assert.isFalse(after(conflict, conflict))
  assert.isTrue(after(conflict, conflict, conflict))
  assert.isTrue(after(conflict, conflict, committed(1), conflict))
  assert.isFalse(after(conflict, conflict, committed(1), committed(1), conflict))
  assert.isFalse(after(failed("refusal", [1n]), failed("refusal", [1n]), failed("refusal", [1n])))
})

const Step = Schema.Struct({
  reason: Schema.Literals(["commit", ...reasons]),
  begun: int(0, 8),
  failedAt: int(-2, 8)
})
const steps = Arbitrary.array(Arbitrary.schema(Step), { maxLength: 120 })

/** Any outcome of a batch that begins at the first position. */
const anyOutcome = ({ begun, failedAt, reason }: typeof Step.Type): Outcome => {
  if (reason === "commit") return committed(begun)
  const positions = globalThis.Array.from({ length: begun }, (_, index) => BigInt(index + 1))
  if (failedAt === -2 && begun > 1) return failed(reason, positions, "unknown")
  return failed(reason, positions, failedAt < 0 || failedAt >= begun ? undefined : failedAt)
}

describe("after any outcomes", () => {
  it.prop(
    "halts and isolates only for a handler's failure, or for the last loss of too many in a row",
    { steps },
    ({ steps }) => {
      let state = BatchPolicy.initial(8, "One")
      let inHandler: { readonly at: bigint | undefined; readonly times: number } = { at: undefined, times: 0 }
      let after = 0
      for (const step of steps) {
        const outcome = anyOutcome(step)
        const { action, state: following } = BatchPolicy.next(state, outcome)
        state = following
        if (outcome._tag !== "Failed") {
          inHandler = { at: undefined, times: 0 }
          after = 0
          continue
        }
        const { begun, failedAt, reason } = outcome
        if (reason === "connection" && typeof failedAt === "number") {
          const at = begun[failedAt]
          inHandler = { at, times: inHandler.at === at ? inHandler.times + 1 : 1 }
        } else if (reason === "connection" && failedAt === undefined && begun.length > 0) {
          after++
        }
        const isTooMany = reason === "connection" && begun.length > 0 && failedAt !== "unknown" &&
          (failedAt === undefined ? after === 30 : inHandler.times === 10)
        const isGivenUp = action._tag === "GiveUp" || action._tag === "Isolate"
        assert.strictEqual(isGivenUp, reason === "handler" || isTooMany)
        // An event that is not the first is isolated before it can be given up.
        if (action._tag === "GiveUp") assert.strictEqual(typeof failedAt === "number" ? failedAt : begun.length >> 1, 0)
        if (isGivenUp && isTooMany) {
          inHandler = { at: undefined, times: 0 }
          after = 0
        }
      }
    },
    { arbitrary: { runs: 500, seed: "halts" } }
  )

  it.prop("a batch has at least one event, and commits restore its full size", { steps, batchSize: int(8, 64) }, ({
    batchSize,
    steps
  }) => {
    let state = steps.reduce(
      (state, step) => BatchPolicy.next(state, anyOutcome(step)).state,
      BatchPolicy.initial(batchSize, "One")
    )
    assert.isAtLeast(state.limit, 1)
    assert.isAtMost(state.limit, batchSize)
    for (let commits = 1; commits <= 6; commits++) {
      assert.isNotEmpty(BatchPolicy.select(state, eventsFrom(100, batchSize), () => false))
      state = BatchPolicy.next(state, committed(1)).state
      assert.isAtLeast(state.limit, Math.min(batchSize, 2 ** commits))
    }
    assert.deepStrictEqual([state.limit, state.conflicts, state.attempts], [batchSize, 0, 0])
  })
})

describe("a handler of whole batches", () => {
  const options = { handler: "Batch", count: 1000, batchSize: 1000 } as const

  it.prop("is halted exactly at the event that fails, which halving finds", { poison: int(1, 1000), faults }, ({
    faults,
    poison
  }) => {
    const bad = BigInt(poison)
    const outcomeOf = disturbed(
      faults,
      (batch) => batch.includes(bad) ? failed("handler", batch, "unknown") : committed(batch.length)
    )
    const result = drive({ ...options, outcomeOf })
    assert.deepStrictEqual([result.committed, result.haltedAt], [poison - 1, poison])
  })

  it.prop("finds the failing event in a logarithmic number of attempts", {
    size: int(1, 100),
    poison: int(1, 100)
  }, ({ poison, size }) => {
    if (poison > size) return
    const bad = BigInt(poison)
    let handled = 0
    const result = drive({
      ...options,
      count: size,
      outcomeOf: (batch) => {
        handled += batch.length
        return batch.includes(bad) ? failed("handler", batch, "unknown") : committed(batch.length)
      }
    })
    assert.strictEqual(result.haltedAt, poison)
    assert.isAtMost(result.attempt, 1 + Math.ceil(Math.log2(size)))
    assert.isAtMost(handled, 2 * size, "no event is handled more than twice on average")
  })

  it.prop("is halted at the event that it names, after the events before it", { poison: int(1, 100) }, ({ poison }) => {
    const bad = BigInt(poison)
    const outcomeOf = (batch: ReadonlyArray<bigint>) =>
      batch.includes(bad) ? failed("handler", batch, batch.indexOf(bad)) : committed(batch.length)
    const result = drive({ ...options, outcomeOf })
    assert.deepStrictEqual([result.committed, result.haltedAt], [poison - 1, poison])
    assert.isAtMost(result.attempt, 2)
  })

  it("is not halted if it fails for several events together, but for none of them alone", () => {
    const outcomeOf = (batch: ReadonlyArray<bigint>) =>
      batch.length > 7 ? failed("handler", batch, "unknown") : committed(batch.length)
    assert.strictEqual(drive({ ...options, outcomeOf }).committed, 1000)
  })

  it.prop("is halted at an event that loses the connection ten times in a row, alone", { poison: int(1, 300) }, ({
    poison
  }) => {
    const bad = BigInt(poison)
    let alone = 0
    const outcomeOf = (batch: ReadonlyArray<bigint>) => {
      if (batch.length === 1 && batch[0] === bad) alone++
      if (!batch.includes(bad)) return committed(batch.length)
      return failed("connection", batch, batch.length === 1 ? 0 : "unknown")
    }
    const result = drive({ ...options, outcomeOf })
    assert.deepStrictEqual([result.committed, result.haltedAt, alone], [poison - 1, poison, 10])
  })

  it.prop("gets as many events as it handles in 100 ms, or at most 100 events in a second", {
    micros: int(1, 100_000),
    fixed: int(0, 2_000)
  }, ({ fixed, micros }) => {
    const nanosOf = (events: number) => BigInt(fixed) * 1_000_000n + BigInt(events * micros) * 1000n
    let state = BatchPolicy.initial(5000, "Batch")
    assert.strictEqual(state.limit, 100)
    for (let commits = 1; commits <= 30; commits++) {
      const handled = state.limit
      const nanos = nanosOf(handled)
      state = BatchPolicy.next(state, { _tag: "Committed", handled, handlerNanos: nanos, tookNanos: nanos }).state
      assert.isAtMost(state.limit, handled * 2)
    }
    const millis = Number(nanosOf(state.limit)) / 1e6
    const isSmall = state.limit <= 100
    if (state.limit > 1) assert.isAtMost(millis, isSmall ? 2000 : 210, `${state.limit} events`)
    if (fixed === 0 && micros <= 20) assert.strictEqual(state.limit, 5000)
    if (fixed === 0 && micros > 20 && micros < 1000) assert.isAtLeast(millis, 50)
    if (micros < 1000 && fixed < 800) assert.isAtLeast(state.limit, 50, "the size hardly influences the time")
  })
})

describe("select", () => {
  type Numbers = Array.NonEmptyReadonlyArray<number>
  const positions = (...list: Numbers) => Array.map(list, (position) => ({ globalPosition: BigInt(position) }))
  const selected = (first: bigint, last: bigint, ...list: Numbers) =>
    BatchPolicy.select(
      { ...BatchPolicy.initial(10, "One"), suspects: { first, last } },
      positions(...list),
      () => false
    ).map(({ globalPosition }) => Number(globalPosition))

  it("ends before a suspect, which is handled alone", () => {
    assert.deepStrictEqual(selected(3n, 3n, 1, 2, 3, 4), [1, 2])
    assert.deepStrictEqual(selected(3n, 3n, 3, 4), [3])
    // The suspect may have been lost in a failover.
    assert.deepStrictEqual(selected(3n, 3n, 1, 4, 5), [1])
    assert.deepStrictEqual(selected(3n, 3n, 4, 5), [4, 5])
  })

  it("contains half of several suspects, and none of them with other events", () => {
    assert.deepStrictEqual(selected(3n, 6n, 1, 2, 3, 4, 5, 6, 7), [1, 2])
    assert.deepStrictEqual(selected(3n, 6n, 3, 4, 5, 6, 7), [3, 4])
    assert.deepStrictEqual(selected(3n, 6n, 4, 5, 6, 7), [4])
    assert.deepStrictEqual(selected(3n, 6n, 6, 7), [6])
    assert.deepStrictEqual(selected(3n, 6n, 7, 8, 9), [7, 8, 9])
  })

  it("ends before an event that has overrun, which is handled alone", () => {
    const select = (...list: Numbers) =>
      BatchPolicy.select(BatchPolicy.initial(10, "One"), positions(...list), (position) => position === 3n)
    assert.deepStrictEqual(select(1, 2, 3, 4), positions(1, 2))
    assert.deepStrictEqual(select(3, 4), positions(3))
    assert.deepStrictEqual(select(4, 5), positions(4, 5))
  })
})

it.prop("the back-off grows from 10 ms to 5 s, or to 1 s while the server is unavailable, with 20 % jitter", {
  attempt: int(1, 2000),
  isUnavailable: Schema.Boolean,
  random: int(0, 100)
}, ({ attempt, isUnavailable, random }) => {
  const wait = BatchPolicy.backoffMillis(attempt, isUnavailable, random / 100)
  const middle = Math.min(10 * 2 ** (attempt - 1), isUnavailable ? 1_000 : 5_000)
  assert.isAtLeast(wait, middle * 0.8)
  assert.isAtMost(wait, middle * 1.2 + 1e-9)
})
