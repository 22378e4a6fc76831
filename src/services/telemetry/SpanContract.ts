/**
 * The names of the spans and of their attributes. `npm run generate` writes docs/metrics.md from them, and a test compares
 * them with the spans that a worker makes.
 */

/** The names of the spans. */
export const names = {
  append: "append",
  batch: (projection: string): string => `process ${projection}`,
  switch: "switch generation",
  leave: "leave"
}

interface Attribute {
  readonly name: string
  readonly meaning: string
}

const own = (suffix: string, meaning: string): Attribute => ({ name: `pupsourcing.${suffix}`, meaning })

/** Of OpenTelemetry's semantic conventions for messaging, which are not stable yet. */
const ofMessaging = (suffix: string, meaning: string): Attribute => ({ name: `messaging.${suffix}`, meaning })

export const attributes = {
  replicaSet: own("replica_set", "replica set of the worker"),
  worker: own("worker", "id of the worker"),
  generation: own("generation", "generation in which the range was claimed, or to which the worker switches"),
  projection: own("projection", "name of the projection"),
  range: own("range", "range of the hash space"),
  firstPosition: own("position.first", "position of the first event"),
  lastPosition: own("position.last", "position of the last event"),
  position: own("position", "position of an event, or of a range"),
  committed: own(
    "batch.committed",
    "number of events that were handled and committed; fewer than the events of the batch if it ended early"
  ),
  members: own("members", "number of workers in the generation"),
  partition: own("partition", "this worker's partition of the generation, -1 without one"),
  reasons: own("reasons", "why the generation differs from the one before"),
  formed: own("formed", "whether this worker has formed the new generation"),
  stopped: own("ranges.stopped", "number of ranges whose processing this worker has stopped"),
  claimed: own("ranges.claimed", "number of ranges that this worker has started to process"),
  errorType: { name: "error.type", meaning: "the error's tag, if the operation failed" },
  system: ofMessaging("system", "`pupsourcing`"),
  operationName: ofMessaging("operation.name", "`process` or `append`"),
  operationType: ofMessaging("operation.type", "`process` or `send`"),
  messageCount: ofMessaging("batch.message_count", "number of events"),
  consumerGroup: ofMessaging("consumer.group.name", "the projection"),
  partitionId: ofMessaging("destination.partition.id", "the range"),
  clientId: ofMessaging("client.id", "the worker"),
  messageId: ofMessaging("message.id", "id of an event")
} as const satisfies Record<string, Attribute>

/** The attributes of every span of messaging. */
export const messaging = (operation: string, type: "process" | "send"): Record<string, unknown> => ({
  [attributes.system.name]: "pupsourcing",
  [attributes.operationName.name]: operation,
  [attributes.operationType.name]: type
})

export interface Entry {
  /** The span's name, as the documentation shows it. */
  readonly name: string
  readonly kind: "consumer" | "internal" | "producer"
  readonly meaning: string
  readonly attributes: ReadonlyArray<Attribute>
  /** Attributes that only some spans have. */
  readonly sometimes: ReadonlyArray<Attribute>
  readonly links?: { readonly meaning: string; readonly attributes: ReadonlyArray<Attribute> }
  readonly events?: { readonly meaning: string; readonly attributes: ReadonlyArray<Attribute> }
}

const a = attributes
const ofEveryMessage = [a.system, a.operationName, a.operationType, a.messageCount]
const rangeEvents = {
  meaning: "`RangeStopped` and `RangeClaimed` for each range that stops or starts meanwhile",
  attributes: [a.projection, a.range, a.position]
}

export const entries: ReadonlyArray<Entry> = [
  {
    name: names.batch("<projection>"),
    kind: "consumer",
    meaning:
      "An attempt to handle and commit a batch: a transaction in which the handler runs for each event, or once for all of them. It begins a trace of its own, and the spans of handlers are its children.",
    attributes: [
      a.replicaSet,
      a.worker,
      a.generation,
      a.projection,
      a.range,
      a.firstPosition,
      a.lastPosition,
      ...ofEveryMessage,
      a.consumerGroup,
      a.partitionId,
      a.clientId
    ],
    sometimes: [a.committed, a.errorType],
    links: {
      meaning: "the spans or traces in which the events were appended, at most 128",
      attributes: [a.messageId, a.position]
    }
  },
  {
    name: names.switch,
    kind: "internal",
    meaning:
      "A hand-over: from the time at which the worker reads a new generation until it processes all of its ranges in it. Interrupted if another generation follows before.",
    attributes: [
      a.replicaSet,
      a.worker,
      a.generation,
      a.members,
      a.partition,
      a.reasons,
      a.formed,
      a.stopped,
      a.claimed
    ],
    sometimes: [a.errorType],
    events: rangeEvents
  },
  {
    name: names.leave,
    kind: "internal",
    meaning: "A worker that stops: its ranges drain, then it unregisters.",
    attributes: [a.replicaSet, a.worker, a.formed, a.stopped, a.claimed],
    sometimes: [],
    events: rangeEvents
  },
  {
    name: names.append,
    kind: "producer",
    meaning: "A call of `EventStore.append`. The events store the id of its trace.",
    attributes: ofEveryMessage,
    sometimes: [a.firstPosition, a.lastPosition, a.errorType]
  }
]
