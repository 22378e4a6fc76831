/**
 * A logger that prints one line per message, for a terminal. In production, keep Effect's logger and its annotations
 * (replica set, worker, projection), which this one omits.
 */
import { Cause, Logger } from "effect"

export const layer = Logger.layer([
  Logger.make(({ cause, date, logLevel, message }) => {
    const time = date.toTimeString().slice(0, 8)
    const text = (Array.isArray(message) ? message : [message]).map(String).join(" ")
    const reason = cause.reasons.length === 0 ? "" : `\n${Cause.pretty(cause)}`
    console.log(`${time} ${logLevel === "Info" ? "" : `${logLevel}: `}${text}${reason}`)
  })
])
