import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as PageWindow from "../../src/schema/PageWindow.ts"

const int = (minimum: number, maximum: number) => Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum, maximum })))

/** Events, and how fast the database reads them. */
const scenario = {
  rows: Schema.Array(Schema.Struct({
    /** Positions without a matching event before this one. */
    gap: Schema.Union([Schema.Literal(0), int(0, 3), int(0, 40_000)]),
    payload: Schema.Union([int(0, 60), int(0, 4_000)]),
    /** Texts and metadata. */
    rest: Schema.Union([int(0, 60), int(0, 4_000)])
  })),
  limit: int(1, 30),
  bytes: int(1, 5_000),
  largestEvent: int(1, 6_000),
  isFiltered: Schema.Boolean,
  /** Milliseconds per statement, per 1,000 positions, per measured row and per kilobyte. */
  speed: Schema.Struct({ base: int(0, 200), scan: int(0, 400), row: int(0, 100), kilobyte: int(0, 500) })
}

type Scenario = { readonly [K in keyof typeof scenario]: (typeof scenario)[K]["Type"] }

interface Row {
  readonly position: bigint
  readonly payload: number
  readonly size: number
  readonly isSmall: boolean
}

const timeoutMillis = 1_000

const rowsOf = ({ rows }: Scenario): ReadonlyArray<Row> => {
  let position = 0n
  return rows.map(({ gap, payload, rest }) => {
    position += BigInt(gap) + 1n
    return { position, payload, size: 1 + payload + rest, isSmall: rest <= 100 }
  })
}

/** What the database answers to a request. */
const answer = (
  { speed }: Scenario,
  rows: ReadonlyArray<Row>,
  request: PageWindow.Request
): Omit<PageWindow.Answer, "pageNanos"> | "timeout" => {
  const matching = rows.filter(({ position }) => position > request.after && position <= request.upTo)
    .slice(0, request.limit)
  let running = 0
  const fits = ({ isSmall, payload, size }: Row) => {
    if (request.rows === "small") return isSmall && payload <= request.bytes
    running += size
    return running <= request.bytes || running === size && size <= request.largestFirst
  }
  const cut = matching.findIndex((row) => !fits(row))
  const events = cut === -1 ? matching : matching.slice(0, cut)
  const measured = request.rows === "small" ? [] : matching
  const scanned = (events.length === request.limit ? events[events.length - 1]!.position : request.upTo) - request.after
  const millis = speed.base + speed.scan * Number(scanned) / 1_000 + speed.row * measured.length +
    speed.kilobyte * measured.reduce((sum, { size }) => sum + size, 0) / 1_000
  if (millis > timeoutMillis && request.mayShrink) return "timeout"
  return {
    events: events.length,
    bytes: events.reduce((sum, { payload, size }) => sum + (request.rows === "small" ? payload : size), 0),
    last: events[events.length - 1]?.position,
    oversized: matching[cut]?.position,
    nanos: BigInt(Math.round(millis * 1e6))
  }
}

const limitsOf = ({ bytes, isFiltered, largestEvent, limit }: Scenario, after: bigint): PageWindow.Limits => ({
  after,
  events: limit,
  bytes,
  largestEvent,
  isFiltered
})

/** A request that was sent, and the page and sizes before and after it. */
interface Step {
  readonly request: PageWindow.Request
  readonly window: PageWindow.PageWindow
  readonly answer: ReturnType<typeof answer>
}

/** Reads one page; `steps` are the statements that were sent for it. */
const readPage = (
  self: Scenario,
  rows: ReadonlyArray<Row>,
  options: { readonly after: bigint; readonly bound: bigint; readonly sizes: PageWindow.RowSizes }
) => {
  let window = PageWindow.make(limitsOf(self, options.after), options.bound)
  let { sizes } = options
  let pageNanos = 0n
  const steps: Array<Step> = []
  let request = PageWindow.next(window, sizes)
  while (request !== undefined) {
    assert.isBelow(steps.length, 500, "the page ends")
    const answered = answer(self, rows, request)
    steps.push({ request, window, answer: answered })
    if (answered === "timeout") {
      window = PageWindow.timedOut(window, request)
      sizes = PageWindow.sizesTimedOut(sizes, request)
      pageNanos += BigInt(timeoutMillis) * 1_000_000n
    } else {
      pageNanos += answered.nanos
      window = PageWindow.answered(window, request, { ...answered, pageNanos })
      sizes = PageWindow.sizesAnswered(sizes, request, { ...answered, pageNanos })
    }
    request = PageWindow.next(window, sizes)
  }
  return { window, sizes, steps }
}

/** Reads all pages, past the events that are too large. */
const readAll = (self: Scenario) => {
  const rows = rowsOf(self)
  const bound = (rows[rows.length - 1]?.position ?? 0n) + 1n
  const pages: Array<ReturnType<typeof readPage> & { readonly after: bigint }> = []
  let sizes = PageWindow.rowSizes
  let after = 0n
  while (after < bound) {
    const page = readPage(self, rows, { after, bound, sizes })
    pages.push({ ...page, after })
    sizes = page.sizes
    const reached = page.window.tooLarge ?? page.window.position
    assert.isTrue(reached > after, "each page advances or names an event that is too large")
    after = reached
  }
  return { rows, bound, pages }
}

const arbitrary = { runs: 300, size: 60, seed: "page window" }

describe("PageWindow", () => {
  it.prop(
    "every page advances, and together the pages contain every event that can be received",
    scenario,
    (self) => {
      const { pages, rows } = readAll(self)
      for (const { after, window } of pages) {
        const between = rows.filter(({ position }) => position > after && position <= window.position)
        assert.strictEqual(window.events, between.length)
        if (window.tooLarge !== undefined) assert.strictEqual(window.events, 0)
      }
    },
    { arbitrary }
  )

  it.prop(
    "a page stays within its limits, except for its first event",
    scenario,
    (self) => {
      for (const { window } of readAll(self).pages) {
        assert.isAtMost(window.events, self.limit)
        if (window.events > 1) assert.isAtMost(window.bytes, self.bytes)
        assert.isAtMost(window.bytes, Math.max(self.bytes, self.largestEvent))
      }
    },
    { arbitrary }
  )

  it.prop(
    "every request reads at least one position within the bound and at least one row",
    scenario,
    (self) => {
      const { bound, pages } = readAll(self)
      for (const { request, window } of pages.flatMap(({ steps }) => steps)) {
        assert.strictEqual(request.after, window.position)
        assert.isTrue(request.after < request.upTo && request.upTo <= bound)
        assert.isTrue(self.isFiltered || request.upTo === bound)
        assert.isAtLeast(request.limit, 1)
        assert.isAtMost(request.limit, self.limit - window.events)
        assert.isAtLeast(request.bytes, 0)
        assert.isTrue(window.scan >= 500n)
      }
    },
    { arbitrary }
  )

  it.prop(
    "after a timeout the next request is smaller",
    scenario,
    (self) => {
      for (const { steps } of readAll(self).pages) {
        for (const [index, step] of steps.entries()) {
          const next = steps[index + 1]
          if (step.answer !== "timeout") continue
          assert.isDefined(next)
          const positions = ({ request }: Step) => request.upTo - request.after
          assert.isTrue(
            positions(next!) < positions(step) || next!.request.limit < step.request.limit || !next!.request.mayShrink
          )
          assert.isTrue(positions(next!) <= positions(step) && next!.request.limit <= step.request.limit)
        }
      }
    },
    { arbitrary }
  )

  it.prop("an event that can be received alone is always returned", scenario, (self) => {
    const { pages, rows } = readAll(self)
    const tooLarge = new Set(pages.map(({ window }) => window.tooLarge))
    for (const row of rows) {
      if (row.size <= self.largestEvent) assert.isFalse(tooLarge.has(row.position))
      else if (!row.isSmall) assert.isTrue(tooLarge.has(row.position))
    }
  }, { arbitrary })

  it("scans more while statements are fast, and fewer positions when they are slow", () => {
    const scans = (millis: number) => {
      let window = PageWindow.make(
        { after: 0n, events: 10, bytes: 1000, largestEvent: 1000, isFiltered: true },
        10_000_000n
      )
      return Array.from({ length: 3 }, () => {
        const request = PageWindow.next(window, PageWindow.rowSizes)!
        const nanos = BigInt(millis) * 1_000_000n
        window = PageWindow.answered(window, request, {
          events: 0,
          bytes: 0,
          last: undefined,
          oversized: undefined,
          nanos,
          pageNanos: 0n
        })
        return Number(request.upTo - request.after)
      })
    }
    assert.deepStrictEqual(scans(10), [20_000, 80_000, 320_000])
    assert.deepStrictEqual(scans(100), [20_000, 20_000, 20_000])
    assert.deepStrictEqual(scans(200), [20_000, 10_000, 5_000])
  })

  it("tries small rows again after 32 statements for rows of any size", () => {
    const window = PageWindow.make(
      { after: 0n, events: 10, bytes: 1000, largestEvent: 1000, isFiltered: false },
      1_000n
    )
    const nothing = { events: 0, bytes: 0, last: undefined, oversized: undefined, nanos: 50_000_000n, pageNanos: 0n }
    const kinds: Array<string> = []
    let sizes = PageWindow.rowSizes
    for (let statement = 0; statement < 34; statement++) {
      const request = PageWindow.next(window, sizes)!
      kinds.push(request.rows)
      sizes = PageWindow.sizesAnswered(sizes, request, { ...nothing, oversized: statement === 0 ? 1n : undefined })
    }
    assert.deepStrictEqual(kinds, ["small", ...Array.from({ length: 32 }, () => "any size"), "small"])
  })
})
