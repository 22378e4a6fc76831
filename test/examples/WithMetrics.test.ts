/**
 * Tests `examples/with-metrics` as users run it, with a real Prometheus.
 *
 * @module-tag long
 */
import { assert, describe } from "@effect/vitest"
import { Effect } from "effect"
import type { SqlClient } from "effect/sql"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as Yaml from "yaml"
import { dashboard } from "../../examples/with-metrics/grafana/dashboard.ts"
import * as MetricContract from "../../src/services/telemetry/MetricContract.ts"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import * as WorkerProcess from "../../src/testing/WorkerProcess.ts"
import * as Dashboards from "../support/Dashboards.ts"
import { freePort } from "../support/FreePort.ts"
import * as Prometheus from "../support/Prometheus.ts"
import * as Promtool from "../support/Promtool.ts"
import { postgres as test } from "../support/Tests.ts"

const inCI = process.env["CI"] !== undefined

const folder = Path.resolve(import.meta.dirname, "../../examples/with-metrics")
const prefix = "pupsourcing_orchestrator_"

const program = (id: string, url: string, file: string, options: Partial<WorkerProcess.Options> = {}) =>
  WorkerProcess.spawn({
    id,
    script: Path.join(folder, file),
    mayEnd: true,
    ...options,
    env: { DATABASE_URL: url, ...options.env }
  })

const worker = (id: string, url: string, port: number) =>
  program(id, url, "main.ts", { env: { PORT: String(port) }, mayEnd: false })

/** The example's configuration for these workers, with short intervals. */
const configFor = (ports: ReadonlyArray<number>): string => {
  const directory = Path.join(folder, "prometheus")
  const config = Yaml.parse(Fs.readFileSync(Path.join(directory, "prometheus.yml"), "utf8"))
  config.global = { scrape_interval: "500ms", evaluation_interval: "1s" }
  config.rule_files = config.rule_files.map((file: string) => Path.join(directory, file))
  config.scrape_configs[0].static_configs = [{ targets: ports.map((port) => `127.0.0.1:${port}`) }]
  return Yaml.stringify(config)
}

const isData = ({ value: [, value] }: Prometheus.Sample) => value !== "NaN"

/** The queries without a single value; an error of a query fails the test. */
const withoutData = ({ query }: Prometheus.Prometheus, queries: ReadonlyArray<string>) =>
  Effect.filter(queries, (text) => Effect.map(query(text), (samples) => !samples.some(isData)), { concurrency: 4 })

/** Waits until the value of a query that has one series. */
const untilValue = ({ query }: Prometheus.Prometheus, text: string, holds: (value: number) => boolean) =>
  TimeLimits.waitUntil(
    text,
    Effect.map(query(text), (samples) => samples.map(({ value: [, value] }) => Number(value))),
    (values) => values.length === 1 && values.every(holds),
    { every: "100 millis", progress: (values) => values.join(), describe: (values) => values.join() }
  )

/** A transaction of the application fails because its connection is terminated; it is retried. */
const loseConnection = (sql: SqlClient.SqlClient) =>
  sql.withTransaction(Effect.gen(function*() {
    yield* sql`LOCK TABLE sales IN ACCESS EXCLUSIVE MODE`
    yield* TimeLimits.waitUntil(
      "a batch waits for the lock and is terminated",
      sql`
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'example' AND wait_event_type = 'Lock'`,
      (rows) => rows.length > 0
    )
  }))

test("with --once, a worker handles the orders, prints its metrics and ends", function*({ url }) {
  const worker = yield* program("with-metrics", url, "main.ts", { args: ["--once"] })
  assert.deepStrictEqual(yield* worker.ended, { code: 0, signal: null }, worker.output())
  for (const projection of ["invoices", "sales"]) {
    assert.include(
      worker.output(),
      `${prefix}events_processed_total{replica_set="orders",projection="${projection}"} 3\n`
    )
  }
})

describe.skipIf(Prometheus.missing !== undefined && !inCI)("a Prometheus that scrapes two workers", () => {
  test(
    "answers every query of the dashboard with data, and evaluates all rules and documented queries",
    function*({ sql, url }) {
      const ports = [yield* freePort, yield* freePort] as const
      const prometheus = yield* Prometheus.start(configFor(ports))
      const workers = `sum by (replica_set) (${prefix}active_workers)`
      /** A worker that is killed before it owns a range leaves nothing to take over. */
      const bothWork = Effect.andThen(
        untilValue(prometheus, workers, (count) => count === 2),
        untilValue(prometheus, `count(sum by (instance) (${prefix}ranges) > 0)`, (count) => count === 2)
      )

      yield* worker("a", url, ports[0])
      const b = yield* worker("b", url, ports[1])
      yield* bothWork
      yield* program("append", url, "append.ts", { mayEnd: false })

      yield* loseConnection(sql)
      yield* untilValue(prometheus, `sum(${prefix}projection_errors_total{projection="sales"})`, (count) => count > 0)
      const broken = yield* program("broken", url, "append.ts", { args: ["--broken"] })
      assert.deepStrictEqual(yield* broken.ended, { code: 0, signal: null }, broken.output())
      yield* untilValue(prometheus, `sum(${prefix}halted_ranges{projection="invoices"})`, (count) => count > 0)

      // A hand-over, then an eviction.
      assert.deepStrictEqual(yield* b.stop, { code: 0, signal: null }, b.output())
      yield* untilValue(prometheus, workers, (count) => count === 1)
      const second = yield* worker("b again", url, ports[1])
      yield* bothWork
      yield* second.kill
      yield* untilValue(prometheus, `sum(${prefix}stale_workers_cleaned_total)`, (count) => count > 0)
      yield* worker("b once more", url, ports[1])
      yield* bothWork

      const queries = Dashboards.panels(dashboard).flatMap(({ queries }) => queries)
        .map((query) => Dashboards.fillIn(query, "5m"))
      // A documented query that compares with a limit may have no result.
      const documented = MetricContract.entries.map(({ example: [, query] }) => query)
      const [limits, others] = [documented.filter(isLimit), documented.filter((query) => !isLimit(query))]
      yield* TimeLimits.waitUntil(
        "every query has data",
        withoutData(prometheus, [...queries, ...others]),
        (missing) => missing.length === 0,
        { every: "200 millis", progress: (missing) => missing.length, describe: (missing) => missing.join("\n") }
      )
      yield* withoutData(prometheus, limits)
      yield* untilValue(prometheus, `job:orchestrator_lag_events:sum{projection="invoices"}`, (events) => events > 0)

      const alert = (rules: ReadonlyArray<Prometheus.Rule>) =>
        rules.find(({ name }) => name === "OrchestratorProjectionHalted")
      // The last worker may retry the halted event, so that the alert is inactive for a moment.
      const rules = yield* TimeLimits.waitUntil(
        "all rules are evaluated, and the alert about the halt waits for its minute or fires",
        prometheus.rules,
        (rules) =>
          rules.every(({ health }) => health !== "unknown") &&
          ["pending", "firing"].includes(alert(rules)?.state ?? "inactive")
      )
      assert.deepStrictEqual(rules.filter(({ health }) => health !== "ok"), [])
      const halted = alert(rules)
      assert.strictEqual(halted?.alerts?.[0]?.annotations["summary"], "Projection invoices is halted")

      const text = yield* Effect.promise(() =>
        fetch(`http://127.0.0.1:${ports[0]}/metrics`).then((response) => response.text())
      )
      assert.deepStrictEqual(Promtool.run(folder, ["check", "metrics"], text), { code: 0, output: "" })
    }
  )
})

const isLimit = (query: string): boolean => / [<>=]+ [\d.]+$/.test(query)
