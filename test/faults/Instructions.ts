/**
 * What the harness tells a worker process, in the environment variable `FAULTS_WORKER`.
 */
import { Schema } from "effect"
import { Misbehaviour } from "./Misbehaviour.ts"

export const Instructions = Schema.fromJsonString(Schema.Struct({
  url: Schema.String,
  /** Shown as `application_name` of the pool on which batches run. */
  application: Schema.String,
  workerId: Schema.optionalKey(Schema.String),
  /** Replica sets that this process takes part in, each with the projections that it carries. */
  replicaSets: Schema.Array(Schema.Struct({
    name: Schema.String,
    projections: Schema.Array(Schema.String)
  })),
  /** Connections of the pool at most. */
  poolSize: Schema.Int,
  /** Whether statements are prepared; a pooler may not carry them. */
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
  /** Every event of `per_aggregate` takes this long, inside the batch's transaction. */
  delayMillis: Schema.Number,
  /** The event types of one of the projections, which may be other ones than those that its progress was made under. */
  filter: Schema.optionalKey(Schema.Struct({
    projection: Schema.String,
    eventTypes: Schema.Array(Schema.String),
    acceptFilterChange: Schema.Boolean
  })),
  /** What the handler of `journal` does besides. */
  misbehaviour: Schema.optionalKey(Misbehaviour)
}))

export type Instructions = typeof Instructions.Type
