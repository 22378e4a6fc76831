import { assert, describe, it } from "@effect/vitest"
import { Result } from "effect"
import * as TableNames from "../../src/schema/TableNames.ts"

const problem = (options: TableNames.Options) => {
  const result = TableNames.make(options)
  return Result.isFailure(result) ? `${result.failure.setting}: ${result.failure.problem}` : undefined
}

describe("TableNames", () => {
  it("uses defaults for names that are not given", () => {
    assert.deepStrictEqual(TableNames.make(), Result.succeed(TableNames.defaults))
    assert.deepStrictEqual(
      TableNames.make({ schema: "Work", tables: { events: "my_events", workers: undefined } }),
      Result.succeed({ ...TableNames.defaults, schema: "Work", eventStoreSchema: "Work", events: "my_events" })
    )
    assert.deepStrictEqual(
      TableNames.make({ eventStoreSchema: "Facts" }),
      Result.succeed({ ...TableNames.defaults, eventStoreSchema: "Facts" })
    )
  })

  it("qualifies and quotes names", () => {
    assert.strictEqual(TableNames.qualified(TableNames.defaults, "events"), "\"events\"")
    assert.strictEqual(
      TableNames.qualified(Result.getOrThrow(TableNames.make({ schema: "Work" })), "aggregateHeads"),
      "\"Work\".\"aggregate_heads\""
    )
    const split = Result.getOrThrow(TableNames.make({ schema: "Work", eventStoreSchema: "Facts" }))
    assert.deepStrictEqual(
      (["events", "aggregateHeads", "workers"] as const).map((key) => TableNames.qualified(split, key)),
      ["\"Facts\".\"events\"", "\"Facts\".\"aggregate_heads\"", "\"Work\".\"orchestrator_workers\""]
    )
    assert.strictEqual(TableNames.quoted("a\"b"), "\"a\"\"b\"")
  })

  it("accepts plain PostgreSQL identifiers", () => {
    for (const name of ["order", "_x", "Events", "a$1", "x".repeat(TableNames.maximumTableLength)]) {
      assert.isUndefined(problem({ tables: { events: name } }), name)
    }
  })

  it("refuses all other names", () => {
    for (const name of ["", " ", "1a", "a b", "a.b", "a;b", "a\"b", "ä", "a\n", "$a"]) {
      assert.match(problem({ tables: { events: name } }) ?? "", /^tables\.events: .* is not a plain identifier/, name)
      assert.match(problem({ schema: name }) ?? "", /^schema: .* is not a plain identifier/, name)
      assert.match(problem({ eventStoreSchema: name }) ?? "", /^eventStoreSchema: .* is not a plain identifier/, name)
    }
    assert.match(problem({ schema: "pg_mine" }) ?? "", /pg_/)
    assert.match(problem({ eventStoreSchema: "pg_mine" }) ?? "", /pg_/)
    assert.match(problem({ schema: "x".repeat(64) }) ?? "", /at most 63/)
    assert.match(problem({ tables: { events: "x".repeat(TableNames.maximumTableLength + 1) } }) ?? "", /at most 47/)
  })

  it("refuses two tables with the same name", () => {
    assert.match(
      problem({ tables: { workers: "events" } }) ?? "",
      /^tables\.events: "events" is the name of workers too/
    )
    assert.isUndefined(problem({ tables: { workers: "events", events: "orchestrator_workers" } }))
  })

  it("refuses unknown tables", () => {
    assert.match(problem({ tables: { ["evnts" as "events"]: "x" } }) ?? "", /^tables\.evnts: There is no such table/)
  })

  it("derives the channels from names alone, without a suffix for the default names in public", () => {
    const { channel, defaults } = TableNames
    assert.strictEqual(channel(defaults, "events", "public"), "pupsourcing_events")
    assert.strictEqual(channel(defaults, "generations", "public"), "pupsourcing_control")
    assert.strictEqual(channel(defaults, "events", "Work"), "pupsourcing_events_Work_events")
    assert.strictEqual(
      channel({ ...defaults, events: "happenings" }, "events", "public"),
      "pupsourcing_events_public_happenings"
    )
    assert.strictEqual(
      channel(defaults, "generations", "my \"schéma\""),
      "pupsourcing_control_my__sch_ma__orchestrator_generations"
    )
    const longest = channel({ ...defaults, events: "e".repeat(47) }, "events", "s".repeat(63))
    assert.strictEqual(longest, `pupsourcing_events_${"s".repeat(44)}`)
  })
})
