/** The same worker with a logger of the application's choice. */
import { Cause, Effect, Layer, Logger, type LogLevel, References } from "effect"
import { Program } from "pupsourcing-orchestrator"
import * as Worker from "./worker.ts"

/** What this adapter needs of a logger. `pino()` has this form; in your project, use it instead of `application`. */
interface ApplicationLogger {
  readonly debug: (fields: object, text: string) => void
  readonly info: (fields: object, text: string) => void
  readonly warn: (fields: object, text: string) => void
  readonly error: (fields: object, text: string) => void
}

const write = (level: number) => (fields: object, text: string) => {
  console.log(JSON.stringify({ level, pid: process.pid, ...fields, msg: text }))
}
const application: ApplicationLogger = { debug: write(20), info: write(30), warn: write(40), error: write(50) }

const methods: Record<LogLevel.LogLevel, keyof ApplicationLogger> = {
  All: "debug",
  Trace: "debug",
  Debug: "debug",
  Info: "info",
  Warn: "warn",
  Error: "error",
  Fatal: "error",
  None: "error"
}

/** An Effect logger that passes each line, with its annotations as fields, to the application's logger. */
const adapter = (target: ApplicationLogger) =>
  Logger.make(({ cause, fiber, logLevel, message }) => {
    const text = (Array.isArray(message) ? message : [message]).map(String).join(" ")
    const reason = cause.reasons.length === 0 ? {} : { err: Cause.pretty(cause) }
    target[methods[logLevel]]({ ...fiber.getRef(References.CurrentLogAnnotations), ...reason }, text)
  })

const Loggers = Logger.layer([adapter(application)])

Program.runMain(
  Worker.program.pipe(Effect.provide(Worker.Live.pipe(Layer.provideMerge(Loggers))), Worker.annotated)
)
