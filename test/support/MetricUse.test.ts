import { assert, it } from "@effect/vitest"
import * as MetricUse from "./MetricUse.ts"

const ranges = "pupsourcing_orchestrator_ranges"
const heartbeats = "pupsourcing_orchestrator_heartbeat_latency_seconds"

it("finds no problem in documented metrics and labels", () => {
  const queries = [
    `max by (worker_id, instance) (${ranges}{projection="users", job="workers"})`,
    `histogram_quantile(0.9, sum by (le) (rate(${heartbeats}_bucket[5m])))`,
    `${heartbeats}_sum / ${heartbeats}_count`
  ]
  for (const query of queries) assert.deepStrictEqual(MetricUse.problems(query), [])
  assert.deepStrictEqual(
    MetricUse.problems(`deriv(a:b[5m]) * on (projection) c`, new Map([["a:b", ["projection"]], ["c", []]])),
    []
  )
})

it("finds unknown metrics and labels, also of histograms and groupings", () => {
  const wrong = {
    [`${ranges}_total`]: `no metric ${ranges}_total`,
    [`sum(${heartbeats})`]: `no metric ${heartbeats}`,
    [`${ranges}{state="running"}`]: `${ranges} has no label state`,
    [`sum by (le) (${ranges})`]: "no metric of the query has the label le",
    [`${ranges} * on (state) ${ranges}`]: "no metric of the query has the label state"
  }
  for (const [query, problem] of Object.entries(wrong)) {
    assert.deepStrictEqual(MetricUse.problems(query), [`${problem}: ${query}`])
  }
})

it("refuses a query that is not PromQL", () => {
  for (const query of ["sum(", `${ranges}{`, `{job="workers"}`, `rate(${ranges}[5 minutes])`]) {
    assert.throws(() => MetricUse.problems(query))
  }
})
