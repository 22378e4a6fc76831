/**
 * `npm run bench`: measures the library on this machine. `-- NAME…` runs the named benchmarks, otherwise all run but the long ones.
 *
 * - `--list`: their names, and what each shows.
 * - `--json`: an array of `{ name, value, unit, target, ok }` on the standard output; everything else is on the standard error.
 * - `--record`: writes docs/measurements/NAME.md and NAME.svg, and the section of docs/performance.md.
 * - `--rounds N`: how often each alternative is measured; default 5. Ratios are taken inside a round and their median is shown.
 *
 * The exit code is 1 if a benchmark failed or a measure missed its target. A benchmark that fails does not stop the others.
 */
import { Cause, Console, Effect, Exit, Logger, Redacted, References } from "effect"
import { Program } from "pupsourcing-orchestrator"
import * as Measurement from "../src/testing/Measurement.ts"
import type { Benchmark, Outcome, Result } from "./Benchmark.ts"
import * as Options from "./Options.ts"
import * as PerformancePage from "./PerformancePage.ts"
import * as Plot from "./Plot.ts"
import { benchmarks } from "./Registry.ts"
import * as Report from "./Report.ts"
import * as Server from "./Server.ts"

const list = Console.log(Measurement.table(
  ["benchmark", "", "what it shows"],
  benchmarks.map(({ isLong, name, summary }) => [name, isLong ? "long" : "", summary])
))

const runOne = Effect.fnUntraced(function*(server: Server.Server, benchmark: Benchmark, options: Options.Options) {
  yield* Console.error(`\n${benchmark.title} (${benchmark.name}) …`)
  const exit = yield* Effect.exit(Server.runIn(server, benchmark, options.rounds))
  const outcome: Outcome = {
    benchmark,
    result: Exit.isSuccess(exit) ? exit.value : undefined,
    cause: Exit.isFailure(exit) ? exit.cause : undefined
  }
  if (outcome.cause !== undefined) yield* Console.error(`${benchmark.name} failed:\n${Cause.pretty(outcome.cause)}`)
  if (outcome.result !== undefined && !options.json) yield* Console.log(`\n${Report.markdown(outcome.result)}`)
  if (outcome.result !== undefined && options.record) yield* record(server, benchmark, outcome.result)
  return outcome
})

const record = Effect.fnUntraced(function*(server: Server.Server, benchmark: Benchmark, result: Result) {
  yield* Measurement.record({
    page: benchmark.name,
    title: benchmark.title,
    command: `npm run bench -- ${benchmark.name} --record`,
    serverUrl: Redacted.value(server.url),
    result: Report.page(benchmark, result),
    plot: result.plot === undefined ? undefined : Plot.svg(result.plot)
  })
  yield* PerformancePage.record(benchmark, result)
})

const run = Effect.fnUntraced(function*(options: Options.Options) {
  const server = yield* Server.acquire
  const outcomes = yield* Effect.forEach(options.benchmarks, (benchmark) => runOne(server, benchmark, options))
  if (options.json) yield* Console.log(Report.json(outcomes))
  const problems = Report.problems(outcomes)
  if (problems.length > 0) {
    yield* Console.error(`\n${problems.join("\n")}`)
    process.exitCode = 1
  }
})

const program = Effect.suspend(() => {
  const options = Options.parse(process.argv.slice(2), benchmarks)
  if (typeof options === "string") {
    process.exitCode = 1
    return Console.error(options)
  }
  return options.list ? list : run(options)
})

Program.runMain(program.pipe(
  Effect.scoped,
  Effect.provide(Logger.layer([Logger.withConsoleError(Logger.formatSimple)])),
  Effect.provideService(References.MinimumLogLevel, "Warn")
))
