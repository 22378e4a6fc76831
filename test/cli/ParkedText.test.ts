import { assert, it } from "@effect/vitest"
import * as ParkedText from "../../src/cli/ParkedText.ts"
import type { ParkedEvent } from "../../src/schema/ParkedEvent.ts"

const at = new Date("2026-01-01T12:00:00.000Z")

const event: ParkedEvent = {
  projection: "orders",
  position: 12_345_678_901n,
  key: "order-4711-of-a-customer-with-a-long-name",
  keyHash: 1,
  eventId: "0b6cf0a0-5f5c-4d5b-9a63-1f6f2d0c9e77",
  eventType: "OrderPlacedBySomeCustomerOfTheShop",
  aggregateType: "Order",
  aggregateId: "order-4711-of-a-customer-with-a-long-name",
  aggregateVersion: 17n,
  parkedAt: at,
  attempts: 4,
  firstAttemptAt: at,
  lastAttemptAt: at,
  errorTag: "NoSuchCountry",
  errorMessage:
    "type OrderPlacedBySomeCustomerOfTheShop, Order \"order-4711-of-a-customer-with-a-long-name\", version 17: NoSuchCountry: there is no country ZZ\n  at line 7, and the text continues far beyond the last column",
  request: "retry",
  requestedAt: at,
  requestedBy: "ada@bastion-host"
}

const queued: ParkedEvent = {
  ...event,
  position: 12_345_678_999n,
  key: "order-1",
  eventType: "OrderPaid",
  aggregateVersion: 18n,
  attempts: 0,
  firstAttemptAt: undefined,
  lastAttemptAt: undefined,
  errorTag: undefined,
  errorMessage: undefined,
  request: undefined,
  requestedAt: undefined,
  requestedBy: undefined
}

it("renders parked events in 80 columns", () => {
  const other = { ...event, errorTag: "Timeout", errorMessage: "no answer", request: undefined }
  const text = ParkedText.render([event, queued, other])
  for (const line of text.split("\n")) assert.isAtMost(line.length, 80, line)
  assert.deepStrictEqual(text.split("\n"), [
    "POSITION     KEY               EVENT                 ATTEMPTS  LAST ATTEMPT",
    "12345678901  order-4711-of-a…  OrderPlacedBySo… v17  4         2026-01-01 12:00",
    "  NoSuchCountry: there is no country ZZ at line 7, and the text continues far b…",
    "  retry requested by ada@bastion-host",
    "12345678999  order-1           OrderPaid v18         queued    -",
    "12345678901  order-4711-of-a…  OrderPlacedBySo… v17  4         2026-01-01 12:00",
    "  Timeout: no answer"
  ])
})

it("renders control characters as spaces, so that each event has its own lines", () => {
  const key = "a\nb\u001B[31m"
  assert.deepStrictEqual(
    ParkedText.render([{ ...event, key, requestedBy: "eve\r\n", eventType: "Paid" }]).split("\n"),
    [
      "POSITION     KEY       EVENT     ATTEMPTS  LAST ATTEMPT",
      "12345678901  a b [31m  Paid v17  4         2026-01-01 12:00",
      "  type OrderPlacedBySomeCustomerOfTheShop, Order \"order-4711-of-a-customer-with…",
      "  retry requested by eve "
    ]
  )
})

it("renders one JSON object a line, with 64-bit numbers as text", () => {
  const [first, second, ...rest] = ParkedText.renderJson([event, queued]).split("\n").map((line) => JSON.parse(line))
  assert.deepStrictEqual(rest, [])
  assert.deepInclude(first, {
    position: "12345678901",
    aggregateVersion: "17",
    parkedAt: at.toISOString(),
    attempts: 4
  })
  assert.notProperty(second, "errorTag")
})
