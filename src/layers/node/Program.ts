/**
 * A worker as a Node.js program: what happens on signals, on errors, and with the exit code.
 *
 * @since 0.1.0
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Console from "effect/Console"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Runtime from "effect/Runtime"
import * as SqlError from "effect/sql/SqlError"
import { errorText } from "../../services/ErrorText.ts"

/** Signal numbers, from which a shell makes the exit code 128 + n. */
const signals = { SIGINT: { number: 2, name: "interrupt" }, SIGTERM: { number: 15, name: "terminated" } } as const

/**
 * One Ctrl+C can arrive twice: from the terminal, and again from `npm`, which forwards what it hears. Only a signal
 * later than this is a second one.
 */
const sameSignalMillis = 500

/**
 * Runs a program such as `Orchestrator.run.pipe(Effect.provide(Live))` as the process's main fiber. SIGINT and SIGTERM
 * interrupt it, so that it leaves gracefully and the process ends with 0; a second signal ends the process at once. A
 * typed error prints its message, without a stack, and ends the process with 1. Interrupted without a signal it ends
 * with 130, as under `NodeRuntime.runMain`: nobody asked for it, so a supervisor must not take it for a graceful stop.
 *
 * `NodeRuntime.runMain` with what a worker's operator expects.
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
    // A finalizer, because what goes wrong on the way out is told too.
    Effect.onError(Effect.andThen(announceSignals, program), (cause) => report(cause, asked)),
    {
      disableErrorReporting: true,
      teardown: (exit, onExit) =>
        asked && Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)
          ? onExit(0)
          : Runtime.defaultTeardown(exit, onExit)
    }
  )
}

const listenForSignals = (onFirst: () => void): Effect.Effect<void> =>
  Effect.withFiber((fiber) => {
    const clock = Context.get(fiber.context, Clock.Clock)
    let first: number | undefined
    const listen = (signal: keyof typeof signals) =>
      // Before the listener that interrupts the program, and at once: a program that ends in no time would not say it.
      process.prependListener(signal, () => {
        const now = clock.currentTimeMillisUnsafe()
        if (first === undefined) {
          first = now
          onFirst()
          // With the context that the program has by now, so that its own loggers are used.
          Effect.runSyncExitWith(fiber.context)(
            Effect.logInfo(`Received signal ${signals[signal].name}, shutting down...`)
          )
        } else if (now - first > sameSignalMillis) {
          process.exit(128 + signals[signal].number)
        }
      })
    listen("SIGINT")
    listen("SIGTERM")
    return Effect.void
  })

const report = (cause: Cause.Cause<unknown>, asked: boolean): Effect.Effect<void> => {
  if (Cause.hasInterruptsOnly(cause)) {
    return asked
      ? Effect.void
      : Console.error("The program was interrupted from inside: no signal has asked it to stop.")
  }
  const error = Cause.squash(cause)
  if (!Runtime.getErrorReported(error)) return Effect.void
  const failure = cause.reasons.find(Cause.isFailReason)
  // What a driver's error is about stands in its cause only.
  if (failure !== undefined && SqlError.isSqlError(failure.error)) return Console.error(errorText(cause))
  return failure !== undefined && failure.error instanceof Error
    ? Console.error(`${tagOf(failure.error)}: ${failure.error.message}`)
    // A defect is a bug: its stack is what its finder needs.
    : Console.error(Cause.pretty(cause))
}

/** The name by which `Effect.catchTag` and the documentation know an error. */
const tagOf = (error: Error): string => "_tag" in error && typeof error._tag === "string" ? error._tag : error.name
