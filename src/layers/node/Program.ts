/**
 * Runs a worker as a Node.js program: signals, errors and the exit code.
 *
 * **Example**
 *
 * ```ts
 * import { Effect } from "effect"
 * import { MemoryStores, Orchestrator, Program, Projection } from "pupsourcing-orchestrator"
 *
 * const users = Projection.make("users", { handle: (event) => Effect.logInfo(event.eventType) })
 * const orchestrator = Orchestrator.make({ replicaSet: "main-projections", projections: [users] })
 *
 * Program.runMain(
 *   Effect.flatMap(orchestrator, (worker) => worker.run).pipe(Effect.provide(MemoryStores.layer))
 * )
 * ```
 *
 * @since 0.1.0
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Logger from "effect/Logger"
import * as Runtime from "effect/Runtime"
import * as SqlError from "effect/sql/SqlError"
import { configErrorText } from "../../schema/ConfigErrorText.ts"
import { StoreError } from "../../schema/Errors.ts"
import { errorText } from "../../services/ErrorText.ts"

/** Signal numbers. By the convention of shells, the exit code after a signal is 128 + n. */
const signals = { SIGINT: { number: 2, name: "interrupt" }, SIGTERM: { number: 15, name: "terminated" } } as const

/**
 * A single Ctrl+C can arrive twice: from the terminal, and from `npm`, which forwards it. Signals within this time
 * after the first one are ignored.
 */
const sameSignalMillis = 500

/**
 * Runs a program such as `Orchestrator.run.pipe(Effect.provide(Live))` as the process's main fiber. SIGINT and SIGTERM
 * interrupt it, so that it leaves gracefully and the process exits with 0; a second signal ends the process at once. A
 * typed error is logged with its message, without a stack, and the process exits with 1. A program that is interrupted
 * without a signal exits with 130, as under `NodeRuntime.runMain`, so that a supervisor does not treat this as a
 * graceful stop.
 *
 * Based on `NodeRuntime.runMain`.
 *
 * **Details**
 *
 * A failure is logged once, by the loggers that the program provides, even if it occurs while layers are built.
 * Failures that `Orchestrator.run` has logged are not logged again.
 *
 * **Gotchas**
 *
 * Provide loggers to the layers too, `Live.pipe(Layer.provideMerge(Logger.layer([Logger.consoleJson])))`: loggers that
 * are merged with `Layer.mergeAll` are not active while the layers are built. A logger that writes when its scope
 * closes, such as a file logger, is already closed when a startup failure is logged; add a console logger.
 *
 * @category running
 * @since 0.1.0
 */
export const runMain = <A, E>(program: Effect.Effect<A, E>): void => {
  let asked = false
  const announceSignals = listenForSignals(() => {
    asked = true
  })
  NodeRuntime.runMain(
    Effect.flatMap(followLoggers, (ownLoggers) =>
      // Runs as a finalizer, so that failures of the shutdown are reported too.
      Effect.onError(
        Effect.andThen(announceSignals, program),
        (cause) => ownLoggers(report(cause, asked))
      )),
    {
      disableErrorReporting: true,
      teardown: (exit, onExit) =>
        asked && Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)
          ? onExit(0)
          : Runtime.defaultTeardown(exit, onExit)
    }
  )
}

/**
 * Tracks the loggers that the program provides. When the program fails, its own context is no longer available, so this
 * keeps the last context whose loggers differed from those of the runtime.
 */
const followLoggers = Effect.withFiber((fiber) => {
  const outer = Context.get(fiber.context, Logger.CurrentLoggers)
  const setContext = fiber.setContext.bind(fiber)
  let own: Context.Context<never> = fiber.context
  fiber.setContext = (context) => {
    if (Context.get(context, Logger.CurrentLoggers) !== outer) own = context
    setContext(context)
  }
  return Effect.succeed(<A>(self: Effect.Effect<A>): Effect.Effect<A> => Effect.provideContext(self, own))
})

const listenForSignals = (onFirst: () => void): Effect.Effect<void> =>
  Effect.withFiber((fiber) => {
    const clock = Context.get(fiber.context, Clock.Clock)
    let first: bigint | undefined
    const listen = (signal: keyof typeof signals) =>
      // Runs before the listener that interrupts the program, and logs synchronously: otherwise a program that ends
      // immediately would not log the signal.
      process.prependListener(signal, () => {
        const now = clock.monotonicTimeNanosUnsafe()
        if (first === undefined) {
          first = now
          onFirst()
          // The fiber's current context contains the program's own loggers.
          Effect.runSyncExitWith(fiber.context)(
            Effect.logInfo(`Received signal ${signals[signal].name}, shutting down...`)
          )
        } else if (Number(now - first) / 1_000_000 > sameSignalMillis) {
          process.exit(128 + signals[signal].number)
        }
      })
    listen("SIGINT")
    listen("SIGTERM")
    return Effect.void
  })

/** The log message for a cause; undefined if the cause has already been logged. */
const textOf = (cause: Cause.Cause<unknown>): ReadonlyArray<unknown> | undefined => {
  const error = Cause.squash(cause)
  if (!Runtime.getErrorReported(error)) return undefined
  const failure = cause.reasons.find(Cause.isFailReason)?.error
  // The driver's error has the details in its cause.
  if (SqlError.isSqlError(failure)) return [errorText(cause)]
  if (failure instanceof Config.ConfigError) return [`${failure.name}: ${configErrorText(failure)}`]
  return failure instanceof Error
    ? [`${tagOf(failure)}: ${failure.message}`]
    // A defect is a bug, so its stack is logged.
    : ["The program died", cause]
}

const report = (cause: Cause.Cause<unknown>, asked: boolean): Effect.Effect<void> => {
  if (Cause.hasInterruptsOnly(cause)) {
    return asked
      ? Effect.void
      : Effect.logError("The program was interrupted from inside, without a signal.")
  }
  const text = textOf(cause)
  return text === undefined ? Effect.void : Effect.logError(...text)
}

/** The name under which the documentation describes an error: its tag, or that of a store error's reason. */
const tagOf = (error: Error): string => {
  if (error instanceof StoreError) return error.reason._tag
  return "_tag" in error && typeof error._tag === "string" ? error._tag : error.name
}
