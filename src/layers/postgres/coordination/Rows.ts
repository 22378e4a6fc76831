/**
 * Rows of the orchestrator's tables as the database returns them, and their conversions.
 *
 * Whole views are read as JSON in one statement. There, 64-bit numbers are transferred as text, because a JSON number
 * is a double.
 */
import type * as Checkpoint from "../../../schema/Checkpoint.ts"
import type * as Generation from "../../../schema/Generation.ts"
import type { HaltRequest } from "../../../schema/ParkedEvent.ts"

/** A row of the checkpoints table, with 64-bit numbers as text and times in milliseconds since 1970. */
export interface CheckpointRow {
  readonly projection_name: string
  readonly range_start: number
  readonly range_end: number
  readonly position: string
  readonly replica_set: string
  readonly worker_id: string | null
  readonly incarnation: string | null
  readonly generation_id: string | null
  readonly filter: string
  readonly halted_since: number | null
  readonly halted_error: string | null
  readonly halted_position: string | null
  readonly halted_event_id: string | null
  readonly halted_hash: number | null
  readonly halted_incarnation: string | null
  readonly halted_request: HaltRequest | null
}

/** SQL: a `CheckpointRow` as JSON, from a row of the checkpoints table with the alias `c`. */
export const checkpointJson = `json_build_object(
  'projection_name', c.projection_name, 'range_start', c.range_start, 'range_end', c.range_end,
  'position', c.position::text, 'replica_set', c.replica_set, 'worker_id', c.worker_id,
  'incarnation', c.incarnation::text, 'generation_id', c.generation_id::text, 'filter', c.filter,
  'halted_since', floor(extract(epoch FROM c.halted_since) * 1000), 'halted_error', c.halted_error,
  'halted_position', c.halted_position::text, 'halted_event_id', c.halted_event_id, 'halted_hash', c.halted_hash,
  'halted_incarnation', c.halted_incarnation::text, 'halted_request', c.halted_request)`

/** SQL: locks rows `c` of the checkpoints in key order, except those that another transaction has locked. */
export const lockInKeyOrder = `ORDER BY c.projection_name COLLATE "C", c.range_start FOR UPDATE OF c SKIP LOCKED`

/** Converts a row into a checkpoint. */
export const toCheckpoint = (row: CheckpointRow): Checkpoint.Checkpoint => ({
  projection: row.projection_name,
  range: { start: row.range_start, end: row.range_end },
  position: BigInt(row.position),
  replicaSet: row.replica_set,
  fence: row.worker_id === null || row.incarnation === null || row.generation_id === null ? undefined : {
    workerId: row.worker_id,
    incarnation: BigInt(row.incarnation),
    generationId: BigInt(row.generation_id)
  },
  filter: row.filter,
  halt: row.halted_since === null ? undefined : {
    since: new Date(row.halted_since),
    error: row.halted_error ?? "",
    position: BigInt(row.halted_position ?? "0"),
    eventId: row.halted_event_id ?? "",
    hash: row.halted_hash ?? 0,
    incarnation: BigInt(row.halted_incarnation ?? "0"),
    ...(row.halted_request === null ? {} : { request: row.halted_request })
  }
})

/** SQL: the column definitions with which `json_to_recordset` reads the result of `checkpointRecords`. */
export const checkpointRecord =
  `(projection_name text, range_start bigint, range_end bigint, position bigint, replica_set text, worker_id text,
    incarnation bigint, generation_id bigint, filter text, halted_since timestamptz, halted_error text,
    halted_position bigint, halted_event_id text, halted_hash bigint, halted_incarnation bigint,
    halted_request text)`

/** Checkpoints as JSON for `json_to_recordset`: one parameter, regardless of which values are null. */
export const checkpointRecords = (rows: ReadonlyArray<Checkpoint.Checkpoint>): string =>
  JSON.stringify(rows.map((row) => ({
    projection_name: row.projection,
    range_start: row.range.start,
    range_end: row.range.end,
    position: String(row.position),
    replica_set: row.replicaSet,
    worker_id: row.fence?.workerId ?? null,
    incarnation: row.fence === undefined ? null : String(row.fence.incarnation),
    generation_id: row.fence === undefined ? null : String(row.fence.generationId),
    filter: row.filter,
    halted_since: row.halt?.since.toISOString() ?? null,
    halted_error: row.halt?.error ?? null,
    halted_position: row.halt === undefined ? null : String(row.halt.position),
    halted_event_id: row.halt?.eventId ?? null,
    halted_hash: row.halt?.hash ?? null,
    halted_incarnation: row.halt === undefined ? null : String(row.halt.incarnation),
    halted_request: row.halt?.request ?? null
  })))

/** A member as it is stored in a generation's row. */
export interface MemberRow {
  readonly workerId: string
  readonly incarnation: string
  readonly projections: ReadonlyArray<string>
}

/** A row of the generations table. */
export interface GenerationRow {
  readonly generation_id: string
  readonly members: ReadonlyArray<MemberRow>
}

/** Converts a row into a generation. */
export const toGeneration = (replicaSet: string, row: GenerationRow): Generation.Generation => ({
  replicaSet,
  generationId: BigInt(row.generation_id),
  members: row.members.map((member) => ({ ...member, incarnation: BigInt(member.incarnation) }))
})

/** The members of a generation as JSON, in the form in which they are stored. */
export const memberRecords = (generation: Generation.Generation): string =>
  JSON.stringify(generation.members.map((member): MemberRow => ({
    workerId: member.workerId,
    incarnation: String(member.incarnation),
    projections: member.projections
  })))

/** A registration of a worker that has not stopped. */
export interface WorkerRow {
  readonly replica_set: string
  readonly worker_id: string
  readonly incarnation: string
  /** Milliseconds since 1970. */
  readonly started_at: number
  readonly projections: ReadonlyArray<string>
  /** Milliseconds since the last heartbeat, by the database's clock. */
  readonly silent: number
  /** The time of that heartbeat, as text, for comparison only. */
  readonly beat: string
  readonly presence_key: number | null
  /** Whether a session holds the exclusive lock of that key. */
  readonly present: boolean
  readonly host: string | null
  readonly pid: number | null
}
