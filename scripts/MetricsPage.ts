/** Writes docs/metrics.md from the contracts of the metrics and the spans, and the table of the activities. */
import * as Context from "effect/Context"
import * as Metric from "effect/Metric"
import * as MetricContract from "../src/services/telemetry/MetricContract.ts"
import * as LogLinesSection from "./LogLinesSection.ts"
import * as SpansSection from "./SpansSection.ts"

const introduction = `# Metrics, log lines and spans

<!-- Written by npm run generate from src/services/telemetry. Do not edit. -->

This page lists the [metrics](#metrics), the [log lines](#log-lines), the [span events](#span-events) and the
[spans](#spans) of a worker.

## Metrics

The library records [Effect metrics](https://effect.website/docs/observability/metrics). Any exporter of Effect metrics publishes them:
\`PrometheusMetrics\` and \`Otlp\` of \`effect/observability\`, or \`@effect/opentelemetry\`. \`pupsourcing-orchestrator/http\` serves them as
[\`GET /metrics\`](operations.md#http-endpoints). The module \`Metrics\` exports each of them.
[Monitoring](monitoring.md) describes how to serve them, and the dashboard, the recording rules and the alerts with their runbook.

- Counters and histograms start at 0 when the worker starts, so that \`rate\` and \`increase\` include the first change.
- Some gauges describe a whole replica set: \`active_workers\`, \`current_generation_partitions\`, \`projection_lag_events\`,
  \`projection_lag_seconds\`, \`projection_stalled_seconds\`, \`ranges_without_owner\`, \`parked_events\`, \`parked_keys\`,
  \`parked_oldest_seconds\` and \`settled_lag_seconds\`. Only the worker with partition 0 sets them, so \`sum\` and \`max\` over all workers
  give the same, correct value.
- That worker reads the lag from \`Projections.status\` when it has reached its assignment and then every 15 seconds, independently of the
  projections' progress. A sample that fails or takes more than 10 seconds is skipped; after four such samples in
  a row, which is one to two minutes, the series disappear.
- The gauges of a worker disappear when it leaves or is evicted, and those of the replica set also while it is suspended.
- All names, labels and bucket bounds of the Go library exist here too, so that its dashboards and alerts work. The differences:
  - \`active_workers\` and \`current_generation_partitions\` also have the label \`worker_id\`, and \`partition_assignments_total\` also has
    \`projection\`.
  - All metrics that are not in the Go library are new, and so are some bucket bounds.
  - \`worker_state\` has the additional state \`suspended\`. A worker that has left has no series instead of the state \`stopped\`.
  - \`event_processing_duration_seconds\` has one value for each batch: its duration divided by the number of its events.
`

/** The bucket bounds of a histogram, without the last, infinite one. */
const boundsOf = (metric: MetricContract.Entry["metric"]): ReadonlyArray<number> => {
  const { buckets } = (metric as Metric.Histogram<number>).valueUnsafe(Context.make(Metric.MetricRegistry, new Map()))
  return buckets.map(([bound]) => bound).filter(Number.isFinite)
}

const section = ({ example: [purpose, query], labels, metric, unit }: MetricContract.Entry): string =>
  [
    `### \`${metric.id}\``,
    "",
    `${metric.description}`,
    "",
    `- type: ${metric.type.toLowerCase()}; unit: ${unit === "1" ? "none" : unit}`,
    `- labels: ${labels.map((label) => `\`${label}\``).join(", ")}`,
    ...(metric.type === "Histogram" ? [`- upper bounds of the buckets: ${boundsOf(metric).join(", ")}`] : []),
    "",
    `Example: ${purpose}.`,
    "",
    "```promql",
    query,
    "```",
    ""
  ].join("\n")

export const render = (): string =>
  [introduction, ...MetricContract.entries.map(section), LogLinesSection.render(), SpansSection.render()].join("\n")
