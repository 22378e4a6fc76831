/** Compares the metrics and labels that a query uses with those that the documentation promises. */
import * as MetricContract from "../../src/services/telemetry/MetricContract.ts"
import * as PromQL from "./PromQL.ts"

/** The labels that Prometheus itself adds to every series. */
const ofTarget = ["job", "instance"]

const promised: ReadonlyMap<string, ReadonlyArray<string>> = new Map(
  MetricContract.entries.flatMap(({ labels, metric: { id, type } }) =>
    type === "Histogram"
      ? [[`${id}_bucket`, [...labels, "le"]], [`${id}_sum`, labels], [`${id}_count`, labels]] as const
      : [[id, labels]] as const
  )
)

/** What is wrong with a query. `recorded` contains the labels of the series that recording rules make. */
export const problems = (
  query: string,
  recorded: ReadonlyMap<string, ReadonlyArray<string>> = new Map()
): ReadonlyArray<string> => {
  const { groupings, selectors } = PromQL.parse(query)
  const known = (metric: string) => promised.get(metric) ?? recorded.get(metric)
  const all = new Set(selectors.flatMap(({ metric }) => known(metric) ?? []).concat(ofTarget))
  return [
    ...selectors.flatMap(({ labels, metric }) => {
      const own = known(metric)
      return own === undefined
        ? [`no metric ${metric}`]
        : labels.filter((label) => !own.includes(label) && !ofTarget.includes(label)).map((label) =>
          `${metric} has no label ${label}`
        )
    }),
    ...groupings.filter((label) => !all.has(label)).map((label) => `no metric of the query has the label ${label}`)
  ].map((problem) => `${problem}: ${query}`)
}
