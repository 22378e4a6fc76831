/**
 * Proves, without effects, that a position is settled, from what one connection has observed.
 *
 * `nextval` takes a lock on the sequence and keeps it until the transaction's end is visible to others. A transaction
 * that may still commit an event at or below a visible position is therefore among the holders of that lock whenever
 * they are read later, until it ends. Once all holders that were read after a position was visible have ended, every
 * position at or below it that is still missing was rolled back: see `prove`.
 */

/** A transaction that has drawn positions and has not ended. */
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

/** A holder that holds readers back. */
export interface Writer extends Holder {
  /** `Clock.monotonicTimeNanos` when it was first observed to hold readers back. */
  readonly since: bigint
}

/**
 * Committed positions above `from` up to `to`, without a gap. A reader that has passed `from` may pass all of them,
 * regardless of the settled position: nothing can still be committed in between.
 */
export interface Run {
  readonly from: bigint
  readonly to: bigint
}

/** Proves `head` when no holder is left. */
interface Proof {
  /** A position that was visible before the holders were read. */
  readonly head: bigint
  /** The ids of the holders that have not ended. */
  readonly holders: ReadonlySet<string>
}

/** What has been proved on one connection, and the proofs that are pending. */
export interface Settled {
  /** The settled position: no transaction can still commit an event at or below it. */
  readonly position: bigint
  /** Whether a proof has succeeded or no gap was open; before that, the position is only the end of the first run. */
  readonly isProved: boolean
  /** The runs beyond the position, separated by gaps, in position order. */
  readonly runs: ReadonlyArray<Run>
  /** The pending proofs, ordered by their heads. */
  readonly proofs: ReadonlyArray<Proof>
  /** The writers that hold readers back, by id. */
  readonly writers: ReadonlyMap<string, Writer>
}

/** Nothing is proved. */
export const unproved: Settled = { position: 0n, isProved: false, runs: [], proofs: [], writers: new Map() }

/** Maximum number of pending proofs. Further heads are skipped; a later head covers them. */
const proofCapacity = 64

/**
 * The position up to which a reader that has passed `after` may read: the settled position, or the end of the run that
 * contains `after`. The checkpoint of one reader proves nothing for other readers, because it may have been set by hand.
 */
export const readableUpTo = (self: Settled, after: bigint): bigint =>
  self.runs.find(({ from, to }) => from <= after && after < to)?.to ?? self.position

/** The highest position that has been observed as committed. */
export const highest = (self: Settled): bigint => self.runs[self.runs.length - 1]?.to ?? self.position

/** Adds runs, each read by one statement, and the highest visible position `head`. */
export const observe = (
  self: Settled,
  { head, runs }: { readonly runs: ReadonlyArray<Run>; readonly head: bigint }
): Settled => {
  const observed = raise({ ...self, runs: join([...self.runs, ...runs.filter(({ from, to }) => from < to)]) })
  return observed.position < head ? observed : { ...observed, isProved: true }
}

/**
 * Whether the holders have to be read: a gap is open below `head`, or a proof is pending although no gap is open, because
 * the event at its head was deleted.
 */
export const needsHolders = (self: Settled, head: bigint): boolean => self.position < head || self.proofs.length > 0

/**
 * Continues the proofs with the holders that a statement returned which began after `head` had been read, and begins a
 * proof of `head`. `now` is `Clock.monotonicTimeNanos`.
 */
export const prove = (
  self: Settled,
  { head, holders, now }: { readonly head: bigint; readonly holders: ReadonlyArray<Holder>; readonly now: bigint }
): Settled => {
  const present = new Set(holders.map(({ id }) => id))
  const continued = self.proofs.map((proof) => ({
    head: proof.head,
    holders: remainingOf(proof.holders, present, holders)
  }))
  const concluded = concludeProofs({ ...self, proofs: continued })
  const begun = beginProof(concluded, { head, holders: present })
  return { ...begun, writers: writersOf(begun, holders, now) }
}

const isPrepared = (id: string): boolean => id.startsWith("-1/")

/** The number of a transaction is 0 for a moment after it has ended, and while it is being prepared. */
const isEnding = (id: string): boolean => id.endsWith("/0")

/** The ids of a proof's holders that have not ended. */
const remainingOf = (
  ids: ReadonlySet<string>,
  present: ReadonlySet<string>,
  holders: ReadonlyArray<Holder>
): ReadonlySet<string> => {
  const remaining = new Set<string>()
  let hasVanished = false
  let wasEnding = false
  for (const id of ids) {
    if (present.has(id)) remaining.add(id)
    else if (!isPrepared(id)) {
      hasVanished = true
      wasEnding = wasEnding || isEnding(id)
    }
  }
  // A holder that is being prepared may continue under another id, so every id that may belong to it remains. The
  // successor of an id that was ending may be any holder without a process.
  if (hasVanished) {
    for (const { id, pid } of holders) {
      if (isPrepared(id) || isEnding(id) || (wasEnding && pid === undefined)) remaining.add(id)
    }
  }
  return remaining
}

/** Settles the highest head whose holders have all ended. */
const concludeProofs = (self: Settled): Settled => {
  const proof = self.proofs.findLast(({ holders }) => holders.size === 0)
  return proof === undefined ? self : settle(self, proof.head)
}

/** Without holders, the head is settled at once. */
const beginProof = (self: Settled, proof: Proof): Settled => {
  const last = self.proofs[self.proofs.length - 1]
  if (proof.head <= self.position || proof.head <= (last?.head ?? 0n)) return self
  if (proof.holders.size === 0) return settle(self, proof.head)
  return self.proofs.length < proofCapacity ? { ...self, proofs: [...self.proofs, proof] } : self
}

const settle = (self: Settled, position: bigint): Settled => raise({ ...self, position, isProved: true })

/** Raises the position over the run that contains it, and drops the runs and proofs at or below it. */
const raise = (self: Settled): Settled => {
  const position = readableUpTo(self, self.position)
  return {
    ...self,
    position,
    runs: self.runs.filter(({ to }) => to > position),
    proofs: self.proofs.filter(({ head }) => head > position)
  }
}

/** Joins runs that overlap or touch. */
const join = (runs: ReadonlyArray<Run>): ReadonlyArray<Run> => {
  const apart: Array<Run> = []
  for (const run of runs.toSorted((one, other) => one.from < other.from ? -1 : one.from > other.from ? 1 : 0)) {
    const last = apart[apart.length - 1]
    if (last === undefined || run.from > last.to) apart.push(run)
    else if (run.to > last.to) apart[apart.length - 1] = { from: last.from, to: run.to }
  }
  return apart
}

/** The holders that a pending proof waits for. A transaction that was prepared in the meantime has no process. */
const writersOf = (self: Settled, holders: ReadonlyArray<Holder>, now: bigint): ReadonlyMap<string, Writer> => {
  const awaited = new Set(self.proofs.flatMap((proof) => [...proof.holders]))
  return new Map(
    holders.filter(({ id }) => awaited.has(id)).map((holder) => [
      holder.id,
      { ...holder, since: self.writers.get(holder.id)?.since ?? now }
    ])
  )
}
