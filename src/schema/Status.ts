/**
 * The status of all replica sets at one moment: workers, and the progress of every projection. `Projections.status` reads
 * it; its JSON form is given by `Schema.toCodecJson(Status)`.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Schema from "effect/Schema"
import * as Struct from "effect/Struct"
import * as LagWindow from "./LagWindow.ts"

/**
 * A transaction that has drawn positions for events and has not ended. Readers wait for it.
 *
 * @category models
 * @since 0.1.0
 */
export const OpenWriter = Schema.Struct({
  /** Process id of its session; absent for a prepared transaction. */
  pid: Schema.optionalKey(Schema.Int),
  application: Schema.optionalKey(Schema.String),
  /** When the transaction began; absent if the role may not read it. */
  since: Schema.optionalKey(Schema.Date)
})

/**
 * @category models
 * @since 0.1.0
 */
export type OpenWriter = typeof OpenWriter.Type

/**
 * A worker that is registered.
 *
 * @category models
 * @since 0.1.0
 */
export const Worker = Schema.Struct({
  workerId: Schema.String,
  incarnation: Schema.BigInt,
  state: Schema.Literals(["pending", "ready", "running", "stopping"]),
  /** The generation on which it has reported; absent if there is none. It may be older than the newest one. */
  generationId: Schema.optionalKey(Schema.BigInt),
  /** Its partition of that generation; absent if it is not a member. */
  partition: Schema.optionalKey(Schema.Int),
  projections: Schema.Array(Schema.String),
  host: Schema.optionalKey(Schema.String),
  pid: Schema.optionalKey(Schema.Int),
  startedAt: Schema.Date,
  /** Time since its last heartbeat. */
  silentFor: Schema.Duration,
  /**
   * Whether a session holds the presence lock of its process. Absent if the worker uses none, or if the status was read
   * from a standby, where locks of the primary are not visible.
   */
  isPresent: Schema.optionalKey(Schema.Boolean)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Worker = typeof Worker.Type

/**
 * Why a range is halted, and since when.
 *
 * @category models
 * @since 0.1.0
 */
export const Halt = Schema.Struct({
  since: Schema.Date,
  /** Type, aggregate and version of the event, and the handler's error; never the payload. */
  error: Schema.String,
  position: Schema.BigInt,
  eventId: Schema.String,
  /** The request to the worker that owns the range, about the event; absent if there is none. */
  request: Schema.optionalKey(Schema.Literals(["retry", "skip"]))
})

/**
 * @category models
 * @since 0.1.0
 */
export type Halt = typeof Halt.Type

/**
 * The events that a range has not handled yet.
 *
 * @category models
 * @since 0.1.0
 */
export const Lag = Schema.Struct({
  /** The number of events that match the projection and belong to the range. */
  events: Schema.BigInt,
  /**
   * Whether `events` is extrapolated from the next 10,000 events, because no more are read; from fewer if more than 100
   * ranges lag.
   */
  isEstimate: Schema.Boolean,
  /**
   * When the first of them was appended. If none of the events that were read matches and further events follow, when
   * the last event that was read was appended: the first match comes after it, if there is any. Absent if there is
   * none, or if a `Date` cannot represent the time.
   */
  oldest: Schema.optionalKey(Schema.Date)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Lag = typeof Lag.Type

/**
 * The progress of a projection in one range of the hash space.
 *
 * @category models
 * @since 0.1.0
 */
export const Range = Schema.Struct({
  start: Schema.Int,
  end: Schema.Int,
  position: Schema.BigInt,
  /** The worker that owns the range; absent if there is none, or if it is not registered or its `isPresent` is false. */
  owner: Schema.optionalKey(Schema.String),
  lag: Lag,
  /** When its row was last changed: by progress, a halt, a claim or a release. By the database's clock. */
  changedAt: Schema.Date,
  halt: Schema.optionalKey(Halt)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Range = typeof Range.Type

/**
 * The parked events of a projection.
 *
 * @category models
 * @since 0.1.0
 */
export const Parked = Schema.Struct({
  events: Schema.Int,
  /** How many keys they have; all later events of these keys are parked, too. */
  keys: Schema.Int,
  /** When the first of them was parked. */
  oldest: Schema.Date
})

/**
 * @category models
 * @since 0.1.0
 */
export type Parked = typeof Parked.Type

/**
 * The progress of a projection. Its ranges tile the hash space.
 *
 * @category models
 * @since 0.1.0
 */
export const Projection = Schema.Struct({
  projection: Schema.String,
  /** The recorded filter and partition key, in the form of `EventFilter.canonical`. */
  filter: Schema.String,
  ranges: Schema.Array(Range),
  /** Absent if no event is parked. */
  parked: Schema.optionalKey(Parked)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Projection = typeof Projection.Type

/**
 * A generation of a replica set.
 *
 * @category models
 * @since 0.1.0
 */
export const Generation = Schema.Struct({
  generationId: Schema.BigInt,
  partitions: Schema.Int,
  formedAt: Schema.Date
})

/**
 * @category models
 * @since 0.1.0
 */
export type Generation = typeof Generation.Type

/**
 * A replica set: its registered workers and the projections whose progress it owns.
 *
 * @category models
 * @since 0.1.0
 */
export const ReplicaSet = Schema.Struct({
  replicaSet: Schema.String,
  /** The newest one; absent if none has been formed. */
  generation: Schema.optionalKey(Generation),
  workers: Schema.Array(Worker),
  projections: Schema.Array(Projection)
})

/**
 * @category models
 * @since 0.1.0
 */
export type ReplicaSet = typeof ReplicaSet.Type

/**
 * The status of all replica sets at one moment.
 *
 * @category models
 * @since 0.1.0
 */
export const Status = Schema.Struct({
  /** By the database's clock. */
  at: Schema.Date,
  /** The highest visible position; 0 in an empty store. */
  head: Schema.BigInt,
  /**
   * The transactions for which readers wait, the oldest first. They belong to no single range: all readers stop at the same
   * settled position, below the first position that an open transaction may still fill, whichever events a range
   * matches. A range waits for them if it has no `halt`, its owner is alive, and its lag does not become smaller.
   * Absent if the status was read from a standby, where transactions of the primary are not visible.
   */
  openWriters: Schema.optionalKey(Schema.Array(OpenWriter)),
  replicaSets: Schema.Array(ReplicaSet)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Status = typeof Status.Type

/**
 * A range that does not advance: it is halted, or no worker owns it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Problem {
  readonly problem: "halted" | "no owner"
  readonly replicaSet: string
  readonly projection: string
  readonly range: Range
}

/**
 * Returns the ranges that are halted or have no owner.
 *
 * @category utils
 * @since 0.1.0
 */
export const problems = (status: Status): ReadonlyArray<Problem> =>
  status.replicaSets.flatMap(({ projections, replicaSet }) =>
    projections.flatMap(({ projection, ranges }) =>
      ranges.flatMap((range): ReadonlyArray<Problem> =>
        range.halt !== undefined
          ? [{ problem: "halted", replicaSet, projection, range }]
          : range.owner === undefined
          ? [{ problem: "no owner", replicaSet, projection, range }]
          : []
      )
    )
  )

/** A row of progress, as a store reads it. */
interface Row extends Omit<Range, "lag" | "owner"> {
  readonly replicaSet: string
  readonly projection: string
  readonly filter: string
  readonly owner: Pick<Worker, "incarnation" | "workerId"> | undefined
  readonly window: LagWindow.LagWindow
}

/**
 * What a store reads, from which `make` makes the status.
 *
 * @internal
 */
export interface Reading extends Omit<Status, "replicaSets"> {
  readonly generations: ReadonlyArray<Generation & { readonly replicaSet: string }>
  readonly workers: ReadonlyArray<
    Omit<Worker, "silentFor"> & { readonly replicaSet: string; readonly silentMillis: number }
  >
  readonly rows: ReadonlyArray<Row>
  readonly parked: ReadonlyArray<Parked & { readonly projection: string }>
}

/**
 * Makes the status from what a store has read at one moment.
 *
 * @internal
 */
export const make = ({ generations, parked, rows, workers, ...rest }: Reading): Status => {
  const rowsOf = grouped(rows, ({ replicaSet }) => replicaSet)
  const workersOf = grouped(workers, ({ replicaSet }) => replicaSet)
  const parkedOf = new Map(parked.map((one) => [one.projection, one]))
  return {
    ...rest,
    replicaSets: [...new Set([...workersOf.keys(), ...rowsOf.keys()])].sort().map((replicaSet) => {
      const generation = generations.find((one) => one.replicaSet === replicaSet)
      const registered = workersOf.get(replicaSet) ?? []
      const owners = new Map(
        registered.filter(({ isPresent }) => isPresent !== false).map((worker) => [worker.incarnation, worker.workerId])
      )
      const projections = [...grouped(rowsOf.get(replicaSet) ?? [], ({ projection }) => projection)]
      return {
        replicaSet,
        ...(generation === undefined ? {} : { generation: Struct.omit(generation, ["replicaSet"]) }),
        workers: registered.map((worker) => ({
          ...Struct.omit(worker, ["replicaSet", "silentMillis"]),
          silentFor: Duration.millis(Math.max(0, worker.silentMillis))
        })),
        projections: projections.sort(([a], [b]) => a < b ? -1 : 1).map(([projection, own]) => {
          const ranges = [...own].sort((a, b) => a.start - b.start)
          const ownParked = parkedOf.get(projection)
          return {
            projection,
            filter: ranges[0]!.filter,
            ranges: ranges.map((row) => toRange(row, owners, rest.head)),
            ...(ownParked === undefined ? {} : { parked: Struct.omit(ownParked, ["projection"]) })
          }
        })
      }
    })
  }
}

/** Groups in one pass: a status can have hundreds of thousands of ranges. */
const grouped = <A>(values: ReadonlyArray<A>, key: (value: A) => string): ReadonlyMap<string, ReadonlyArray<A>> => {
  const groups = new Map<string, Array<A>>()
  for (const value of values) {
    const group = groups.get(key(value))
    if (group === undefined) groups.set(key(value), [value])
    else group.push(value)
  }
  return groups
}

/** `owners` are the ids of the registered workers whose presence has not ended, by their incarnation. */
const toRange = (row: Row, owners: ReadonlyMap<bigint, string>, head: bigint): Range => {
  const { changedAt, end, halt, owner, position, start, window } = row
  const isRegistered = owner !== undefined && owners.get(owner.incarnation) === owner.workerId
  return {
    start,
    end,
    position,
    ...(isRegistered ? { owner: owner.workerId } : {}),
    lag: LagWindow.lag(window, position, head),
    changedAt,
    ...(halt === undefined ? {} : { halt })
  }
}
