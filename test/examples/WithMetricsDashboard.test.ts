/** The dashboard of `examples/with-metrics`: generated, complete, and made of documented metrics. */
import { assert, describe, it } from "@effect/vitest"
import { readFileSync } from "node:fs"
import { dashboard } from "../../examples/with-metrics/grafana/dashboard.ts"
import * as MetricContract from "../../src/services/telemetry/MetricContract.ts"
import * as Dashboards from "../support/Dashboards.ts"
import * as MetricUse from "../support/MetricUse.ts"

const panels = Dashboards.panels(dashboard)

/** The panels of the Go library's dashboard (examples/grafana/dashboard.json). */
const original = [
  ["Active Workers by Replica Set", "stat"],
  ["Generation Creation Rate", "timeseries"],
  ["Coordination Duration", "heatmap"],
  ["Reconfiguration Rate", "timeseries"],
  ["Workers Running", "table"],
  ["Event Processing Rate", "timeseries"],
  ["Projection Error Rate", "timeseries"]
] as const

describe("dashboard of examples/with-metrics", () => {
  it("dashboard.json is what npm run generate writes", () => {
    const file = new URL("../../examples/with-metrics/grafana/dashboard.json", import.meta.url)
    assert.strictEqual(readFileSync(file, "utf8"), `${JSON.stringify(dashboard, null, 2)}\n`, "run npm run generate")
  })

  it("has the uid and all panels of the Go library's dashboard", () => {
    assert.strictEqual(dashboard.uid, "pupsourcing-orchestrator")
    assert.includeDeepMembers(panels.map(({ title, type }) => [title, type]), original.map((panel) => [...panel]))
  })

  it("every panel has its own title and id, a description, and the selected data source", () => {
    assert.strictEqual(new Set(panels.map(({ title }) => title)).size, panels.length)
    assert.strictEqual(new Set(dashboard.panels?.map(({ id }) => id)).size, dashboard.panels?.length)
    for (const { datasource, description, title } of panels) {
      assert.isNotEmpty(description, title)
      assert.deepStrictEqual(datasource, { type: "prometheus", uid: "${datasource}" })
    }
    assert.deepStrictEqual(dashboard.templating?.list?.map(({ name }) => name), ["datasource", "replica_set"])
  })

  it.each(panels)(
    "$title uses only metrics and labels of docs/metrics.md, of the selected replica sets",
    ({ queries }) => {
      assert.isNotEmpty(queries)
      for (const query of queries) {
        assert.deepStrictEqual(MetricUse.problems(Dashboards.fillIn(query, "5m")), [])
        assert.strictEqual(
          query.split("replica_set=~\"$replica_set\"").length,
          query.split("pupsourcing_orchestrator_").length
        )
      }
    }
  )

  it("shows every metric", () => {
    const queries = panels.flatMap(({ queries }) => queries).join("\n")
    for (const { metric: { id } } of MetricContract.entries) {
      assert.match(queries, new RegExp(`\\b${id}(?:_bucket|_sum)?\\{`))
    }
  })
})
