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

/** A range that a worker claims after another worker. */
export interface Succession {
  readonly projection: string
  readonly range: HashRange.HashRange
  /** Whether the other worker had released the range, or died. */
  readonly kind: "handOver" | "takeover"
  /** Milliseconds since the release, or since the last heartbeat of the dead worker. */
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
      const afterMillis = isReleased ? age?.unchangedForMillis : age?.ownerSilentForMillis
      if (range === undefined || afterMillis === undefined) return []
      return [{
        projection: row.projection,
        range,
        kind: isReleased ? "handOver" : "takeover",
        afterMillis: Math.max(0, afterMillis)
      }]
    })
  )
