/**
 * What each activity of a worker produces: its log lines, its counters and histograms, and its span event, in one table.
 * The gauges follow from the health: see `Gauges`.
 *
 * Not in the table: failures that are retried, which `RetryLog` summarizes, and errors, which are logged once where they
 * are handled.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as LogLevel from "effect/LogLevel"
import * as Metric from "effect/Metric"
import type { Activity, FailedEvent } from "../../schema/Activity.ts"
import { ProjectionHalted } from "../../schema/Errors.ts"
import type { Generation } from "../../schema/Generation.ts"
import * as HashRange from "../../schema/HashRange.ts"
import { sentence } from "../../schema/Text.ts"
import * as Metrics from "./Metrics.ts"
import { tryTracer } from "./Spans.ts"

type Labels = Readonly<Record<string, string>>

interface Outputs<A> {
  readonly log?: (activity: A) => ReadonlyArray<Line>
  readonly metrics?: (activity: A, labels: Labels) => ReadonlyArray<Effect.Effect<void>>
  /**
   * The attributes of an event of the span in which the worker runs, if there is one. Only for rare activities, because
   * a span keeps its events in memory until it ends.
   */
  readonly span?: (activity: A) => Readonly<Record<string, unknown>>
}

type Line = readonly [level: LogLevel.Severity, text: string]

type Table = { readonly [Tag in Activity["_tag"]]: Outputs<Extract<Activity, { readonly _tag: Tag }>> }

const table: Table = {
  WorkerStarting: {
    log: () => [["Info", "Starting orchestrator..."]],
    metrics: ({ projections }, labels) => [
      ...startingAtZero.ofWorker.map((metric) => start(metric, labels)),
      ...projections.flatMap((projection) =>
        startingAtZero.ofProjection.map((metric) => start(metric, { ...labels, projection }))
      )
    ]
  },
  WorkerRegistered: {
    log: ({ registration }) => [["Info", `Worker registered: ${registration.workerId}`]],
    metrics: (_, labels) => [add(Metrics.workersRegisteredTotal, labels)],
    span: ({ registration }) => ({ worker: registration.workerId })
  },
  GenerationChanged: {
    log: ({ generation, partition, reasons }) => [
      ...reasons.map((reason): Line => ["Info", `${reasonTexts[reason]}, reconfiguring...`]),
      ...(reasons.length === 0 ? [] : restarting),
      ...(partition < 0 ? [] : [["Info", `Assigned partition: ${partition} of ${generation.members.length}`] as const]),
      ["Info", summaryOf(generation, partition)]
    ],
    metrics: ({ formedByThisWorker }, labels) => [
      add(Metrics.reconfigurationTotal, labels),
      add(Metrics.generationsTotal, labels, formedByThisWorker ? 1 : 0)
    ],
    span: ({ generation, partition }) => ({ generation: String(generation.generationId), partition })
  },
  AssignmentReached: {
    log: ({ isLeftAlone }) => [["Info", isLeftAlone ? "Processing all events now..." : "Processing events..."]],
    metrics: ({ after }, labels) => [
      record(Metrics.coordinationDurationSeconds, labels, Duration.toSeconds(after))
    ],
    span: ({ generation }) => ({ generation: String(generation.generationId) })
  },
  RangeHandedOver: {
    metrics: ({ after }, labels) => [record(Metrics.handOverSeconds, labels, Duration.toSeconds(after))]
  },
  RangeTakenOver: {
    metrics: ({ after }, labels) => [record(Metrics.takeoverSeconds, labels, Duration.toSeconds(after))]
  },
  RangeClaimed: {
    metrics: ({ projection }, labels) => [add(Metrics.partitionAssignmentsTotal, { ...labels, projection })]
  },
  BatchCommitted: {
    metrics: ({ events, projection, took }, labels) => [
      add(Metrics.eventsProcessedTotal, { ...labels, projection }, events),
      record(Metrics.batchEvents, { ...labels, projection }, events),
      record(
        Metrics.eventProcessingDurationSeconds,
        { ...labels, projection },
        Duration.toSeconds(took) / Math.max(1, events)
      )
    ]
  },
  BatchRetried: {
    metrics: ({ projection }, labels) => [add(Metrics.projectionErrorsTotal, { ...labels, projection })]
  },
  HandlerRunsLong: {
    log: ({ eventId, eventType, events, position, projection, range, runsFor, startedAt }) => [[
      "Warn",
      `The handler of projection "${projection}" in range ${HashRange.format(range)} has run for ${
        Math.floor(Duration.toSeconds(runsFor))
      } seconds, since ${startedAt.toISOString()}. It was called with ${
        events === 1 ? "event" : `${events} events, the first of them`
      } ${eventId} at position ${position}, type ${eventType}. Its range waits meanwhile. Check for a request without a time limit, or a lock that the handler waits for.`
    ]],
    span: eventAttributes
  },
  RangeHalted: {
    log: ({ halt, projection, range, stack }) => [[
      "Error",
      `${new ProjectionHalted({ ...halt, projection, range: HashRange.format(range) }).message}${stack}`
    ]],
    metrics: ({ projection }, labels) => [
      add(Metrics.projectionErrorsTotal, { ...labels, projection }),
      add(Metrics.projectionHaltsTotal, { ...labels, projection })
    ],
    span: ({ halt, projection, range }) => eventAttributes({ ...halt, projection, range })
  },
  EventSkipped: {
    log: (
      skipped
    ) => [[
      "Error",
      `${describeEvent(skipped)} is skipped: its effects are missing from the read model.${skipped.stack}`
    ]],
    metrics: ({ projection, requested }, labels) => [
      add(Metrics.eventsSkippedTotal, { ...labels, projection }),
      add(Metrics.projectionErrorsTotal, { ...labels, projection }, requested ? 0 : 1)
    ],
    span: eventAttributes
  },
  EventParked: {
    log: (parked) => [[
      "Error",
      `${
        describeEvent(parked)
      } is parked, and later events with its key queue behind it. Fix the cause, then retry the parked event.${parked.stack}`
    ]],
    metrics: ({ projection }, labels) => [
      add(Metrics.projectionErrorsTotal, { ...labels, projection }),
      add(Metrics.eventsParkedTotal, { ...labels, projection })
    ],
    span: eventAttributes
  },
  EventsQueued: {
    metrics: ({ events, projection }, labels) => [add(Metrics.eventsParkedTotal, { ...labels, projection }, events)]
  },
  ParkedEventRemoved: {
    log: ({ eventId, position, projection, range, request }) => [[
      "Info",
      `Event ${eventId} at position ${position}, which projection "${projection}" had parked in range ${
        HashRange.format(range)
      }, was ${request === "drop" ? "dropped" : "handled"}`
    ]]
  },
  ParkedEventFailed: {
    log: (failed) => [["Error", `${describeEvent(failed)} stays parked: its retry has failed.${failed.stack}`]],
    metrics: ({ projection }, labels) => [add(Metrics.projectionErrorsTotal, { ...labels, projection })],
    span: eventAttributes
  },
  CaughtUp: {},
  RangeStopped: {},
  ProjectionGivenUp: {
    log: ({ error, remaining }) => [[
      "Warn",
      `${error.message} Until then ${
        remaining.length === 0
          ? "this worker stays registered without a projection"
          : `this worker continues with its other projections: ${remaining.join(", ")}`
      }.`
    ]],
    span: ({ projection }) => ({ projection })
  },
  ReplicaSetSampled: {},
  ConnectionsChanged: {},
  HeartbeatRenewed: {
    metrics: ({ took }, labels) => [record(Metrics.heartbeatLatencySeconds, labels, Duration.toSeconds(took))]
  },
  Suspended: {
    log: () => [[
      "Warn",
      "The worker could not renew its heartbeat in time: it stops its projections until it can, because other workers may take over"
    ]],
    span: () => ({})
  },
  Resumed: {
    log: () => [["Info", "The heartbeat is renewed again: the worker resumes its projections"]],
    span: () => ({})
  },
  DeadWorkersEvicted: {
    metrics: ({ workers }, labels) => [add(Metrics.staleWorkersCleanedTotal, labels, workers.length)],
    span: ({ workers }) => ({ workers: workers.map(({ workerId }) => workerId).join(", ") })
  },
  WorkerEvicted: {
    // After the other error the worker does not register again: the run fails, and that failure is logged.
    log: ({ error }) => error._tag === "WorkerEvicted" ? [["Warn", error.message]] : [],
    span: ({ registration }) => ({ worker: registration.workerId })
  },
  WorkerStopping: {},
  WorkerLeaving: {
    log: () => [["Info", "Unregistering worker..."]]
  },
  WorkerLeft: {
    metrics: ({ formedGeneration }, labels) => [add(Metrics.generationsTotal, labels, formedGeneration ? 1 : 0)],
    span: ({ registration }) => ({ worker: registration.workerId })
  },
  WorkerStopped: {
    // A failure is logged by the run.
    log: ({ failure }) => failure === undefined ? [["Info", "Shutdown complete"]] : []
  },
  Missed: {}
}

function describeEvent({ error, eventId, position, projection, range }: FailedEvent): string {
  return `Event ${eventId} at position ${position} of projection "${projection}" in range ${HashRange.format(range)}, ${
    sentence(error)
  } It`
}

function eventAttributes({ eventId, position, projection, range }: Omit<FailedEvent, "error" | "stack">) {
  return { projection, range: HashRange.format(range), position: String(position), event: eventId }
}

const outputsOf = <A extends Activity>(activity: A) => table[activity._tag] as Outputs<A>

/** The log lines of an activity, and the attributes of its span event; undefined if it has none. */
export const describe = <A extends Activity>(activity: A) => {
  const { log, span } = outputsOf(activity)
  return { lines: log?.(activity) ?? [], span: span?.(activity) }
}

/** Logs an activity, updates the metrics, and adds the event to the current span. */
export const emit = <A extends Activity>(replicaSet: string, activity: A): Effect.Effect<void> => {
  const { lines, span } = describe(activity)
  const steps = [
    ...lines.map(([level, text]) => Effect.logWithLevel(level)(text)),
    ...(outputsOf<A>(activity).metrics?.(activity, { replica_set: replicaSet }) ?? []),
    ...(span === undefined ? [] : [addSpanEvent(activity._tag, span)])
  ]
  return Effect.all(steps, { discard: true })
}

const reasonTexts = {
  WorkerJoined: "New worker detected",
  WorkerLeft: "Worker left",
  WorkerLost: "Worker lost",
  ProjectionsChanged: "Projections of the replica set changed"
} as const

const restarting: ReadonlyArray<Line> = [
  ["Info", "Stopping current generation"],
  ["Info", "Restarting with new configuration..."]
]

const summaryOf = ({ generationId, members }: Generation, partition: number): string => {
  const workers = members.length === 1 ? "1 worker" : `${members.length} workers`
  return `Generation ${generationId} has ${workers}; this worker has ${
    partition < 0 ? "no partition" : `partition ${partition} of ${members.length}`
  }.`
}

const add = (counter: Metric.Counter<number>, labels: Labels, by = 1) =>
  Metric.update(Metric.withAttributes(counter, labels), by)

const record = (histogram: Metric.Histogram<number>, labels: Labels, value: number) =>
  Metric.update(Metric.withAttributes(histogram, labels), value)

/** The counters, and the histograms, which contain counters. Each starts at 0. */
const startingAtZero: {
  readonly [K in "ofProjection" | "ofWorker"]: ReadonlyArray<Metric.Counter<number> | Metric.Histogram<number>>
} = {
  ofWorker: [
    Metrics.generationsTotal,
    Metrics.workersRegisteredTotal,
    Metrics.reconfigurationTotal,
    Metrics.staleWorkersCleanedTotal,
    Metrics.coordinationDurationSeconds,
    Metrics.handOverSeconds,
    Metrics.takeoverSeconds,
    Metrics.heartbeatLatencySeconds
  ],
  ofProjection: [
    Metrics.partitionAssignmentsTotal,
    Metrics.eventsProcessedTotal,
    Metrics.projectionErrorsTotal,
    Metrics.projectionHaltsTotal,
    Metrics.eventsSkippedTotal,
    Metrics.eventsParkedTotal,
    Metrics.eventProcessingDurationSeconds,
    Metrics.batchEvents
  ]
}

/** Reading a metric creates its series. */
const start = (metric: Metric.Counter<number> | Metric.Histogram<number>, labels: Labels): Effect.Effect<void> =>
  Effect.asVoid(Metric.value(Metric.withAttributes(metric as Metric.Metric<number, unknown>, labels)))

const addSpanEvent = (name: string, attributes: Readonly<Record<string, unknown>>) =>
  Effect.flatMap(Effect.option(Effect.currentSpan), (span) =>
    span._tag === "None"
      ? Effect.void
      : tryTracer(Effect.map(Clock.currentTimeNanos, (now) => span.value.event(name, now, attributes))))
