/**
 * The proof that a position is settled: pure, from what one connection has seen.
 *
 * `nextval` takes a lock on the sequence and keeps it until the transaction's end is visible to others. So whoever may
 * still commit an event at or below a position that somebody has seen is among the holders of that lock in any later
 * look; when all holders of one such look are gone, what is missing at or below that position was rolled back.
 *
 * @since 0.1.0
 */

/**
 * A transaction that has drawn positions and is not over.
 *
 * @category models
 * @since 0.1.0
 */
export interface Holder {
  /**
   * `virtualtransaction` of `pg_locks`: `backend/number`. A prepared transaction keeps it, or shows `-1/xid` when it was
   * read from disk at a start of the server.
   */
  readonly id: string
  /** Absent for a prepared transaction. */
  readonly pid: number | undefined
  readonly application: string | undefined
}

/**
 * A holder that holds readers back.
 *
 * @category models
 * @since 0.1.0
 */
export interface Writer extends Holder {
  /** `Clock.monotonicTimeNanos` when it was first seen to do so. */
  readonly since: bigint
  reported: boolean
}

/**
 * Committed positions above `from` up to `to`, without a gap. A reader that has passed `from` may pass all of them,
 * regardless of the mark: nothing can still be committed in between.
 *
 * @category models
 * @since 0.1.0
 */
export interface Run {
  readonly from: bigint
  readonly to: bigint
}

interface Proof {
  /** A position that was visible before the holders were looked at. */
  readonly head: bigint
  holders: Set<string>
}

/**
 * @category models
 * @since 0.1.0
 */
export interface Settled {
  /** Everything at or below it is settled. */
  mark: bigint
  /** Whether a proof has succeeded or no gap was open; before that, the mark is only the end of the first run. */
  proved: boolean
  /** Beyond the mark, with gaps between them, in the order of their positions. */
  runs: ReadonlyArray<Run>
  /** In the order of their heads. */
  proofs: Array<Proof>
  readonly writers: Map<string, Writer>
}

/**
 * @category constructors
 * @since 0.1.0
 */
export const make = (): Settled => ({ mark: 0n, proved: false, runs: [], proofs: [], writers: new Map() })

/** More heads than this are not followed at once: the next one after those will do. */
const proofCapacity = 64

const isPrepared = (id: string): boolean => id.startsWith("-1/")

/** A transaction that has ended shows number 0 for a moment; so does one that is just being prepared. */
const isEnding = (id: string): boolean => id.endsWith("/0")

/**
 * The position up to which a reader that has passed `after` may read: the mark, or the end of the run that contains
 * `after`. The checkpoint of one reader proves nothing to other readers: it may have been set by hand.
 *
 * @category utils
 * @since 0.1.0
 */
export const reached = (self: Settled, after: bigint): bigint =>
  self.runs.find(({ from, to }) => from <= after && after < to)?.to ?? self.mark

/**
 * The highest position that is known to be committed.
 *
 * @category utils
 * @since 0.1.0
 */
export const highest = (self: Settled): bigint => self.runs[self.runs.length - 1]?.to ?? self.mark

/**
 * Adds runs, each read by one statement. Returns whether a gap is open between the mark and `head`, the
 * highest position that is visible.
 *
 * @category utils
 * @since 0.1.0
 */
export const see = (self: Settled, runs: ReadonlyArray<Run>, head: bigint): boolean => {
  self.runs = joined([...self.runs, ...runs.filter(({ from, to }) => from < to)])
  raise(self, self.mark)
  if (self.mark < head) return true
  self.proved = true
  return false
}

const joined = (runs: ReadonlyArray<Run>): ReadonlyArray<Run> => {
  const apart: Array<Run> = []
  for (const run of runs.toSorted((one, other) => one.from < other.from ? -1 : one.from > other.from ? 1 : 0)) {
    const last = apart[apart.length - 1]
    if (last === undefined || run.from > last.to) apart.push(run)
    else if (run.to > last.to) apart[apart.length - 1] = { from: last.from, to: run.to }
  }
  return apart
}

/**
 * Takes in the holders that a statement saw that began after `head` was seen.
 *
 * @category utils
 * @since 0.1.0
 */
export const prove = (self: Settled, head: bigint, holders: ReadonlyArray<Holder>): void => {
  const present = new Set(holders.map(({ id }) => id))
  for (const proof of self.proofs) {
    const remaining = new Set<string>()
    let vanished = false
    let ended = false
    for (const id of proof.holders) {
      if (present.has(id)) remaining.add(id)
      else if (!isPrepared(id)) {
        vanished = true
        ended = ended || isEnding(id)
      }
    }
    // Should a holder that is being prepared go on under another id, any such id may be one of those that vanished; what
    // seemed to be ending may go on under any id.
    if (vanished) {
      for (const { id, pid } of holders) {
        if (isPrepared(id) || isEnding(id) || (ended && pid === undefined)) remaining.add(id)
      }
    }
    proof.holders = remaining
  }
  for (const proof of self.proofs) {
    if (proof.holders.size === 0) {
      self.proved = true
      raise(self, proof.head)
    }
  }
  const last = self.proofs[self.proofs.length - 1]
  if (head > self.mark && head > (last?.head ?? 0n)) {
    if (present.size === 0) {
      self.proved = true
      raise(self, head)
    } else if (self.proofs.length < proofCapacity) {
      self.proofs.push({ head, holders: present })
    }
  }
}

const raise = (self: Settled, mark: bigint): void => {
  if (mark > self.mark) self.mark = mark
  self.mark = self.runs.find(({ from, to }) => from <= self.mark && self.mark < to)?.to ?? self.mark
  self.runs = self.runs.filter(({ to }) => to > self.mark)
  self.proofs = self.proofs.filter((proof) => proof.head > self.mark)
}

/**
 * Brings the list of writers that hold readers back up to date. Gives those that are no longer among them.
 *
 * @category utils
 * @since 0.1.0
 */
export const track = (self: Settled, holders: ReadonlyArray<Holder>, now: bigint): ReadonlyArray<Writer> => {
  const waited = new Set(self.proofs.flatMap((proof) => [...proof.holders]))
  for (const holder of holders) {
    if (!waited.has(holder.id)) continue
    const known = self.writers.get(holder.id)
    // The same transaction may have become a prepared one, which has no process.
    self.writers.set(holder.id, { ...holder, since: known?.since ?? now, reported: known?.reported ?? false })
  }
  const over = [...self.writers.values()].filter(({ id }) => !waited.has(id))
  for (const { id } of over) self.writers.delete(id)
  return over
}
