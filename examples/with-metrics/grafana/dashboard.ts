/**
 * The dashboard, from which `npm run generate` writes dashboard.json. The names of the metrics come from the library, so a
 * misspelt one does not compile.
 */
import * as Common from "@grafana/grafana-foundation-sdk/common"
import * as Dashboard from "@grafana/grafana-foundation-sdk/dashboard"
import * as Heatmap from "@grafana/grafana-foundation-sdk/heatmap"
import * as Prometheus from "@grafana/grafana-foundation-sdk/prometheus"
import * as Stat from "@grafana/grafana-foundation-sdk/stat"
import * as Table from "@grafana/grafana-foundation-sdk/table"
import * as Timeseries from "@grafana/grafana-foundation-sdk/timeseries"
import * as Units from "@grafana/grafana-foundation-sdk/units"
import { Metrics } from "pupsourcing-orchestrator"

interface Metric {
  readonly id: string
}

/** A query, and the legend of each of its series. */
type Query = readonly [expression: string, legend: string]

const datasource = { type: "prometheus", uid: "${datasource}" }

// Queries

const of = ({ id }: Metric, more = "", suffix = ""): string => `${id}${suffix}{replica_set=~"$replica_set"${more}}`

const rate = (metric: Metric, suffix = ""): string => `rate(${of(metric, "", suffix)}[$__rate_interval])`

const byReplicaSet = "{{replica_set}}"
const byProjection = "{{replica_set}}/{{projection}}"
const byWorker = "{{worker_id}}"
const labels = { [byReplicaSet]: "replica_set", [byProjection]: "replica_set, projection", [byWorker]: "worker_id" }

type By = keyof typeof labels

const sum = (by: By, vector: string): Query => [`sum by (${labels[by]}) (${vector})`, by]

const max = (by: By, vector: string): Query => [`max by (${labels[by]}) (${vector})`, by]

const quantiles = (metric: Metric, by: By): ReadonlyArray<Query> =>
  [0.5, 0.95, 0.99].map((quantile) => [
    `histogram_quantile(${quantile}, sum by (${labels[by]}, le) (${rate(metric, "_bucket")}))`,
    `${by} p${quantile * 100}`
  ])

const target = ([expression, legend]: Query, index: number) =>
  new Prometheus.DataqueryBuilder().expr(expression).legendFormat(legend).refId("ABC".charAt(index))

// Panels

const stat = (title: string, description: string, unit: string, query: Query, redFrom?: number) =>
  new Stat.PanelBuilder().title(title).description(description).datasource(datasource).unit(unit).span(6).height(5)
    .thresholds(
      new Dashboard.ThresholdsConfigBuilder().mode(Dashboard.ThresholdsMode.Absolute).steps([
        { value: null, color: "green" },
        ...(redFrom === undefined ? [] : [{ value: redFrom, color: "red" }])
      ])
    )
    .reduceOptions(new Common.ReduceDataOptionsBuilder().calcs(["lastNotNull"]))
    .withTarget(target(query, 0).instant())

const lines = (title: string, description: string, unit: string, ...queries: ReadonlyArray<Query>) =>
  new Timeseries.PanelBuilder().title(title).description(description).datasource(datasource).unit(unit).min(0).span(8)
    .height(8)
    .legend(new Common.VizLegendOptionsBuilder().showLegend(true).displayMode(Common.LegendDisplayMode.List))
    .targets(queries.map(target))

const heat = (title: string, description: string, metric: Metric) =>
  new Heatmap.PanelBuilder().title(title).description(description).datasource(datasource).span(8).height(8)
    .yAxis(new Heatmap.YAxisConfigBuilder().unit(Units.Seconds))
    .withTarget(
      target([`sum by (le) (${rate(metric, "_bucket")})`, "{{le}}"], 0).format(Prometheus.PromQueryFormat.Heatmap)
    )

const workersRunning = new Table.PanelBuilder().title("Workers Running").datasource(datasource).span(16).height(8)
  .description("The workers that work on their whole assignment, with the address that Prometheus scrapes.")
  .withTarget(
    target([`${of(Metrics.workerState, `, state="running"`)} == 1`, ""], 0).format(Prometheus.PromQueryFormat.Table)
      .instant()
  )
  .withTransformation({
    id: "organize",
    options: { excludeByName: { Time: true, Value: true, __name__: true, job: true, state: true } }
  })

const overview = [
  stat(
    "Active Workers by Replica Set",
    "Workers of the newest generation.",
    Units.Short,
    sum(byReplicaSet, of(Metrics.activeWorkers))
  ),
  stat(
    "Halted Ranges",
    "Ranges that are halted at an event whose handler fails.",
    Units.Short,
    sum(byReplicaSet, of(Metrics.haltedRanges)),
    1
  ),
  stat(
    "Ranges without an Owner",
    "Ranges that no registered worker owns. During a hand-over this is normal for a moment.",
    Units.Short,
    sum(byReplicaSet, of(Metrics.rangesWithoutOwner)),
    1
  ),
  stat(
    "Highest Lag",
    "Age of the oldest event that a projection has not handled.",
    Units.Seconds,
    max(byReplicaSet, of(Metrics.projectionLagSeconds)),
    60
  ),
  workersRunning,
  lines(
    "Worker States",
    "Workers by state. Not running for minutes, or suspended, is a problem.",
    Units.Short,
    [`sum by (replica_set, state) (${of(Metrics.workerState)})`, "{{replica_set}} {{state}}"]
  )
]

const projections = [
  lines(
    "Event Processing Rate",
    "Events that were handled and committed.",
    Units.EventsPerSecond,
    sum(byProjection, rate(Metrics.eventsProcessedTotal))
  ),
  lines(
    "Lag in Events",
    "Events that match the projection and are not handled yet.",
    Units.Short,
    sum(byProjection, of(Metrics.projectionLagEvents))
  ),
  lines(
    "Lag in Time",
    "Age of the oldest event that is not handled yet.",
    Units.Seconds,
    max(byProjection, of(Metrics.projectionLagSeconds))
  ),
  lines(
    "Projection Error Rate",
    "Reads, batches and writes that failed, whether they are retried or the range halted.",
    Units.Short,
    sum(byProjection, rate(Metrics.projectionErrorsTotal))
  ),
  lines(
    "Halts",
    "Ranges that are halted now, and halts of the last hour.",
    Units.Short,
    [sum(byProjection, of(Metrics.haltedRanges))[0], `${byProjection} halted`],
    [
      `sum by (replica_set, projection) (increase(${of(Metrics.projectionHaltsTotal)}[1h]))`,
      `${byProjection} last hour`
    ]
  ),
  lines(
    "Parked Events",
    "Events whose handler failed, and the later events of their keys, which queue behind them.",
    Units.Short,
    [sum(byProjection, of(Metrics.parkedEvents))[0], `${byProjection} events`],
    [sum(byProjection, of(Metrics.parkedKeys))[0], `${byProjection} keys`]
  ),
  lines(
    "Events Parked and Skipped",
    "Events that were parked or skipped in the last hour.",
    Units.Short,
    [
      `sum by (replica_set, projection) (increase(${of(Metrics.eventsParkedTotal)}[1h]))`,
      `${byProjection} parked`
    ],
    [
      `sum by (replica_set, projection) (increase(${of(Metrics.eventsSkippedTotal)}[1h]))`,
      `${byProjection} skipped`
    ]
  ),
  lines(
    "Age of the Oldest Parked Event",
    "Since it was parked. Parked events wait until they are retried or dropped.",
    Units.Seconds,
    max(byProjection, of(Metrics.parkedOldestSeconds))
  ),
  lines(
    "Time without Progress",
    "Of the range that has waited longest, among those with events to handle.",
    Units.Seconds,
    max(byProjection, of(Metrics.projectionStalledSeconds))
  ),
  lines(
    "Time per Event",
    "Duration of a committed batch divided by its events.",
    Units.Seconds,
    ...quantiles(Metrics.eventProcessingDurationSeconds, byProjection)
  ),
  lines(
    "Events per Batch",
    "Mean size of a committed batch.",
    Units.Short,
    [
      `sum by (replica_set, projection) (${rate(Metrics.batchEvents, "_sum")}) / ` +
      `sum by (replica_set, projection) (${rate(Metrics.batchEvents, "_count")})`,
      byProjection
    ]
  ),
  lines(
    "Open Transaction of a Writer",
    "Age of the oldest open transaction for which readers wait.",
    Units.Seconds,
    max(byReplicaSet, of(Metrics.settledLagSeconds))
  )
]

const coordination = [
  lines(
    "Generation Creation Rate",
    "Workers that join, leave or die cause generations.",
    Units.Short,
    sum(byReplicaSet, rate(Metrics.generationsTotal))
  ),
  lines(
    "Reconfiguration Rate",
    "Switches of workers to another generation.",
    Units.Short,
    sum(byReplicaSet, rate(Metrics.reconfigurationTotal))
  ),
  heat(
    "Coordination Duration",
    "From the first read of a generation until a worker works on its whole assignment.",
    Metrics.coordinationDurationSeconds
  ),
  lines(
    "Hand-over Pause",
    "From the release of a range by a live worker until another one claims it.",
    Units.Seconds,
    ...quantiles(Metrics.handOverSeconds, byReplicaSet)
  ),
  lines(
    "Takeover Time",
    "From the last heartbeat of a worker that has died until another one claims its ranges.",
    Units.Seconds,
    ...quantiles(Metrics.takeoverSeconds, byReplicaSet)
  ),
  lines(
    "Workers Registered and Evicted",
    "Registrations, and evictions of dead workers, in the last hour.",
    Units.Short,
    [`sum by (replica_set) (increase(${of(Metrics.workersRegisteredTotal)}[1h]))`, `${byReplicaSet} registered`],
    [`sum by (replica_set) (increase(${of(Metrics.staleWorkersCleanedTotal)}[1h]))`, `${byReplicaSet} evicted`]
  ),
  lines(
    "Ranges by Worker",
    "Ranges that each worker works on.",
    Units.Short,
    sum(byWorker, of(Metrics.ranges))
  ),
  lines(
    "Ranges Started",
    "Ranges that workers started to work on.",
    Units.Short,
    sum(byProjection, rate(Metrics.partitionAssignmentsTotal))
  ),
  lines(
    "Partitions",
    "Partitions of the newest generation.",
    Units.Short,
    sum(byReplicaSet, of(Metrics.currentGenerationPartitions))
  )
]

const connections = [
  lines(
    "Heartbeat Latency",
    "Duration of a heartbeat's statement.",
    Units.Seconds,
    ...quantiles(Metrics.heartbeatLatencySeconds, byReplicaSet)
  ),
  lines(
    "LISTEN",
    "1 while LISTEN is active, 0 while the worker finds events only by polling.",
    Units.Short,
    max(byWorker, of(Metrics.listening))
  ),
  lines(
    "Sessions",
    "Database sessions of the library in each worker's process, without the application's pool.",
    Units.Short,
    max(byWorker, of(Metrics.sessions))
  )
]

const rows = {
  Overview: overview,
  Projections: projections,
  Coordination: coordination,
  Connections: connections
}

// The dashboard

const replicaSet = new Dashboard.QueryVariableBuilder("replica_set").label("Replica set").datasource(datasource)
  .query(`label_values(${Metrics.workersRegisteredTotal.id}, replica_set)`)
  .refresh(Dashboard.VariableRefresh.OnTimeRangeChanged).sort(Dashboard.VariableSort.AlphabeticalAsc)
  .multi(true).includeAll(true).allValue(".*").current({ text: "All", value: "$__all" })

const build = (): Dashboard.Dashboard => {
  const builder = new Dashboard.DashboardBuilder("Pupsourcing Orchestrator").uid("pupsourcing-orchestrator")
    .description("Workers, projections and their lag.")
    .tags(["pupsourcing"]).refresh("10s").time({ from: "now-1h", to: "now" })
    .tooltip(Dashboard.DashboardCursorSync.Crosshair)
    .withVariable(new Dashboard.DatasourceVariableBuilder("datasource").label("Data source").type("prometheus"))
    .withVariable(replicaSet)
  let id = 1
  for (const [title, panels] of Object.entries(rows)) {
    builder.withRow(new Dashboard.RowBuilder(title).id(id++))
    for (const panel of panels) builder.withPanel(panel.id(id++))
  }
  return builder.build()
}

export const dashboard: Dashboard.Dashboard = build()
