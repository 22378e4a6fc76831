/** The section of docs/metrics.md about spans, from the contract of the spans. */
import * as SpanContract from "../src/services/telemetry/SpanContract.ts"

const list = (attributes: ReadonlyArray<{ readonly name: string; readonly meaning: string }>): string =>
  attributes.map(({ meaning, name }) => `| \`${name}\` | ${meaning} |`).join("\n")

const section = ({ attributes, events, kind, links, meaning, name, sometimes }: SpanContract.Entry): string =>
  [
    `### Span \`${name}\``,
    "",
    meaning,
    "",
    `- kind: ${kind}`,
    ...(links === undefined
      ? []
      : [`- links: ${links.meaning}; attributes: ${links.attributes.map(({ name }) => `\`${name}\``).join(", ")}`]),
    ...(events === undefined
      ? []
      : [`- events: ${events.meaning}; attributes: ${events.attributes.map(({ name }) => `\`${name}\``).join(", ")}`]),
    "",
    "| attribute | meaning |",
    "|---|---|",
    list(attributes),
    ...(sometimes.length === 0
      ? []
      : [list(sometimes.map((each) => ({ ...each, meaning: `${each.meaning} (not always)` })))]),
    ""
  ].join("\n")

export const render = (): string =>
  [
    `## Spans

With a tracer, a worker and \`EventStore.append\` make these spans; see [Tracing](tracing.md). The attributes \`messaging.*\` follow
OpenTelemetry's semantic conventions for messaging. They are experimental, because the conventions are not stable yet.
`,
    ...SpanContract.entries.map(section)
  ].join("\n")
