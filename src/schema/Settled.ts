/**
 * Proves, without effects, that a position is settled, from the observations of one connection.
 *
 * `nextval` takes a lock on the sequence and keeps it until the transaction's end is visible to others. A transaction
 * that may still commit an event at or below a visible position is therefore among the holders of that lock in every
 * later look until it ends. Once all holders of one such look have ended, every position that is still missing at or
 * below the visible one was rolled back.
 *
 * @since 0.1.0
 */

/**
 * A transaction that has drawn positions and has not ended.
 *
 * @category models
 * @since 0.1.0
 */
export interface Holder {
  /**
   * `virtualtransaction` of `pg_locks`: `backend/number`. A prepared transaction keeps it, or has `-1/xid` if the
   * server read it from disk at startup.
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
  /** `Clock.monotonicTimeNanos` of the first look in which it held readers back. */
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
  /** A position that was visible before the holders were read. */
  readonly head: bigint
  holders: Set<string>
}

/**
 * What has been proved on one connection, and the proofs that are pending.
 *
 * @category models
 * @since 0.1.0
 */
export interface Settled {
  /** Everything at or below this position is settled. */
  mark: bigint
  /** Whether a proof has succeeded or no gap was open; before that, the mark is only the end of the first run. */
  proved: boolean
  /** The runs beyond the mark, separated by gaps, in position order. */
  runs: ReadonlyArray<Run>
  /** The pending proofs, ordered by their heads. */
  proofs: Array<Proof>
  readonly writers: Map<string, Writer>
}

/**
 * @category constructors
 * @since 0.1.0
 */
export const make = (): Settled => ({ mark: 0n, proved: false, runs: [], proofs: [], writers: new Map() })

/** Maximum number of pending proofs. Further heads are skipped; a later head covers them. */
const proofCapacity = 64

const isPrepared = (id: string): boolean => id.startsWith("-1/")

/** The number of a transaction is 0 for a moment after it has ended, and while it is being prepared. */
const isEnding = (id: string): boolean => id.endsWith("/0")

/**
 * The position up to which a reader that has passed `after` may read: the mark, or the end of the run that contains
 * `after`. The checkpoint of one reader proves nothing for other readers, because it may have been set by hand.
 *
 * @category utils
 * @since 0.1.0
 */
export const reached = (self: Settled, after: bigint): bigint =>
  self.runs.find(({ from, to }) => from <= after && after < to)?.to ?? self.mark

/**
 * The highest position that has been observed as committed.
 *
 * @category utils
 * @since 0.1.0
 */
export const highest = (self: Settled): bigint => self.runs[self.runs.length - 1]?.to ?? self.mark

/**
 * Adds runs, each read by one statement. Returns whether a gap is open between the mark and `head`, the highest visible
 * position.
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
 * Updates the proofs with the holders that a statement returned which began after `head` had been read.
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
    // A holder that is being prepared may continue under another id, so every id that may belong to it remains. The
    // successor of an id that was ending may be any holder without a process.
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
 * Updates the list of writers that hold readers back. Returns those that no longer do.
 *
 * @category utils
 * @since 0.1.0
 */
export const track = (self: Settled, holders: ReadonlyArray<Holder>, now: bigint): ReadonlyArray<Writer> => {
  const waited = new Set(self.proofs.flatMap((proof) => [...proof.holders]))
  for (const holder of holders) {
    if (!waited.has(holder.id)) continue
    const known = self.writers.get(holder.id)
    // The transaction may have been prepared in the meantime and then has no process.
    self.writers.set(holder.id, { ...holder, since: known?.since ?? now, reported: known?.reported ?? false })
  }
  const over = [...self.writers.values()].filter(({ id }) => !waited.has(id))
  for (const { id } of over) self.writers.delete(id)
  return over
}
