/** An HTTP server that receives OTLP, as JSON or as protobuf, and decodes it. */
import * as Effect from "effect/Effect"
import { createServer, type IncomingMessage } from "node:http"
import type { AddressInfo } from "node:net"
import protobuf from "protobufjs"

/** What the tests read of opentelemetry-proto 1.x. */
const schema = `
syntax = "proto3";
message ArrayValue { repeated AnyValue values = 1; }
message AnyValue {
  oneof value {
    string string_value = 1; bool bool_value = 2; int64 int_value = 3; double double_value = 4; ArrayValue array_value = 5;
  }
}
message KeyValue { string key = 1; AnyValue value = 2; }
message Resource { repeated KeyValue attributes = 1; }
message Event { fixed64 time_unix_nano = 1; string name = 2; repeated KeyValue attributes = 3; }
message Link { bytes trace_id = 1; bytes span_id = 2; string trace_state = 3; repeated KeyValue attributes = 4; }
message Status { string message = 2; int32 code = 3; }
message Span {
  bytes trace_id = 1; bytes span_id = 2; bytes parent_span_id = 4; string name = 5; int32 kind = 6;
  fixed64 start_time_unix_nano = 7; fixed64 end_time_unix_nano = 8; repeated KeyValue attributes = 9;
  repeated Event events = 11; repeated Link links = 13; Status status = 15;
}
message ScopeSpans { repeated Span spans = 2; }
message ResourceSpans { Resource resource = 1; repeated ScopeSpans scope_spans = 2; }
message Traces { repeated ResourceSpans resource_spans = 1; }
message NumberDataPoint {
  fixed64 start_time_unix_nano = 2; fixed64 time_unix_nano = 3;
  oneof value { double as_double = 4; sfixed64 as_int = 6; }
  repeated KeyValue attributes = 7;
}
message Gauge { repeated NumberDataPoint data_points = 1; }
message Sum { repeated NumberDataPoint data_points = 1; int32 aggregation_temporality = 2; bool is_monotonic = 3; }
message Metric { string name = 1; string description = 2; string unit = 3; oneof data { Gauge gauge = 5; Sum sum = 7; } }
message ScopeMetrics { repeated Metric metrics = 2; }
message ResourceMetrics { Resource resource = 1; repeated ScopeMetrics scope_metrics = 2; }
message Metrics { repeated ResourceMetrics resource_metrics = 1; }
message LogRecord { fixed64 time_unix_nano = 1; string severity_text = 3; AnyValue body = 5; repeated KeyValue attributes = 6; }
message ScopeLogs { repeated LogRecord log_records = 2; }
message ResourceLogs { Resource resource = 1; repeated ScopeLogs scope_logs = 2; }
message Logs { repeated ResourceLogs resource_logs = 1; }
`

type Attributes = ReadonlyArray<{ readonly key: string; readonly value: Readonly<Record<string, unknown>> }>

export interface Span {
  readonly traceId: string
  readonly spanId: string
  readonly name: string
  readonly attributes: Attributes
  readonly links?: ReadonlyArray<{ readonly traceId: string; readonly spanId: string }>
}

interface Point {
  readonly attributes: Attributes
  readonly asInt?: string | number
  readonly asDouble?: number
}

export interface Received {
  readonly contentTypes: Set<string>
  readonly resources: Array<Attributes>
  readonly spans: Array<Span>
  readonly metrics: Array<{ readonly name: string; readonly sum?: { readonly dataPoints: ReadonlyArray<Point> } }>
  readonly logs: Array<{ readonly body: { readonly stringValue?: string }; readonly attributes: Attributes }>
}

/** The body of a request: one of the signals. */
interface Body {
  readonly resourceSpans?: ReadonlyArray<{
    readonly resource: { readonly attributes: Attributes }
    readonly scopeSpans: ReadonlyArray<{ readonly spans: Received["spans"] }>
  }>
  readonly resourceMetrics?: ReadonlyArray<{
    readonly scopeMetrics: ReadonlyArray<{ readonly metrics: Received["metrics"] }>
  }>
  readonly resourceLogs?: ReadonlyArray<{
    readonly scopeLogs: ReadonlyArray<{ readonly logRecords: Received["logs"] }>
  }>
}

/** The attributes as an object; integers are numbers. */
export const valuesOf = (attributes: Attributes): Readonly<Record<string, unknown>> =>
  Object.fromEntries(attributes.map(({ key, value }) => [
    key,
    value["intValue"] === undefined
      ? value["stringValue"] ?? value["doubleValue"] ?? value["boolValue"]
      : Number(value["intValue"])
  ]))

const types = protobuf.parse(schema).root

/** Decodes a body into the JSON form of OTLP, in which ids are hexadecimal. */
const decode = (signal: string, contentType: string, body: Uint8Array): Body => {
  if (contentType === "application/json") return JSON.parse(new TextDecoder().decode(body))
  const type = types.lookupType({ traces: "Traces", metrics: "Metrics", logs: "Logs" }[signal]!)
  const message = type.toObject(type.decode(body), { longs: String, bytes: Uint8Array, arrays: true })
  return JSON.parse(
    JSON.stringify(message, (_, value) => value instanceof Uint8Array ? Buffer.from(value).toString("hex") : value)
  )
}

const bodyOf = async (request: IncomingMessage): Promise<Uint8Array> => {
  const chunks: Array<Uint8Array> = []
  for await (const chunk of request) chunks.push(chunk as Uint8Array)
  return Buffer.concat(chunks)
}

/** Starts the receiver on a free port; it ends with the scope. */
export const start = Effect.gen(function*() {
  const received: Received = { contentTypes: new Set(), resources: [], spans: [], metrics: [], logs: [] }
  const problems: Array<unknown> = []
  const accept = (signal: string, contentType: string, body: Uint8Array) => {
    received.contentTypes.add(contentType)
    const { resourceLogs = [], resourceMetrics = [], resourceSpans = [] } = decode(signal, contentType, body)
    for (const { resource, scopeSpans } of resourceSpans) {
      received.resources.push(resource.attributes)
      for (const { spans } of scopeSpans) received.spans.push(...spans)
    }
    for (const { scopeMetrics } of resourceMetrics) {
      for (const { metrics } of scopeMetrics) received.metrics.push(...metrics)
    }
    for (const { scopeLogs } of resourceLogs) for (const { logRecords } of scopeLogs) received.logs.push(...logRecords)
  }
  const server = createServer((request, response) => {
    void bodyOf(request).then((body) =>
      accept(request.url?.slice("/v1/".length) ?? "", request.headers["content-type"] ?? "", body)
    ).then(
      () => response.writeHead(200, { "content-type": "application/json" }).end("{}"),
      (problem: unknown) => {
        problems.push(problem)
        response.writeHead(400).end()
      }
    )
  })
  yield* Effect.acquireRelease(
    Effect.callback<void>((resume) => {
      server.listen(0, "127.0.0.1", () => resume(Effect.void))
    }),
    () =>
      Effect.callback<void>((resume) => {
        server.close(() => resume(Effect.void))
        server.closeAllConnections()
      })
  )
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, received, problems }
})
