/** Problems that the library reports only in its log. */
import * as Cause from "effect/Cause"
import type * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import type { Run } from "./Run.ts"

export const logger = (run: Run, who: (fiber: Fiber.Fiber<unknown, unknown>) => string) =>
  Logger.make(({ cause, fiber, message }) => {
    const text = (Array.isArray(message) ? message : [message]).map(String).join(" ")
    if (text.includes(" died")) run.violation(`P6: ${who(fiber)} logged: ${text} ${Cause.pretty(cause)}`)
    if (text.includes("could not renew its heartbeat")) {
      run.coverage.count("steps", "suspended by itself")
      run.say(who(fiber), "suspends itself")
    }
  })
