/** The sections of docs/metrics.md about log lines and span events. */
import type { Activity } from "../src/schema/Activity.ts"
import * as Telemetry from "../src/services/telemetry/Telemetry.ts"
import { examples } from "./ActivityExamples.ts"
import * as LogCalls from "./LogCalls.ts"

/** What a line is about, which determines its annotations. */
export type Scope = "range" | "worker"

/** The annotations of the lines of a scope. A test compares them with the lines of a worker. */
export const annotations: { readonly [_ in Scope]: ReadonlyArray<string> } = {
  worker: ["replica_set", "worker", "generation"],
  range: ["replica_set", "worker", "generation", "projection", "range"]
}

const scopeOf = (activity: Activity): Scope => activity._tag === "RangeHalted" ? "range" : "worker"

export interface Line {
  readonly activity: Activity["_tag"]
  readonly scope: Scope
  readonly level: string
  readonly text: string
}

const all: ReadonlyArray<Activity> = Object.values(examples).flat()

/** The lines of the table in `Telemetry`, rendered from the examples, each once. */
export const lines: ReadonlyArray<Line> = all
  .flatMap((activity) =>
    Telemetry.describe(activity).lines.map(([level, text]): Line => ({
      activity: activity._tag,
      scope: scopeOf(activity),
      level,
      text
    }))
  )
  .filter(({ text }, index, lines) => lines.findIndex((line) => line.text === text) === index)

/** The lines whose texts are not where they are logged. */
const computed: Readonly<Record<string, string>> = {
  "services/Orchestrator.ts failure.error.message": "the message of the error with which the run ends",
  "services/worker/RangeRunner.ts HaltReason.message":
    "the line of `RangeHalted`, when a worker claims a range that is halted already",
  "layers/node/Program.ts ...text": "the message of the error with which the program ends",
  "layers/postgres/coordination/Join.ts waitsForEarlier":
    "`Worker id \"…\" is still registered by process … on …, which has sent no heartbeat for … s. Waiting: …`"
}

const textOf = ({ isLiteral, module, text }: LogCalls.LogCall): string => {
  if (isLiteral) return code(text)
  const description = computed[`${module} ${text}`]
  if (description === undefined) {
    throw new Error(`describe the line that ${module} logs with ${text} in ${import.meta.url}`)
  }
  return description
}

const code = (text: string): string => `\`${text.replaceAll("`", "'").replaceAll("|", "\\|")}\``

const row = (...cells: ReadonlyArray<string>): string => `| ${cells.join(" | ")} |`

const listed = (names: ReadonlyArray<string>): string => names.map(code).join(", ")

const logLines = (): ReadonlyArray<string> => [
  "## Log lines",
  "",
  "The library logs through Effect's `Logger`; every logger of Effect prints the lines, and their annotations beside them.",
  "",
  `Annotations: a line about a worker has ${listed(annotations.worker)}, and a line about a range ${
    listed(annotations.range)
  }.`,
  "`generation` is missing until the worker is a member of one.",
  "",
  "These lines report activities of `Orchestrator.activity`. The values are examples.",
  "",
  row("Activity", "About", "Level", "Line"),
  row("---", "---", "---", "---"),
  ...lines.map(({ activity, level, scope, text }) => row(code(activity), `a ${scope}`, level, code(text))),
  "",
  "### Other lines",
  "",
  "Lines of failures that are retried, of waits and of errors. `…` stands for a value. A failure that is retried is logged once, then summarized",
  "at growing intervals until it has ended. Lines of `services` have the annotations of the worker or the range that they are about;",
  "lines of `layers` those of their caller, if it has any.",
  "",
  row("Module", "Level", "Line"),
  row("---", "---", "---"),
  ...LogCalls.find().map((call) => row(code(call.module.replace(/\.ts$/, "")), call.level, textOf(call))),
  ""
]

const spanEvents = (): ReadonlyArray<string> => [
  "## Span events",
  "",
  "A run inside a span, for example `Effect.withSpan(orchestrator.run, \"worker\")`, adds its rare activities to that span as events.",
  "",
  row("Event", "Attributes"),
  row("---", "---"),
  ...Object.entries(examples).flatMap(([tag, [example]]) => {
    const { span } = Telemetry.describe(example!)
    return span === undefined ? [] : [row(code(tag), listed(Object.keys(span)) || "none")]
  }),
  ""
]

export const render = (): string => [...logLines(), ...spanEvents()].join("\n")
