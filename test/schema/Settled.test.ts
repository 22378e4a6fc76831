import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as Settled from "../../src/schema/Settled.ts"

const holder = (id: string, pid?: number): Settled.Holder => ({ id, pid, application: "importer" })

/** One observation: the end of the run that begins at the settled position, the head, and the holders read later. */
const observe = (
  self: Settled.Settled,
  contiguous: bigint | undefined,
  head: bigint,
  holders: ReadonlyArray<string | Settled.Holder> = [],
  now = 0n
): Settled.Settled => {
  const runs = contiguous === undefined ? [] : [{ from: self.position, to: contiguous }]
  return Settled.prove(Settled.observe(self, { runs, head }), {
    head,
    holders: holders.map((one) => typeof one === "string" ? holder(one) : one),
    now
  })
}

/** The settled positions after consecutive observations. */
const positions = (
  ...observations: ReadonlyArray<readonly [contiguous: bigint | undefined, head: bigint, ...ids: ReadonlyArray<string>]>
) => {
  let self = Settled.unproved
  return observations.map(([contiguous, head, ...ids]) => {
    self = observe(self, contiguous, head, ids)
    return self.position
  })
}

describe("Settled", () => {
  it("follows positions without a gap while writers are open", () => {
    assert.deepStrictEqual(positions([3n, 3n], [5n, 9n, "3/1"], [7n, 9n, "3/1"]), [3n, 5n, 7n])
  })

  it("crosses a gap once all writers that could fill it have ended, without waiting for later ones", () => {
    assert.deepStrictEqual(
      positions(
        [undefined, 9n, "3/1", "4/1"],
        [undefined, 12n, "4/1", "5/1"],
        [undefined, 15n, "5/1", "6/1"],
        [undefined, 15n, "6/1"],
        [undefined, 15n]
      ),
      [0n, 0n, 9n, 12n, 15n]
    )
  })

  it("crosses a gap at once when no writer is open", () => {
    assert.deepStrictEqual(positions([3n, 9n]), [9n])
  })

  it("a transaction that continues as a prepared one still holds readers back", () => {
    assert.deepStrictEqual(
      positions(
        [undefined, 9n, "3/1", "4/1"],
        [undefined, 9n, "4/0", "3/1"],
        [undefined, 9n, "-1/77"],
        // Transactions prepared later cannot have been among the first holders.
        [undefined, 20n, "-1/77", "-1/80"],
        [undefined, 20n, "-1/80"]
      ),
      [0n, 0n, 0n, 0n, 9n]
    )
  })

  it("keeps the time since a writer was first observed when it continues as a prepared transaction", () => {
    const first = observe(Settled.unproved, undefined, 9n, [holder("3/1", 5)], 1n)
    const second = observe(first, undefined, 9n, [holder("3/1"), holder("9/9")], 2n)
    assert.deepStrictEqual([...second.writers.values()], [
      { id: "3/1", pid: undefined, application: "importer", since: 1n }
    ])
    assert.strictEqual(observe(second, undefined, 9n).writers.size, 0)
  })

  it("a transaction that seemed to have ended and is then found prepared still holds readers back", () => {
    let self = Settled.unproved
    for (const one of [holder("3/5", 1), holder("3/0", 1), holder("3/5")]) self = observe(self, undefined, 5n, [one])
    assert.strictEqual(self.position, 0n)
    assert.strictEqual(observe(self, undefined, 5n).position, 5n)
  })

  it("keeps a proof while no gap is open, because the event at its head may have been deleted", () => {
    const gap = observe(Settled.unproved, 4n, 9n, ["3/1"])
    assert.isTrue(Settled.needsHolders(gap, 4n))
    const closed = observe(gap, undefined, 4n, ["3/1"])
    assert.strictEqual(closed.position, 4n)
    assert.strictEqual(observe(closed, undefined, 4n).position, 9n)
    assert.isFalse(Settled.needsHolders(observe(closed, undefined, 4n), 4n))
  })

  it("lets only readers inside a run follow it", () => {
    const apart = Settled.observe(Settled.unproved, {
      runs: [{ from: 0n, to: 3n }, { from: 5n, to: 8n }, { from: 8n, to: 8n }, { from: 20n, to: 30n }],
      head: 40n
    })
    const readable = (self: Settled.Settled, afters: ReadonlyArray<bigint>) =>
      afters.map((after) => Settled.readableUpTo(self, after))
    assert.deepStrictEqual(readable(apart, [0n, 2n, 3n, 4n, 5n, 7n, 8n]), [3n, 3n, 3n, 3n, 8n, 8n, 3n])
    assert.strictEqual(Settled.highest(apart), 30n)
    const longer = Settled.observe(apart, { runs: [{ from: 8n, to: 12n }], head: 40n })
    assert.deepStrictEqual(readable(longer, [5n, 12n]), [12n, 3n])
    // The gap before it is closed, so the run becomes part of the settled position.
    const closed = Settled.observe(longer, { runs: [{ from: 3n, to: 5n }], head: 40n })
    assert.strictEqual(closed.position, 12n)
    const proved = Settled.prove(closed, { head: 25n, holders: [], now: 0n })
    assert.strictEqual(proved.position, 30n)
    assert.deepStrictEqual(proved.runs, [])
  })

  it.prop(
    "lets no reader pass a position that is committed later, wherever it reads from",
    { steps: Schema.Array(Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum: 0, maximum: 999_999 })))) },
    ({ steps }) => {
      let self = Settled.unproved
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
      let observed: { readonly runs: ReadonlyArray<Settled.Run>; readonly head: bigint } | undefined
      for (const [index, step] of steps.entries()) {
        const ids = [...open.keys()]
        const id = ids[step % Math.max(1, ids.length)]
        const way = (step >> 4) % 9
        if (way < 2 || (id === undefined && way < 5)) draw(`1/${index + 1}`)
        else if (way === 2) draw(id!)
        else if (way < 5) {
          for (const position of way === 3 ? open.get(id!)! : []) {
            committed.add(position)
            assert.isFalse(passed.has(position), `position ${position} was passed before it was committed`)
          }
          open.delete(id!)
        } else if (way === 8) {
          committed.delete(Math.max(...committed))
        } else if (observed === undefined) {
          // What one statement reads, and the holders that a later statement reads.
          const starts = [Number(self.position), step % (last + 2), (step >> 8) % (last + 2)]
          observed = { runs: starts.map(runFrom), head: BigInt(Math.max(0, ...committed)) }
        } else {
          const { head } = observed
          self = Settled.observe(self, observed)
          const holders = Settled.needsHolders(self, head) ? [...open.keys()].map((id) => holder(id)) : []
          self = Settled.prove(self, { head, holders, now: 0n })
          observed = undefined
          for (let after = 0; after <= last; after++) {
            const to = Number(Settled.readableUpTo(self, BigInt(after)))
            for (let position = after + 1; position <= to; position++) {
              if (!committed.has(position)) passed.add(position)
            }
          }
        }
      }
    },
    { arbitrary: { runs: 500, size: 120, seed: "settled" } }
  )
})
