import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as StatusText from "../../src/cli/StatusText.ts"
import type * as Status from "../../src/schema/Status.ts"

const at = new Date("2026-01-01T12:00:00.000Z")
const ago = (seconds: number) => new Date(at.getTime() - seconds * 1000)

const range = (start: number, rest: Partial<Status.Range> = {}): Status.Range => ({
  start,
  end: start + 2 ** 31,
  position: 12_345_678n,
  owner: "projection-worker-6d9f7c5b8-x2x7q",
  lag: { events: 0n, isEstimate: false },
  changedAt: new Date(0),
  ...rest
})

it("renders a status in 80 columns", () => {
  const text = StatusText.render({
    at,
    head: 12_345_700n,
    openWriters: [{ pid: 4711, application: "orders", since: ago(150) }],
    replicaSets: [
      {
        replicaSet: "main",
        generation: { generationId: 7n, partitions: 2, formedAt: ago(8000) },
        workers: [{
          workerId: "projection-worker-6d9f7c5b8-x2x7q",
          incarnation: 3n,
          state: "running",
          partition: 0,
          projections: ["orders-by-customer"],
          host: "projection-worker-6d9f7c5b8-x2x7q",
          pid: 1,
          startedAt: ago(9000),
          silentFor: Duration.millis(1250),
          isPresent: true
        }],
        projections: [{
          projection: "orders-by-customer",
          parked: { events: 3, keys: 1, oldest: ago(9000) },
          filter: "[null,null,null]",
          ranges: [
            range(0),
            range(2 ** 31, {
              owner: undefined as never,
              lag: { events: 1_234_567n, isEstimate: true, oldest: ago(90) },
              halt: {
                since: ago(90),
                error: "OrderPlaced of Order/7:\n  no such customer",
                position: 9n,
                eventId: "e",
                request: "skip"
              }
            })
          ]
        }]
      },
      { replicaSet: "mail", workers: [], projections: [] }
    ]
  })
  for (const line of text.split("\n")) assert.isAtMost(line.length, 80, line)
  assert.deepStrictEqual(text.split("\n"), [
    "2026-01-01 12:00:00 UTC, last event at position 12345700",
    "Readers wait for a transaction of orders (pid 4711), open for 3min",
    "",
    "Replica set main: generation 7 of 2 partitions, formed 2h ago",
    "  WORKER                   STATE    PARTITION  HEARTBEAT  PROCESS",
    "  projection-worker-6d9f…  running  0          1.3s ago   projection-wo…",
    "  PROJECTION       RANGE                     POSITION  LAG          OWNER",
    "  orders-by-cust…  [0, 2147483648)           12345678  0            projection-…",
    "  orders-by-cust…  [2147483648, 4294967296)  12345678  ~1234567 (…  NONE",
    "  PARKED for 3h: 3 events of 1 key of orders-by-customer",
    "  HALTED for 90s: orders-by-customer [2147483648, 4294967296) at 9",
    "    (skip requested) OrderPlaced of Order/7: no such customer",
    "",
    "Replica set mail: no generation yet",
    "  No worker is registered."
  ])
})
