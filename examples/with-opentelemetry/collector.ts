/** A small collector: it receives OTLP as JSON and keeps the spans and the names of the metrics. */
import { Effect } from "effect"
import { createServer, type IncomingMessage } from "node:http"
import type { AddressInfo } from "node:net"

export interface Span {
  readonly traceId: string
  readonly spanId: string
  readonly parentSpanId?: string
  readonly name: string
  readonly startTimeUnixNano: string
  readonly endTimeUnixNano: string
  readonly links: ReadonlyArray<{ readonly traceId: string }>
}

interface Batch {
  readonly resourceSpans?: ReadonlyArray<{ readonly scopeSpans: ReadonlyArray<{ readonly spans: Array<Span> }> }>
  readonly resourceMetrics?: ReadonlyArray<{
    readonly scopeMetrics: ReadonlyArray<{ readonly metrics: ReadonlyArray<{ readonly name: string }> }>
  }>
}

const read = async (request: IncomingMessage): Promise<Batch> => {
  const chunks: Array<Buffer> = []
  for await (const chunk of request) chunks.push(chunk as Buffer)
  return JSON.parse(Buffer.concat(chunks).toString("utf8")) as Batch
}

/** Starts the collector on a free port. It ends with the scope. */
export const start = Effect.gen(function*() {
  const spans: Array<Span> = []
  const metrics = new Set<string>()
  const server = createServer((request, response) => {
    void read(request).then(({ resourceMetrics = [], resourceSpans = [] }) => {
      for (const { scopeSpans } of resourceSpans) for (const scope of scopeSpans) spans.push(...scope.spans)
      for (const { scopeMetrics } of resourceMetrics) {
        for (const scope of scopeMetrics) for (const { name } of scope.metrics) metrics.add(name)
      }
      return response.writeHead(200, { "content-type": "application/json" }).end("{}")
    })
  })
  yield* Effect.acquireRelease(
    Effect.callback<void>((resume) => {
      server.listen(0, "127.0.0.1", () => resume(Effect.void))
    }),
    () =>
      Effect.sync(() => {
        server.close()
        server.closeAllConnections()
      })
  )
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, spans, metrics }
})

/** The spans as indented lines, one block for each trace. */
export const render = (spans: ReadonlyArray<Span>): string => {
  const known = new Set(spans.map(({ spanId }) => spanId))
  const ordered = [...spans].sort((a, b) => Number(BigInt(a.startTimeUnixNano) - BigInt(b.startTimeUnixNano)))
  const lines = (span: Span, depth: number): ReadonlyArray<string> => {
    const millis = Number(BigInt(span.endTimeUnixNano) - BigInt(span.startTimeUnixNano)) / 1_000_000
    const links = new Set(span.links.map(({ traceId }) => traceId.slice(0, 8)))
    const linked = links.size === 0 ? "" : `, linked to trace ${[...links].join(", ")}`
    return [
      `${"  ".repeat(depth)}${span.name} (${millis.toFixed(1)} ms${linked})`,
      ...ordered.filter(({ parentSpanId }) => parentSpanId === span.spanId).flatMap((child) => lines(child, depth + 1))
    ]
  }
  return ordered.filter(({ parentSpanId = "" }) => !known.has(parentSpanId))
    .flatMap((root) => [`trace ${root.traceId.slice(0, 8)}`, ...lines(root, 1)]).join("\n")
}
