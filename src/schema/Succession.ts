/** Successions: which of the claimed ranges another worker had before, and for how long they had no live owner. */
import * as Checkpoint from "./Checkpoint.ts"
import * as HashRange from "./HashRange.ts"

/** What a view shows of a row, by the database's clock. */
export interface RowAge {
  /** Milliseconds since the row was last changed. */
  readonly unchangedForMillis: number
  /** Milliseconds since the last heartbeat of the row's owner; undefined without an owner, or if it is not known. */
  readonly ownerSilentForMillis: number | undefined
}

/** A range that a worker owns after another worker. */
export interface Succession {
  readonly projection: string
  readonly range: HashRange.HashRange
  /** Whether the other worker had released the range or handed it over, or had died. */
  readonly kind: "handOver" | "takeover"
  /** Milliseconds since the release or the hand-over, or since the last heartbeat of the dead worker. */
  readonly afterMillis: number
}

/** Returns the successions among the claims. `rows` are the rows before, and `ages` are by `Checkpoint.key`. */
export const of = (
  claims: ReadonlyArray<Checkpoint.Held>,
  rows: ReadonlyArray<Checkpoint.Checkpoint>,
  ages: ReadonlyMap<string, RowAge>
): ReadonlyArray<Succession> =>
  claims.flatMap((claim) =>
    rows.flatMap((row): ReadonlyArray<Succession> => {
      if (row.projection !== claim.projection || Checkpoint.hasSameOwner(row, claim)) return []
      const range = HashRange.cut(row.range, claim.range).inside
      const age = ages.get(Checkpoint.key(row))
      const isReleased = row.fence === undefined
      return make(
        row,
        range,
        isReleased ? "handOver" : "takeover",
        isReleased ? age?.unchangedForMillis : age?.ownerSilentForMillis
      )
    })
  )

/** Returns the succession for a row that another worker has written with this worker's fence. */
export const ofHandedOver = (
  row: Checkpoint.Checkpoint,
  ages: ReadonlyMap<string, RowAge>
): ReadonlyArray<Succession> => make(row, row.range, "handOver", ages.get(Checkpoint.key(row))?.unchangedForMillis)

const make = (
  { projection }: Checkpoint.Checkpoint,
  range: HashRange.HashRange | undefined,
  kind: Succession["kind"],
  afterMillis: number | undefined
): ReadonlyArray<Succession> =>
  range === undefined || afterMillis === undefined
    ? []
    : [{ projection, range, kind, afterMillis: Math.max(0, afterMillis) }]
