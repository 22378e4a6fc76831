/** Writes docs/metrics.md from the contract of the metrics. */
import * as MetricContract from "../src/services/telemetry/MetricContract.ts"

const introduction = `# Metrics

<!-- Written by npm run generate from src/services/telemetry/MetricContract.ts. Do not edit. -->

The library records [Effect metrics](https://effect.website/docs/observability/metrics). Any exporter of Effect metrics publishes them:
\`PrometheusMetrics\` and \`Otlp\` of \`effect/observability\`, or \`@effect/opentelemetry\`. \`pupsourcing-orchestrator/http\` serves them as
[\`GET /metrics\`](operations.md#http-endpoints). The module \`Metrics\` exports each of them.

- Counters start at 0 when the worker starts, so that \`rate\` and \`increase\` include the first change.
- \`active_workers\` and \`current_generation_partitions\` describe a whole replica set, and only its worker with partition 0 sets them. Therefore
  \`sum\` and \`max\` over all workers give the number of workers.
- The gauges of a worker disappear when it leaves or is evicted.
- All names, labels and bucket bounds of the Go library exist here too, so that its dashboards and alerts work. The differences:
  - \`active_workers\` and \`current_generation_partitions\` also have the label \`worker_id\`, and \`partition_assignments_total\` also has
    \`projection\`.
  - \`projection_halts_total\`, \`halted_ranges\`, \`ranges\`, \`batch_events\` and some bucket bounds are new.
  - \`worker_state\` has the additional state \`suspended\`. A worker that has left has no series instead of the state \`stopped\`.
  - \`event_processing_duration_seconds\` has one value for each batch: its duration divided by the number of its events.
`

const section = ({ example: [purpose, query], labels, metric, unit }: MetricContract.Entry): string =>
  [
    `## \`${metric.id}\``,
    "",
    `${metric.description}`,
    "",
    `- type: ${metric.type.toLowerCase()}; unit: ${unit === "1" ? "none" : unit}`,
    `- labels: ${labels.map((label) => `\`${label}\``).join(", ")}`,
    "",
    `Example: ${purpose}.`,
    "",
    "```promql",
    query,
    "```",
    ""
  ].join("\n")

export const render = (): string => [introduction, ...MetricContract.entries.map(section)].join("\n")
