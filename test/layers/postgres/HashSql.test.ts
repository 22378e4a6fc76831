import { assert } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as SqlClient from "effect/sql/SqlClient"
import { hashOf, keyOf } from "../../../src/layers/postgres/HashSql.ts"
import * as PartitionKey from "../../../src/schema/PartitionKey.ts"
import * as PostgresTest from "../../../src/testing/PostgresTest.ts"
import * as EventStores from "../../support/EventStores.ts"
import * as Tests from "../../support/Tests.ts"

/** A source of numbers below a limit, the same in every run. */
const chance = (seed: number) => (limit: number): number => {
  seed = Math.imul(seed ^ (seed >>> 15), 0x2c1b3c6d) + 0x9e3779b9 | 0
  return ((seed ^ (seed >>> 12)) >>> 0) % limit
}

const names = ["tenant", "a", "bb", "é", "quote ' \" \\ $1 ?", "", "__proto__", "\uffee", "\u{1F600}"]
const scalars = [
  [
    "null",
    "true",
    "false",
    "0",
    "-0",
    "7",
    "7.0",
    "70e-1",
    "0.7E1",
    "-1.50",
    "1e20",
    "1.25e-7",
    "12345678901234567890.10"
  ],
  ["\"\"", "\"7\"", "\"null\"", "\"a\"", "\"\\u0041 \\n \\\" \\\\ \\/ \\u00e9 \\u001f \\u007f\"", "\"it's\""]
].flat()

/** A random JSON text, whose objects may have the same name several times. */
const json = (random: (limit: number) => number, depth: number): string => {
  const spaces = () => " ".repeat(random(3))
  const items = (item: () => string) => Array.from({ length: random(4) }, item).join(`${spaces()},${spaces()}`)
  switch (depth === 0 ? 0 : random(3)) {
    case 0:
      return scalars[random(scalars.length)]!
    case 1:
      return `[${items(() => json(random, depth - 1))}]`
    default:
      return `{${items(() => `${JSON.stringify(names[random(names.length)])}${spaces()}:${json(random, depth - 1)}`)}}`
  }
}

const events = (seed: number) => {
  const random = chance(seed)
  return Array.from({ length: 2000 }, (_, index) => ({
    aggregateId: `aggregate ${index % 50}`,
    boundedContext: `context ${index % 3}`,
    correlationId: index % 4 === 0 ? null : `correlation ${index % 7}`,
    metadataText: index % 20 === 0 ? null : json(random, 3)
  }))
}

Tests.postgres("the database computes the key of PartitionKey.of, for every form of metadata", function*({ sql }) {
  const given = events(1)
  for (
    const partitionBy of [
      "aggregateId",
      "correlationId",
      "boundedContext",
      ...names.filter((name) => name !== "").map((metadata) => ({ metadata }))
    ] as ReadonlyArray<PartitionKey.PartitionKey>
  ) {
    for (const alias of [undefined, "e"]) {
      const rows = yield* sql.unsafe<{ key: string; stored: string | null }>(
        `SELECT ${keyOf(partitionBy, alias)} AS key, metadata::text AS stored
         FROM (
           SELECT (j.event->>'aggregateId')::text AS aggregate_id, j.event->>'boundedContext' AS bounded_context,
             j.event->>'correlationId' AS correlation_id, (j.event->>'metadataText')::jsonb AS metadata, j.place
           FROM json_array_elements($1::json) WITH ORDINALITY AS j (event, place)
         ) AS e ORDER BY place`,
        [JSON.stringify(given)]
      )
      for (const [index, { key, stored }] of rows.entries()) {
        const event = given[index]!
        const expected = PartitionKey.of(partitionBy, event)
        assert.strictEqual(expected, key, `${JSON.stringify(partitionBy)} of ${event.metadataText}`)
        // Of an event that was read, whose metadata is as the database returns it.
        assert.strictEqual(PartitionKey.of(partitionBy, { ...event, metadataText: stored }), key)
      }
    }
  }
})

Tests.postgres("a literal has the same meaning under every setting", function*({ sql }) {
  const partitionBy = { metadata: "quote ' \\' \\\\ \n" }
  for (const setting of ["on", "off"]) {
    const [row] = yield* sql.withTransaction(Effect.andThen(
      sql`SELECT set_config('standard_conforming_strings', ${setting}, true)`,
      sql.unsafe<{ key: string }>(
        `SELECT ${keyOf(partitionBy)} AS key FROM (SELECT $1::jsonb AS metadata, 'id' AS aggregate_id) AS e`,
        [JSON.stringify({ [partitionBy.metadata]: "found" })]
      )
    ))
    assert.strictEqual(row?.key, "found")
  }
})

const encoded = Tests.live(PostgresTest.layerWith({ encoding: "LATIN1" }), SqlClient.SqlClient)

encoded("computes the same keys in another encoding", function*(sql) {
  const metadata = JSON.stringify({ "kürzel": "Größe" })
  const [row] = yield* sql.unsafe<{ key: string; hash: string; expected: string }>(
    `SELECT ${keyOf({ metadata: "kürzel" })} AS key, ${hashOf(keyOf({ metadata: "kürzel" }))}::text AS hash,
       ${hashOf("'Größe'::text")}::text AS expected
     FROM (SELECT $1::jsonb AS metadata, 'id' AS aggregate_id) AS e`,
    [metadata]
  )
  assert.strictEqual(row?.key, "Größe")
  assert.strictEqual(row?.hash, row?.expected)
  assert.strictEqual(
    PartitionKey.of({ metadata: "kürzel" }, {
      aggregateId: "id",
      boundedContext: "",
      correlationId: null,
      metadataText: metadata
    }),
    row?.key
  )
})

EventStores.storeTest("hashes are returned with events of any size", function*({ store }) {
  const { positions } = yield* store.append([
    EventStores.event("a", { payload: { text: "x".repeat(100_000) }, metadata: { tenant: "t" } }),
    EventStores.event("a", { metadata: { tenant: "t", text: "y".repeat(100_000) } }),
    EventStores.event("a", { metadata: { tenant: "u" } })
  ])
  while ((yield* store.settledPosition) < positions[2]!) {
    yield* store.settledBeyond(positions[2]! - 1n, Duration.millis(50))
  }
  const { events, hashes } = yield* store.read({
    after: 0n,
    partitionBy: { metadata: "tenant" },
    hashes: true,
    bytes: 1_000_000
  })
  assert.strictEqual(events.length, 3)
  assert.strictEqual(hashes?.[0], hashes?.[1])
  assert.notStrictEqual(hashes?.[0], hashes?.[2])
})
