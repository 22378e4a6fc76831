import { assert, describe, it } from "@effect/vitest"
import * as Jsonb from "../../src/schema/Jsonb.ts"
import * as PartitionKey from "../../src/schema/PartitionKey.ts"

const event = (metadataText: string | null, correlationId: string | null = null) => ({
  aggregateId: "aggregate",
  boundedContext: "context",
  correlationId,
  metadataText
})

describe("PartitionKey.of", () => {
  it("is the aggregate id, the correlation id or the bounded context", () => {
    assert.strictEqual(PartitionKey.of("aggregateId", event(null, "correlation")), "aggregate")
    assert.strictEqual(PartitionKey.of("correlationId", event(null, "correlation")), "correlation")
    assert.strictEqual(PartitionKey.of("boundedContext", event(null)), "context")
  })

  it("falls back to the aggregate id only where the event has no key", () => {
    const tenant = { metadata: "tenantId" }
    assert.strictEqual(PartitionKey.of("correlationId", event(null)), "aggregate")
    assert.strictEqual(PartitionKey.of("correlationId", event(null, "")), "")
    for (const text of [null, "null", "7", "[]", "[\"tenantId\"]", "\"tenantId\"", "{}", "{\"tenantId\":null}"]) {
      assert.strictEqual(PartitionKey.of(tenant, event(text)), "aggregate", String(text))
    }
    assert.strictEqual(PartitionKey.of(tenant, event("{\"a\":{\"tenantId\":\"x\"},\"tenantId\":\"\"}")), "")
    assert.strictEqual(PartitionKey.of(tenant, event("{\"tenantId\":false}")), "false")
    assert.strictEqual(PartitionKey.of({ metadata: "toString" }, event("{}")), "aggregate")
    assert.strictEqual(PartitionKey.of({ metadata: "__proto__" }, event("{\"__proto__\":\"x\"}")), "x")
  })

  it("keeps every digit of a number and writes it without an exponent", () => {
    const numbers = {
      "12345678901234567890": "12345678901234567890",
      "1.0": "1.0",
      "1e3": "1000",
      "1.5E+1": "15",
      "100e-2": "1.00",
      "-1.25e-2": "-0.0125",
      "0.5e1": "5",
      "-0": "0",
      "-0.0": "0.0"
    }
    for (const [number, text] of Object.entries(numbers)) {
      assert.strictEqual(Jsonb.member(`{"n": ${number}}`, "n"), text)
    }
  })

  it("writes an object with its members sorted", () => {
    assert.strictEqual(
      Jsonb.member("{\"key\":{\"bb\":[1,{\"x\":null}],\"c\":\"\\u00e9\\n\",\"a\":1,\"a\":2}}", "key"),
      "{\"a\": 2, \"c\": \"é\\n\", \"bb\": [1, {\"x\": null}]}"
    )
  })

  it("reads metadata with long names and texts, and deeply nested members", () => {
    const metadata = { tenant: "t", ["x".repeat(300_000)]: "y".repeat(8_000_000), ["z".repeat(300_000)]: "\\\"" }
    assert.strictEqual(Jsonb.member(JSON.stringify(metadata), "tenant"), "t")
    assert.strictEqual(Jsonb.member(JSON.stringify({ tenant: metadata }), "tenant")?.length, 8_600_035)
    assert.strictEqual(Jsonb.member(`{"a":${"[".repeat(6000)}${"]".repeat(6000)},"tenant":"t"}`, "tenant"), "t")
  })
})

describe("PartitionKey.problem", () => {
  it("accepts exactly the keys that the database can evaluate", () => {
    for (const key of ["aggregateId", "correlationId", "boundedContext", { metadata: "a 'quoted' \\ name" }]) {
      assert.isTrue(PartitionKey.isPartitionKey(key))
    }
    for (const other of ["tenantId", "", null, 7, {}, { metadata: 7 }, { metadata: "a", also: "b" }]) {
      assert.match(PartitionKey.problem(other) ?? "", /^must /)
    }
    assert.strictEqual(PartitionKey.problem({ metadata: "" }), "has an empty name for the metadata member")
    assert.match(PartitionKey.problem({ metadata: "a\u0000" }) ?? "", /NUL/)
    assert.match(PartitionKey.problem({ metadata: "\uD800" }) ?? "", /surrogate/)
  })

  it("compares keys by their meaning", () => {
    assert.isTrue(PartitionKey.equals({ metadata: "a" }, { metadata: "a" }))
    assert.isTrue(PartitionKey.equals("correlationId", "correlationId"))
    assert.isFalse(PartitionKey.equals({ metadata: "a" }, { metadata: "b" }))
    assert.isFalse(PartitionKey.equals({ metadata: "aggregateId" }, "aggregateId"))
  })
})
