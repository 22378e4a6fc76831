/** Parked events as text that fits 80 columns. */
import { label } from "../schema/Event.ts"
import type { ParkedEvent } from "../schema/ParkedEvent.ts"
import { table, truncated } from "./Table.ts"

const columns = 80

/** Two lines for each event that has failed, one for each that queues behind another. */
export const render = (events: ReadonlyArray<ParkedEvent>): string => {
  const [header = "", ...rows] = table([
    ["POSITION", "KEY", "EVENT", "ATTEMPTS", "LAST ATTEMPT"],
    ...events.map(({ aggregateVersion, attempts, eventType, key, lastAttemptAt, position }) => [
      String(position),
      key,
      `${truncated(eventType, 18 - String(aggregateVersion).length)} v${aggregateVersion}`,
      attempts === 0 ? "queued" : String(attempts),
      lastAttemptAt === undefined ? "-" : time(lastAttemptAt)
    ])
  ], [12, 16, 20, 8, 16]).split("\n")
  return [header, ...rows.flatMap((row, index) => [row, ...details(events[index]!)])]
    .map((line) => truncated(line, columns)).join("\n")
}

const details = (event: ParkedEvent): ReadonlyArray<string> => {
  const { request, requestedBy } = event
  const error = errorOf(event)
  return [
    ...(error === undefined ? [] : [`  ${error}`]),
    ...(request === undefined ? [] : [`  ${request} requested${requestedBy === undefined ? "" : ` by ${requestedBy}`}`])
  ]
}

/** The error in one line, without the description of the event, which the row above it has. */
const errorOf = (event: ParkedEvent): string | undefined => {
  const { errorMessage = "", errorTag } = event
  const prefix = `${label(event)}: `
  const message = (errorMessage.startsWith(prefix) ? errorMessage.slice(prefix.length) : errorMessage)
    .replaceAll(/\s+/g, " ")
  return errorTag === undefined || message.includes(errorTag) ? message || undefined : `${errorTag}: ${message}`
}

/** One line of JSON for each event. 64-bit numbers are text. */
export const renderJson = (events: ReadonlyArray<ParkedEvent>): string =>
  events.map((event) => JSON.stringify(event, (_, value) => typeof value === "bigint" ? String(value) : value))
    .join("\n")

const time = (date: Date): string => date.toISOString().replace("T", " ").slice(0, 16)
