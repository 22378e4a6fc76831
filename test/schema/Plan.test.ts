import { assert, describe, it } from "@effect/vitest"
import { Arbitrary, Result, Schema } from "effect"
import * as Checkpoint from "../../src/schema/Checkpoint.ts"
import {
  FilterChanged,
  OrderingChanged,
  PartitionKeyChanged,
  ProjectionInOtherReplicaSet
} from "../../src/schema/Errors.ts"
import * as EventFilter from "../../src/schema/EventFilter.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import * as Plan from "../../src/schema/Plan.ts"
import * as RangePlan from "../../src/schema/RangePlan.ts"
import * as World from "./PlanWorld.ts"

const int = (maximum: number) => Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum: 0, maximum })))

const events = [
  "join",
  "join",
  "leave",
  "die",
  "notice",
  "freeze",
  "thaw",
  "decide",
  "decide",
  "decide",
  "decide",
  "work",
  "rest",
  "advance",
  "advance",
  "lock",
  "release",
  "halt"
] as const

const Step = Schema.Struct({ event: Schema.Literals(events), a: int(5), b: int(7), hash: int(2 ** 32 - 1) })

const history = Arbitrary.array(Arbitrary.schema(Step), { maxLength: 120 })

const subset = (mask: number): ReadonlyArray<string> => {
  const chosen = World.projectionNames.filter((_, index) => (mask & (1 << index)) !== 0)
  return chosen.length === 0 ? World.projectionNames : chosen
}

const farFuture = 3_600_000

/** Which projections are ordered globally: none, `stock` by all workers, or also all projections by some workers. */
type Mode = "none" | "stock" | "mixed"

/** The filter of a version; every version replaces the filters of all earlier ones, or by mistake only some of them. */
const filtersOf = (version: number, forgetsFirst = false) => ({
  filter: `filter ${version}`,
  replacesFilter: [0, 1, 2].filter((other) => other < version && !(forgetsFirst && other === 0)).map((other) =>
    `filter ${other}`
  )
})

/** Applies one step of a history to the world. */
const step = (world: World.World, { a, b, event, hash }: typeof Step.Type, mode: Mode): void => {
  world.now += 1
  const living = world.workers.filter((worker) => !worker.dead)
  const worker = living.length === 0 ? undefined : living[a % living.length]!
  switch (event) {
    case "join": {
      const replicaSet = hash % 8 === 0 ? "other" : "main"
      const workerId = `w${a}`
      if (living.some(({ registration: one }) => one.workerId === workerId && one.replicaSet === replicaSet)) return
      World.join(world, {
        workerId,
        replicaSet,
        projections: subset(b),
        ...filtersOf(hash % 7 === 0 ? hash % 3 : 0, hash % 5 === 0),
        startPosition: BigInt(b),
        concurrency: 1 + hash % 3,
        global: mode === "mixed" && hash % 3 === 0 ? World.projectionNames : mode === "none" ? [] : ["stock"]
      })
      return
    }
    case "leave": {
      if (worker === undefined) return
      if (b < 6) worker.activeKeys.clear()
      // A row that is still active when the worker stops waiting is locked by its batch.
      for (const key of worker.activeKeys) world.locked.add(key)
      World.decide(world, worker, { leaving: true })
      return
    }
    case "die": {
      if (worker === undefined) return
      worker.dead = true
      if (b % 2 === 0) { for (const key of worker.activeKeys) world.locked.add(key) }
      return
    }
    case "notice": {
      for (const one of world.workers) {
        if (!one.dead) continue
        if (b % 2 === 0) one.silentForMillis = farFuture
        else one.absentForMillis = World.rules.presenceGraceMillis
      }
      return
    }
    case "freeze": {
      if (worker !== undefined) worker.silentForMillis = farFuture
      return
    }
    case "thaw": {
      if (worker !== undefined) worker.silentForMillis = 0
      return
    }
    case "decide": {
      if (worker === undefined) return
      if (b % 4 !== 0) World.closeUnassigned(world, worker)
      const result = World.attempt(world, worker, { observerAgeMillis: b === 1 ? 0 : World.oldObserver })
      if (Result.isSuccess(result)) return
      if (result.failure._tag === "FilterChanged" && hash % 2 === 0) {
        const { projection } = result.failure
        worker.carried = worker.carried.map((one) => one.name === projection ? { ...one, givenUp: true } : one)
        return
      }
      worker.activeKeys.clear()
      World.decide(world, worker, { leaving: true })
      world.workers = world.workers.filter((one) => one !== worker)
      return
    }
    case "work": {
      if (worker !== undefined) World.workOnAll(world, worker)
      return
    }
    case "rest": {
      if (worker !== undefined) { for (const key of [...worker.activeKeys].slice(b % 3)) worker.activeKeys.delete(key) }
      return
    }
    case "advance": {
      for (const row of worker === undefined ? [] : World.heldBy(world, worker)) {
        if (!worker!.activeKeys.has(Checkpoint.key(row))) continue
        world.rows.set(Checkpoint.key(row), { ...row, position: row.position + BigInt(b % 3) })
      }
      return
    }
    case "lock": {
      const keys = [...world.rows.keys()]
      if (keys.length > 0) world.locked.add(keys[hash % keys.length]!)
      return
    }
    case "release": {
      world.locked.clear()
      return
    }
    case "halt": {
      for (const row of worker === undefined ? [] : World.heldBy(world, worker)) {
        if (!worker!.activeKeys.has(Checkpoint.key(row)) || !HashRange.includes(row.range, hash)) continue
        worker!.activeKeys.delete(Checkpoint.key(row))
        world.rows.set(Checkpoint.key(row), {
          ...row,
          halt: {
            since: new Date(world.now),
            incarnation: row.fence.incarnation,
            error: "broken",
            position: row.position + 1n,
            eventId: `e-${hash}`,
            hash
          }
        })
      }
    }
  }
}

/**
 * Ends all churn: dead workers are detected, no row is locked, and each worker that could make no plan is dead or has
 * given up the projection concerned. Returns the live workers.
 */
const calm = (world: World.World): ReadonlyArray<World.WorldWorker> => {
  /** The filters under which the projection has, or will have, progress. */
  const recorded = (projection: string) => [
    ...World.rowsOf(world, projection).map(({ filter }) => filter),
    ...world.workers.filter(({ registration }) => registration.replicaSet === "main").flatMap(({ carried }) =>
      carried.filter(({ name }) => name === projection).map(({ filter }) => filter)
    )
  ]
  world.now += 1
  world.locked.clear()
  for (const worker of world.workers) {
    const { registration } = worker
    if (registration.replicaSet !== "main") worker.dead = true
    const isRefused = ({ filter, name, replacesFilter = [] }: Plan.Carried) =>
      recorded(name).some((other) => other !== filter && !replacesFilter.includes(other))
    if (worker.carried.some(isRefused)) {
      if (registration.incarnation % 2n === 0n) worker.dead = true
      else worker.carried = worker.carried.map((one) => ({ ...one, givenUp: isRefused(one) }))
    }
    worker.silentForMillis = worker.dead ? farFuture : 0
    worker.absentForMillis = undefined
  }
  if (world.workers.every(({ dead }) => dead)) {
    World.join(world, {
      workerId: "w9",
      projections: World.projectionNames,
      ...filtersOf(2),
      global: ["stock"]
    })
  }
  return world.workers.filter(({ dead }) => !dead)
}

const rotated = <A>(values: ReadonlyArray<A>, by: number): ReadonlyArray<A> => [
  ...values.slice(by % values.length),
  ...values.slice(0, by % values.length)
]

const live = (steps: ReadonlyArray<typeof Step.Type>, mode: Mode): World.World => {
  const world = World.make()
  for (const one of steps) step(world, one, mode)
  return world
}

const options = (seed: string, runs: number) => ({
  arbitrary: { runs, size: 120, seed, maxShrinks: 3000 }
})

describe("Plan", () => {
  it.prop(
    "under any churn rows tile the space, positions are kept and decisions change only permitted rows",
    { history, mode: Schema.Literals(["none", "stock", "mixed"]) },
    ({ history, mode }) => {
      const world = live(history, mode)
      const borders = new Set<number>()
      // A worker divides its share into up to three parts.
      for (let total = 1; total <= 3 * world.crowd; total++) {
        for (let key = 0; key < total; key++) borders.add(HashRange.partition(key, total).start)
      }
      for (const row of world.rows.values()) {
        assert.isTrue(
          borders.has(row.range.start),
          `${row.range.start} is not a border of up to ${3 * world.crowd} partitions`
        )
      }
    },
    options("churn", 400)
  )

  it.prop(
    "after churn, decisions bring every hash to its owner in two rounds, three after a projection is given up",
    { history, rotation: int(5), lazy: Schema.Boolean },
    ({ history, lazy, rotation }) => {
      const world = live(history, "stock")
      const uncarried = new Map(world.rows)
      const workers = calm(world)
      const order = (round: number) => rotated(lazy ? workers.toReversed() : workers, rotation + round)
      // The other workers read that a projection was given up only after that worker's own decision.
      const givesUp = workers.some(({ carried }) => carried.some((one) => one.givenUp === true))
      assert.isAtMost(World.converge(world, { idle: false, order }), givesUp ? 3 : 2)

      const generation = world.generations.get("main")!
      assert.strictEqual(generation.members.length, workers.length)
      for (const worker of workers) {
        const decision = World.decide(world, worker)
        assert.isTrue(Plan.isEmpty(decision))
        assert.isTrue(decision.isComplete)
      }
      for (const projection of World.projectionNames) {
        const carriers = workers.filter(({ registered }) => registered.includes(projection))
        const rows = World.rowsOf(world, projection)
        if (
          carriers.length === 0 && workers.some(({ registration }) => registration.projections.includes(projection))
        ) {
          // No worker holds rows of a projection that all of its carriers have given up.
          for (const row of rows) {
            assert.isFalse(workers.some((worker) => Checkpoint.isHeldBy(row, worker.registration)))
          }
          continue
        }
        if (carriers.length === 0) {
          assert.deepStrictEqual(rows, World.rowsOf({ ...world, rows: uncarried }, projection))
          continue
        }
        assert.isTrue(HashRange.tiles(rows.map(({ range }) => range)))
        for (const row of rows) {
          const owner = carriers.find((worker) => Checkpoint.isHeldBy(row, worker.registration))
          assert.isDefined(owner, "no live carrier holds the row")
          const parts = World.partsOf(generation, projection, owner!)
          assert.isTrue(parts.some((part) => HashRange.contains(part, row.range)), "not in one part of its share")
        }
      }
    },
    options("convergence", 400)
  )

  it.prop(
    "when all rows have the same position and none is active, each carrier ends with one row per part",
    { history, rotation: int(5) },
    ({ history, rotation }) => {
      const world = live(history, "stock")
      const workers = calm(world)
      for (const [key, row] of world.rows) world.rows.set(key, { ...row, position: 7n, halt: undefined })
      World.converge(world, { idle: true, order: (round) => rotated(workers, rotation + round) })
      for (const projection of World.projectionNames) {
        const carriers = workers.filter(({ registered }) => registered.includes(projection))
        if (carriers.length === 0) continue
        const generation = world.generations.get("main")
        assert.deepStrictEqual(
          World.rowsOf(world, projection).map(({ range }) => range),
          carriers.flatMap((carrier) => World.partsOf(generation, projection, carrier))
            .toSorted((a, b) => a.start - b.start)
        )
      }
    },
    options("merging", 300)
  )

  it.prop(
    "a deploy that changes the concurrency of one worker leaves the ranges of the others untouched",
    { others: int(4), before: int(4), after: int(4), position: int(2) },
    ({ after, before, others, position }) => {
      const world = World.make()
      const start = (workerId: string, concurrency: number) =>
        World.join(world, { workerId, projections: ["orders"], concurrency: concurrency + 1 })
      const rest = Array.from({ length: others }, (_, index) => start(`w${index}`, index % 3))
      const old = start("deployed", before)
      const order = () => world.workers
      World.converge(world, { idle: true, order })
      for (const [key, row] of world.rows) {
        world.rows.set(key, { ...row, position: BigInt(row.range.start % (position + 1)) })
      }
      const untouched = rest.flatMap((worker) => World.heldBy(world, worker))
      const positions = World.rowsOf(world, "orders")
      old.silentForMillis = farFuture
      const deployed = start("deployed", after)
      for (const worker of rest) World.workOnAll(world, worker)
      World.converge(world, { idle: false, order: () => [deployed, ...rest] })
      assert.deepStrictEqual(rest.flatMap((worker) => World.heldBy(world, worker)), untouched)
      for (const row of World.rowsOf(world, "orders")) {
        assert.strictEqual(row.position, World.rowAt(positions, row.range.start).position)
      }
      const parts = World.partsOf(world.generations.get("main"), "orders", deployed)
      assert.lengthOf(parts, after + 1)
      assert.isTrue(World.heldBy(world, deployed).every(({ range }) => RangePlan.isInPart(parts, range)))
    },
    options("deploy", 300)
  )

  describe("global order", () => {
    /** A projection that two workers have divided, and a worker that orders it globally. */
    const divided = (change: (row: Checkpoint.Checkpoint) => Checkpoint.Checkpoint = (row) => row) => {
      const world = World.make()
      const former = ["w1", "w2"].map((workerId) => World.join(world, { workerId, projections: ["orders"] }))
      World.converge(world, { idle: true, order: () => former })
      for (const [key, row] of world.rows) world.rows.set(key, change(row))
      const start = () => World.join(world, { workerId: "new", projections: ["orders"], global: ["orders"] })
      return { world, former, start }
    }
    const stop = (world: World.World, workers: ReadonlyArray<World.WorldWorker>) => {
      for (const worker of workers) World.decide(world, worker, { leaving: true })
    }

    it("is refused while a worker owns one of several ranges", () => {
      const { former, start, world } = divided()
      const error = World.errorOf(world, start())
      assert(error instanceof OrderingChanged)
      assert.match(
        error.message,
        /worker "w1" runs it with ordering "aggregate" and owns one of its 2 ranges\. Stop all/
      )
      stop(world, former)
    })

    it("is refused if the ranges are at different positions", () => {
      const { former, start, world } = divided((row) => ({ ...row, position: row.range.start === 0 ? 3n : 5n }))
      stop(world, former)
      const error = World.errorOf(world, start())
      assert(error instanceof OrderingChanged)
      assert.match(error.message, /into 2 ranges, which are at positions from 3 to 5\. Let the former version catch up/)
    })

    it("is refused if one of the ranges is halted", () => {
      const halt = { since: new Date(0), error: "", position: 9n, eventId: "e", hash: 0, incarnation: 9n }
      const { former, start, world } = divided((row) => row.range.start === 0 ? { ...row, halt } : row)
      stop(world, former)
      const error = World.errorOf(world, start())
      assert(error instanceof OrderingChanged)
      assert.match(error.message, /at position 0, and one of them is halted/)
    })

    it("begins with one decision that claims and merges all ranges at the same position", () => {
      const { former, start, world } = divided((row) => ({ ...row, position: 7n }))
      stop(world, former)
      const worker = start()
      const decision = World.decide(world, worker)
      assert.isTrue(decision.isComplete)
      assert.deepStrictEqual(decision.ownedRows.map(({ position, range }) => [range, position]), [[
        HashRange.whole,
        7n
      ]])
    })

    it("claims nothing until a silent worker is evicted and no row is locked", () => {
      const { former, start, world } = divided()
      former[0]!.silentForMillis = farFuture
      former[1]!.dead = true
      former[1]!.absentForMillis = World.rules.presenceGraceMillis - 1
      const worker = start()
      const waiting = World.decide(world, worker, { observerAgeMillis: 0 })
      assert.deepStrictEqual([waiting.ownedRows, waiting.isComplete], [[], false])
      former[1]!.silentForMillis = farFuture
      world.locked.add([...world.rows.keys()][0]!)
      const locked = World.decide(world, worker)
      assert.deepStrictEqual([locked.ownedRows, locked.isComplete], [[], false])
      assert.isDefined(locked.recheckAfterMillis)
      world.locked.clear()
      assert.isTrue(World.decide(world, worker).isComplete)
    })

    it("ends when workers divide the projection again", () => {
      const { former, start, world } = divided()
      stop(world, former)
      const worker = start()
      World.decide(world, worker)
      stop(world, [worker])
      const later = ["w1", "w2"].map((workerId) => World.join(world, { workerId, projections: ["orders"] }))
      World.converge(world, { idle: true, order: () => later })
      assert.lengthOf(World.rowsOf(world, "orders"), 2)
    })
  })

  describe("merging", () => {
    const third = (key: number) => HashRange.partition(key, 3)

    const inThree = (change: (row: Checkpoint.Checkpoint, key: number) => Checkpoint.Checkpoint) => {
      const world = World.make()
      const worker = World.join(world, { workerId: "w1", projections: ["orders"] })
      World.decide(world, worker)
      const [whole] = World.rowsOf(world, "orders")
      for (const key of [0, 1, 2]) {
        const row = change({ ...whole!, range: third(key) }, key)
        world.rows.set(Checkpoint.key(row), row)
      }
      return { world, worker }
    }
    const ranges = (world: World.World) => World.rowsOf(world, "orders").map(({ range }) => range)

    it("merges adjacent rows at the same position, including free ones", () => {
      const { worker, world } = inThree((row, key) => key === 1 ? { ...row, fence: undefined } : row)
      const decision = World.decide(world, worker)
      assert.deepStrictEqual(ranges(world), [HashRange.whole])
      assert.sameMembers(decision.remove.map(Checkpoint.key), [1, 2].map((key) => `orders@${third(key).start}`))
    })

    it("does not merge across an active or locked row", () => {
      for (const state of ["active", "locked"] as const) {
        const { worker, world } = inThree((row) => row)
        const middle = `orders@${third(1).start}`
        if (state === "active") worker.activeKeys.add(middle)
        else world.locked.add(middle)
        World.decide(world, worker)
        assert.deepStrictEqual(ranges(world), [0, 1, 2].map(third))
      }
    })

    it("does not merge rows at different positions", () => {
      const { worker, world } = inThree((row, key) => ({ ...row, position: key === 2 ? 1n : 0n }))
      World.decide(world, worker)
      assert.deepStrictEqual(ranges(world), [{ start: 0, end: third(1).end }, third(2)])
    })

    it("does not merge a halted row with either neighbour", () => {
      const broken = { since: new Date(5_000), error: "broken", position: 1n, eventId: "e", hash: third(1).start }
      const { worker, world } = inThree((row, key) =>
        key === 1 ? { ...row, halt: { ...broken, incarnation: row.fence!.incarnation } } : row
      )
      World.decide(world, worker)
      assert.deepStrictEqual(ranges(world), [0, 1, 2].map(third))
    })

    it("does not merge rows advanced under different filters", () => {
      const { worker, world } = inThree((row, key) => ({ ...row, filter: key === 2 ? "old" : "all" }))
      World.decide(world, worker, { leaving: true })
      assert.deepStrictEqual(ranges(world), [{ start: 0, end: third(1).end }, third(2)])
    })
  })

  describe("rechecking", () => {
    const Other = Schema.Struct({
      silent: int(40_000),
      absent: Schema.Union([int(150), Schema.Undefined]),
      member: Schema.Boolean
    })

    const at = (
      others: ReadonlyArray<typeof Other.Type>,
      observerAgeMillis: number,
      later: number
    ): Plan.Plan => {
      const world = World.make()
      const self = World.join(world, { workerId: "self", projections: ["orders"] })
      const all = others.map((_, index) => World.join(world, { workerId: `w${index}`, projections: ["orders"] }))
      const members = [self, ...all.filter((_, index) => others[index]!.member)].map((one) => one.registration)
      world.generations.set("main", { replicaSet: "main", generationId: 1n, members })
      others.forEach(({ absent, silent }, index) => {
        all[index]!.silentForMillis = silent + later
        all[index]!.absentForMillis = absent === undefined ? undefined : absent + later
      })
      const view = World.viewFor(world, self, observerAgeMillis + later)
      return Result.getOrThrow(Plan.make({ ...view, lockedKeys: new Set(world.rows.keys()) }, World.requestOf(self)))
    }

    const others = Arbitrary.array(Arbitrary.schema(Other), { maxLength: 4 })

    it.prop(
      "rechecks exactly when the next worker's timeout expires",
      { others, age: int(12_000), later: int(50_000) },
      ({ age, later, others }) => {
        const now = at(others, age, 0)
        const then = at(others, age, later)
        const dead = (decision: Plan.Plan) => decision.evict.map(({ workerId }) => workerId)
        const recheck = now.recheckAfterMillis
        if (dead(now).join() !== dead(then).join()) assert.isAtMost(recheck!, later)
        if (recheck === undefined) return assert.lengthOf(now.evict, others.length)
        assert.isAbove(dead(at(others, age, recheck)).length, dead(now).length)
      },
      options("time", 2000)
    )

    it("does not recheck for a locked row in another worker's share", () => {
      const world = World.make()
      const first = World.join(world, { workerId: "w1", projections: ["orders"] })
      World.decide(world, first)
      const second = World.join(world, { workerId: "w2", projections: ["orders"] })
      World.decide(world, second)
      World.decide(world, first)
      const [left, right] = World.rowsOf(world, "orders")
      // As a worker without a share leaves it.
      world.rows.set(Checkpoint.key(right!), { ...right!, fence: undefined })
      world.locked.add(Checkpoint.key(right!))
      const waiting = World.decide(world, second).recheckAfterMillis!
      assert.isAtMost(waiting, 10)
      assert.isAbove(World.decide(world, first).recheckAfterMillis!, 10)
      assert.isTrue(Checkpoint.isHeldBy(left!, first.registration))
    })
  })

  describe("errors", () => {
    it("an evicted worker changes nothing", () => {
      const world = World.make()
      const frozen = World.join(world, { workerId: "w1", projections: ["orders"] })
      World.decide(world, frozen)
      const other = World.join(world, { workerId: "w2", projections: ["orders"] })
      frozen.silentForMillis = farFuture
      assert.deepStrictEqual(World.decide(world, other).evict.map(({ workerId }) => workerId), ["w1"])
      frozen.silentForMillis = 0
      assert.strictEqual(World.errorOf(world, frozen)._tag, "WorkerEvicted")
      assert.strictEqual(World.errorOf(world, frozen, { leaving: true })._tag, "WorkerEvicted")
    })

    it("a new incarnation under the same id claims what the old one held, at the same partition key", () => {
      const world = World.make()
      const old = World.join(world, { workerId: "w1", projections: ["orders"] })
      World.decide(world, old)
      const young = World.join(world, { workerId: "w1", projections: ["orders"] })
      const decision = World.decide(world, young)
      assert.isTrue(decision.isComplete)
      assert.strictEqual(decision.form!.generationId, 2n)
      assert.strictEqual(World.errorOf(world, old)._tag, "WorkerEvicted")
    })

    it("a changed filter that is not replaced is an error, and nothing is written", () => {
      const world = World.make()
      const old = World.join(world, { workerId: "w1", projections: ["orders"], filter: "old" })
      World.decide(world, old)
      const young = World.join(world, { workerId: "w2", projections: ["orders"], filter: "new" })
      assert.deepStrictEqual(
        World.errorOf(world, young),
        new FilterChanged({ projection: "orders", recorded: "old", given: "new" })
      )
    })

    it("the error names all other recorded filters, because all of them must be replaced", () => {
      const world = World.make()
      const workers = ["w1", "w2", "w3"].map((workerId) => World.join(world, { workerId, projections: ["orders"] }))
      World.converge(world, { idle: true, order: () => workers })
      const recorded = ["first", "second", "new"]
      for (const [index, row] of World.rowsOf(world, "orders").entries()) {
        world.rows.set(Checkpoint.key(row), { ...row, filter: recorded[index]! })
      }
      const rest = { workerId: "w1", projections: ["orders"], filter: "new" }
      const errorOf = (replacesFilter: ReadonlyArray<string>) => {
        const error = World.errorOf(world, World.join(world, { ...rest, replacesFilter }))
        return error._tag === "FilterChanged" ? [error.recorded, ...error.alsoRecorded ?? []].toSorted() : error
      }
      assert.deepStrictEqual(errorOf([]), ["first", "second"])
      assert.deepStrictEqual(errorOf(["first", "other"]), ["first", "second"])
      assert.isTrue(Result.isSuccess(
        World.attempt(world, World.join(world, { ...rest, replacesFilter: ["second", "first"] }))
      ))
    })

    it("a changed partition key is an error, whatever filters are replaced", () => {
      const world = World.make()
      const recorded = EventFilter.canonical({ partitionBy: "correlationId" })
      World.decide(world, World.join(world, { workerId: "w1", projections: ["orders"], filter: recorded }))
      for (const partitionBy of ["aggregateId", "boundedContext", { metadata: "correlationId" }] as const) {
        const given = EventFilter.canonical({ eventTypes: ["Added"], partitionBy })
        const young = World.join(world, {
          workerId: "w2",
          projections: ["orders"],
          filter: given,
          replacesFilter: [EventFilter.canonical({ partitionBy })]
        })
        assert.deepStrictEqual(
          World.errorOf(world, young),
          new PartitionKeyChanged({ projection: "orders", recorded, given })
        )
      }
    })

    it("a worker that gives a projection up keeps its others, and the newer worker claims all of its rows", () => {
      const world = World.make()
      const old = World.join(world, { workerId: "w1", projections: ["orders", "users"], filter: "old" })
      World.decide(world, old)
      const young = World.join(world, {
        workerId: "w2",
        projections: ["orders", "users"],
        filter: "old",
        replacesFilter: ["old"]
      })
      young.carried = young.carried.map((one) => one.name === "orders" ? { ...one, filter: "new" } : one)
      World.converge(world, { idle: true, order: () => [young] })
      World.decide(world, old)
      World.decide(world, young)
      assert.strictEqual(World.errorOf(world, old)._tag, "FilterChanged")
      old.carried = old.carried.map((one) => one.name === "orders" ? { ...one, givenUp: true } : one)
      // An active row stays with the old worker, although the next generation assigns it to the new one.
      old.activeKeys.add(Checkpoint.key(World.heldBy(world, old).find((row) => row.projection === "orders")!))
      const given = World.decide(world, old)
      assert.deepStrictEqual(given.carry, ["users"])
      assert.deepStrictEqual(given.form?.members.map((member) => member.projections), [["users"], ["orders", "users"]])
      assert.isFalse(given.isComplete)
      old.activeKeys.clear()
      assert.isTrue(World.decide(world, old).isComplete)
      assert.isTrue(World.decide(world, young).isComplete)
      assert.deepStrictEqual(
        World.rowsOf(world, "orders").map(({ fence, filter }) => [fence?.workerId, filter]),
        [["w2", "new"]]
      )
      assert.deepStrictEqual(World.rowsOf(world, "users").map(({ fence }) => fence?.workerId), ["w1", "w2"])
      assert.isTrue(Plan.isEmpty(World.decide(world, old)))
      assert.isTrue(Plan.isEmpty(World.decide(world, young)))
    })

    it("a worker that has given up all of its projections is a member without a share", () => {
      const world = World.make()
      const old = World.join(world, { workerId: "w1", projections: ["orders"], filter: "old" })
      World.decide(world, old)
      for (const [key, row] of world.rows) world.rows.set(key, { ...row, filter: "new" })
      old.carried = old.carried.map((one) => ({ ...one, givenUp: true }))
      const { form, isComplete: settled } = World.decide(world, old)
      assert.deepStrictEqual(form?.members.map((member) => member.projections), [[]])
      assert.isTrue(settled)
      assert.isUndefined(World.rowsOf(world, "orders")[0]!.fence)
    })

    it("a filter continues from the position of the one that it replaces", () => {
      const world = World.make()
      World.decide(
        world,
        World.join(world, { workerId: "w1", projections: ["orders"], filter: "old", startPosition: 5n })
      )
      const young = World.join(world, {
        workerId: "w1",
        projections: ["orders"],
        filter: "new",
        replacesFilter: ["older", "old"]
      })
      const [row] = World.decide(world, young).ownedRows
      assert.strictEqual(row!.filter, "new")
      assert.strictEqual(row!.position, 5n)
    })

    it("a projection of another replica set is refused while a live worker there carries it, then claimed", () => {
      const world = World.make()
      const first = World.join(world, { workerId: "w1", replicaSet: "other", projections: ["orders"] })
      World.decide(world, first)
      const second = World.join(world, { workerId: "w1", projections: ["orders"] })
      assert.deepStrictEqual(
        World.errorOf(world, second),
        new ProjectionInOtherReplicaSet({
          projection: "orders",
          replicaSet: "main",
          otherReplicaSet: "other",
          workerId: "w1"
        })
      )
      first.silentForMillis = farFuture
      assert.isTrue(World.decide(world, second).isComplete)
    })

    it("a new session waits for a stale worker of another replica set instead of failing", () => {
      const world = World.make()
      const silent = World.join(world, { workerId: "w1", replicaSet: "other", projections: ["orders"] })
      World.decide(world, silent)
      const young = World.join(world, { workerId: "w2", projections: ["orders"] })
      silent.silentForMillis = farFuture
      const waiting = World.decide(world, young, { observerAgeMillis: 0 })
      assert.deepStrictEqual([waiting.ownedRows, waiting.isComplete], [[], false])
      assert.deepStrictEqual(World.rowsOf(world, "orders").map((row) => row.replicaSet), ["other"])
      assert.strictEqual(waiting.recheckAfterMillis, World.oldObserver)

      silent.silentForMillis = 0
      assert.strictEqual(World.errorOf(world, young)._tag, "ProjectionInOtherReplicaSet")
      silent.silentForMillis = farFuture
      assert.isTrue(World.decide(world, young).isComplete)
    })

    it("a carrier in a third replica set does not prevent the claim", () => {
      const world = World.make()
      const gone = World.join(world, { workerId: "w1", replicaSet: "other", projections: ["orders"] })
      World.decide(world, gone)
      gone.silentForMillis = farFuture
      const third = World.join(world, { workerId: "w1", replicaSet: "third", projections: ["orders"] })
      assert.isTrue(World.decide(world, World.join(world, { workerId: "w1", projections: ["orders"] })).isComplete)
      assert.strictEqual(World.errorOf(world, third)._tag, "ProjectionInOtherReplicaSet")
    })

    it("one decision claims a whole projection, so only a worker returning to the old replica set is refused", () => {
      const world = World.make()
      const gone = World.join(world, { workerId: "w0", replicaSet: "other", projections: ["orders"] })
      World.decide(world, gone)
      gone.silentForMillis = farFuture
      const claimers = ["w1", "w2"].map((workerId) => World.join(world, { workerId, projections: ["orders"] }))
      World.decide(world, claimers[0]!)
      const back = World.join(world, { workerId: "w0", replicaSet: "other", projections: ["orders"] })
      assert.strictEqual(World.errorOf(world, back)._tag, "ProjectionInOtherReplicaSet")
      for (const worker of claimers) World.decide(world, worker)
    })

    it("a range that returns from another replica set has a new fence, because its earlier owner may still work on it", () => {
      const world = World.make()
      const workers = ["w1", "w2"].map((workerId) => World.join(world, { workerId, projections: ["orders"] }))
      for (const worker of workers) World.decide(world, worker)
      const before = World.heldBy(world, workers[1]!)
      World.workOnAll(world, workers[1]!)
      for (const worker of workers) worker.silentForMillis = farFuture
      const other = World.join(world, { workerId: "w1", replicaSet: "other", projections: ["orders"] })
      World.decide(world, other)
      World.decide(world, other, { leaving: true })

      for (const worker of workers) worker.silentForMillis = 0
      const { form } = World.decide(world, workers[0]!)
      assert.strictEqual(form?.generationId, before[0]!.fence.generationId + 1n)
      assert.deepStrictEqual(
        World.heldBy(world, workers[1]!),
        before.map((row) => ({ ...row, fence: { ...row.fence, generationId: row.fence.generationId + 1n } }))
      )
    })

    it("claims nothing while one row is still locked, and rechecks soon", () => {
      const world = World.make()
      const gone = ["w1", "w2"].map((workerId) =>
        World.join(world, { workerId, replicaSet: "other", projections: ["orders"] })
      )
      for (const worker of gone) World.decide(world, worker)
      for (const worker of gone) worker.silentForMillis = farFuture
      for (const [claimer, locked] of [["w1", HashRange.partition(1, 2)], ["w2", HashRange.partition(0, 2)]] as const) {
        world.locked.clear()
        world.locked.add(Checkpoint.key({ projection: "orders", range: locked }))
        const worker = World.join(world, { workerId: claimer, projections: ["orders"] })
        const decision = World.decide(world, worker)
        assert.lengthOf(decision.ownedRows, 0)
        assert.isAtMost(decision.recheckAfterMillis!, 10)
      }
    })

    it("a leaving worker releases its rows despite an error", () => {
      const world = World.make()
      const leaver = World.join(world, { workerId: "w1", projections: ["orders"], filter: "old" })
      World.decide(world, leaver)
      for (const [key, row] of world.rows) world.rows.set(key, { ...row, filter: "new" })
      assert.strictEqual(World.errorOf(world, leaver)._tag, "FilterChanged")
      World.decide(world, leaver, { leaving: true })
      assert.isUndefined(World.rowsOf(world, "orders")[0]!.fence)
    })
  })

  describe("leaving", () => {
    it("hands over all rows that are not active and forms a generation without the leaving worker", () => {
      const world = World.make()
      const leaver = World.join(world, { workerId: "w1", projections: ["orders", "users"] })
      World.decide(world, leaver)
      World.join(world, { workerId: "w2", projections: ["orders", "users"] })
      leaver.activeKeys.add("users@0")
      const decision = World.decide(world, leaver, { leaving: true })
      assert.deepStrictEqual(decision.ownedRows.map(Checkpoint.key), ["users@0"])
      assert.deepStrictEqual(decision.form!.members.map(({ workerId }) => workerId), ["w2"])
      assert.isFalse(decision.isComplete)
      assert.strictEqual(World.rowsOf(world, "orders")[0]!.fence?.workerId, "w2")
    })

    it("the last worker forms no generation, and the next worker claims all rows", () => {
      const world = World.make()
      const last = World.join(world, { workerId: "w1", projections: ["orders"] })
      World.decide(world, last)
      assert.isUndefined(World.decide(world, last, { leaving: true }).form)
      const next = World.join(world, { workerId: "w2", projections: ["orders"] })
      const decision = World.decide(world, next)
      assert.isTrue(decision.isComplete)
      assert.strictEqual(decision.form!.generationId, 2n)
    })
  })

  describe("halts", () => {
    const haltedAt = (hash: number) => {
      const world = World.make()
      const first = World.join(world, { workerId: "w1", projections: ["orders"] })
      World.decide(world, first)
      world.now += 10
      const [row] = World.rowsOf(world, "orders")
      const halt = {
        since: new Date(world.now),
        error: "broken",
        position: 1n,
        eventId: "e",
        hash,
        incarnation: first.registration.incarnation
      }
      world.rows.set(Checkpoint.key(row!), { ...row!, halt })
      return { world, first, halt }
    }

    it("stays with the part that contains its hash; the other part continues", () => {
      const { first, halt, world } = haltedAt(2 ** 31 - 1)
      world.workers.push({ ...first, registration: { ...first.registration, workerId: "w2", incarnation: 9n } })
      World.decide(world, first)
      assert.deepStrictEqual(World.rowsOf(world, "orders").map((row) => row.halt), [halt, undefined])
    })

    it("is retried only by a worker that registered later, by incarnation and not by clock", () => {
      const { first, halt, world } = haltedAt(0)
      const { incarnation } = first.registration
      const withIncarnation = (incarnation: bigint, startedAt: number) => {
        const worker = {
          ...first,
          registration: {
            ...first.registration,
            workerId: `w${incarnation}`,
            incarnation,
            startedAt: new Date(startedAt)
          }
        }
        world.workers = [worker]
        return World.decide(world, worker).ownedRows[0]!.halt
      }
      assert.deepStrictEqual(World.decide(world, first).ownedRows[0]!.halt, halt)
      assert.deepStrictEqual(withIncarnation(incarnation - 1n, world.now + 1_000_000), halt)
      assert.isUndefined(withIncarnation(incarnation + 1n, 0))
    })

    it("is retried once by each of several workers with the same fault, not alternately for ever", () => {
      const { first, halt, world } = haltedAt(0)
      const second = {
        ...first,
        registration: { ...first.registration, workerId: "w2", incarnation: first.registration.incarnation + 1n }
      }
      world.workers = [second]
      const [retried] = World.decide(world, second).ownedRows
      assert.isUndefined(retried!.halt)
      const again = { ...halt, incarnation: second.registration.incarnation }
      world.rows.set(Checkpoint.key(retried!), { ...retried!, halt: again })
      assert.deepStrictEqual(World.decide(world, second).ownedRows[0]!.halt, again)
      world.workers = [first]
      assert.deepStrictEqual(World.decide(world, first).ownedRows[0]!.halt, again)
    })
  })
})
