/**
 * A logger that prints a line a message, for people who watch a terminal. A real worker would keep Effect's, with the
 * annotations (replica set, worker, projection) that this one leaves out.
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
