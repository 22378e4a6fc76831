/** What the harness passes to a worker process, in the environment variable `FAULTS_WORKER`. */
import { Schema } from "effect"
import { Misbehaviour } from "./Misbehaviour.ts"
import * as Projections from "./Projections.ts"

export const Instructions = Schema.fromJsonString(Schema.Struct({
  url: Schema.String,
  /** Where the library's own sessions connect, if not to `url`. */
  directUrl: Schema.optionalKey(Schema.String),
  /** The `application_name` of the pool on which batches run. */
  application: Schema.String,
  workerId: Schema.optionalKey(Schema.String),
  /** Replica sets in which this process takes part, each with the projections that it carries. */
  replicaSets: Schema.Array(Schema.Struct({
    name: Schema.String,
    projections: Schema.Array(Schema.String)
  })),
  /** Maximum connections of the pool. */
  poolSize: Schema.Int,
  /** Whether statements are prepared; a pooler may not support them. */
  prepare: Schema.Boolean,
  presence: Schema.Boolean,
  listen: Schema.Boolean,
  settings: Schema.Struct({
    /** Durations in milliseconds. */
    heartbeatInterval: Schema.Number,
    staleWorkerTimeout: Schema.Number,
    coordinationTimeout: Schema.Number,
    drainTimeout: Schema.Number,
    pollInterval: Schema.Number,
    batchSize: Schema.Int
  }),
  /** The duration of the handler of `per_aggregate` for each event, inside the batch's transaction. */
  delayMillis: Schema.Number,
  /** The event types of one of the projections; they may differ from those of its recorded progress. */
  filter: Schema.optionalKey(Schema.Struct({
    projection: Schema.String,
    eventTypes: Schema.Array(Schema.String),
    /** The event types of the filter that this one replaces. */
    replaces: Schema.Array(Schema.String)
  })),
  /** One of the projections handles typed events; the newest version that its event set declares. */
  typed: Schema.optionalKey(Schema.Struct({ projection: Schema.String, newest: Schema.Int })),
  /** How projections differ from the default ones, by name. */
  options: Schema.optionalKey(Schema.Record(Schema.String, Projections.Options)),
  /** What the handler of `journal` does in addition. */
  misbehaviour: Schema.optionalKey(Misbehaviour)
}))

export type Instructions = typeof Instructions.Type
