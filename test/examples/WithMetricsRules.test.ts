/** The rules of `examples/with-metrics`: they are correct, use only documented metrics, are tested, and have a runbook. */
import { assert, describe, it } from "@effect/vitest"
import { readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import * as Yaml from "yaml"
import * as MetricUse from "../support/MetricUse.ts"
import * as Promtool from "../support/Promtool.ts"

const inCI = process.env["CI"] !== undefined

const folder = fileURLToPath(new URL("../../examples/with-metrics/prometheus/", import.meta.url))

const load = <A>(file: string): A => Yaml.parse(readFileSync(`${folder}${file}`, "utf8")) as A

interface Rules<Rule> {
  readonly groups: ReadonlyArray<{ readonly rules: ReadonlyArray<Rule> }>
}

interface Alert {
  readonly alert: string
  readonly expr: string
  readonly for: string
  readonly labels: { readonly severity: string }
  readonly annotations: { readonly summary: string; readonly description: string; readonly runbook_url: string }
}

interface Tests {
  readonly tests: ReadonlyArray<{
    readonly name: string
    readonly input_series: ReadonlyArray<{ readonly series: string }>
    readonly promql_expr_test: ReadonlyArray<{ readonly exp_samples: ReadonlyArray<{ readonly labels: string }> }>
  }>
}

const alerts = load<Rules<Alert>>("alerts.yml").groups.flatMap(({ rules }) => rules)
const recording = load<Rules<{ readonly record: string; readonly expr: string }>>("recording.yml").groups
  .flatMap(({ rules }) => rules)
const { tests } = load<Tests>("tests.yml")

/** Recorded series have the labels by which their rule aggregates, except the bucket's bound. */
const recorded = new Map(recording.map(({ expr, record }) => {
  const by = /\bby \(([^)]*)\)/.exec(expr)?.[1] ?? ""
  return [record, by.split(", ").filter((label) => label !== "le")]
}))

const replicaSets = (texts: ReadonlyArray<string>) =>
  new Set(texts.flatMap((text) => [...text.matchAll(/replica_set="(.*?)"/g)].map(([, name]) => name)))

describe("rules of examples/with-metrics", () => {
  it.skipIf(Promtool.missing !== undefined && !inCI)("promtool accepts them, and their tests pass", () => {
    for (
      const args of [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "recording.yml", "alerts.yml"],
        ["test", "rules", "tests.yml"]
      ]
    ) {
      const { code, output } = Promtool.run(folder, args)
      assert.strictEqual(code, 0, output)
    }
  })

  it("use only metrics and labels of docs/metrics.md", () => {
    for (const { expr } of [...recording, ...alerts]) assert.deepStrictEqual(MetricUse.problems(expr, recorded), [])
  })

  it.each(alerts)(
    "$alert has a test in which it fires for one replica set, not before its time, and not for another",
    ({ alert, for: pending }) => {
      const own = tests.filter(({ name }) => name === alert)
      const tested = own.some(({ input_series: input, promql_expr_test: expected }) => {
        const firing = replicaSets(expected.flatMap(({ exp_samples: samples }) => samples.map(({ labels }) => labels)))
        const given = replicaSets(input.map(({ series }) => series))
        const before = expected.some(({ exp_samples: samples }) => samples.length === 0)
        return before && firing.size > 0 && [...given].some((name) => !firing.has(name))
      })
      assert.isTrue(tested)
      assert.match(pending, /^\d+m$/)
    }
  )

  it("every recording rule has a test", () => {
    const tested = readFileSync(`${folder}tests.yml`, "utf8")
    for (const { record } of recording) assert.include(tested, `- expr: ${record}\n`)
  })

  it("every alert has a severity, texts, a row and a runbook entry in docs/monitoring.md, and every entry an alert", () => {
    const page = readFileSync(new URL("../../docs/monitoring.md", import.meta.url), "utf8")
    const names = alerts.map(({ alert }) => alert)
    assert.sameMembers([...page.matchAll(/^### (Orchestrator\w+)$/gm)].map(([, name]) => name), names)
    for (const { alert, annotations, labels: { severity } } of alerts) {
      assert.include(["critical", "warning"], severity)
      assert.include(page, `| [${alert}](#${alert.toLowerCase()}) | ${severity} | `)
      assert.strictEqual(
        annotations.runbook_url,
        `https://github.com/getpup/pupsourcing-orchestrator-ts/blob/main/docs/monitoring.md#${alert.toLowerCase()}`
      )
      assert.isNotEmpty(annotations.summary)
      assert.isNotEmpty(annotations.description)
    }
  })
})
