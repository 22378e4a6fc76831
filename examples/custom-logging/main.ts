/** A worker that logs JSON: one object a line on the standard output. */
import { Effect, Layer, Logger } from "effect"
import { Program } from "pupsourcing-orchestrator"
import * as Worker from "./worker.ts"

const Loggers = Logger.layer([Logger.consoleJson])

Program.runMain(
  Worker.program.pipe(Effect.provide(Worker.Live.pipe(Layer.provideMerge(Loggers))), Worker.annotated)
)
