/** The metrics and labels that a query in PromQL uses. */
import { parser } from "@prometheus-io/lezer-promql"

type Node = ReturnType<typeof parser.parse>["topNode"]

export interface Selector {
  readonly metric: string
  readonly labels: ReadonlyArray<string>
}

export interface Query {
  readonly selectors: ReadonlyArray<Selector>
  /** The labels of `by`, `without`, `on`, `ignoring`, `group_left` and `group_right`. */
  readonly groupings: ReadonlyArray<string>
}

/** Throws unless the query is correct PromQL in which every selector names its metric. */
export const parse = (query: string): Query => {
  const selectors: Array<Selector> = []
  const groupings: Array<string> = []
  const text = ({ from, to }: Node) => query.slice(from, to)
  const labelsOf = (node: Node): ReadonlyArray<string> =>
    node.getChildren("LabelName").map(text).concat(...node.getChildren("UnquotedLabelMatcher").map(labelsOf))
  parser.parse(query).iterate({
    enter: ({ node, type }) => {
      if (type.isError) throw new Error(`wrong at character ${node.from}: ${query}`)
      if (type.name === "GroupingLabels") groupings.push(...labelsOf(node))
      if (type.name === "VectorSelector") {
        const metric = node.getChild("Identifier")
        if (metric === null) throw new Error(`a selector without a metric: ${query}`)
        const matchers = node.getChild("LabelMatchers")
        selectors.push({ metric: text(metric), labels: matchers === null ? [] : labelsOf(matchers) })
      }
    }
  })
  return { selectors, groupings }
}
