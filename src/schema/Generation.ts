/**
 * Generations: numbered, immutable configurations of a replica set.
 *
 * @since 0.1.0
 */
import * as HashRange from "./HashRange.ts"
import * as Ordering from "./Ordering.ts"

/**
 * A worker as it is listed in a generation.
 *
 * @category models
 * @since 0.1.0
 */
export interface Member {
  readonly workerId: string
  readonly incarnation: bigint
  readonly projections: ReadonlyArray<string>
}

/**
 * One configuration of a replica set. The member at index `k` has partition key `k` of `members.length`.
 *
 * @category models
 * @since 0.1.0
 */
export interface Generation {
  readonly replicaSet: string
  /** Increases by one with each generation of a replica set. */
  readonly generationId: bigint
  readonly members: ReadonlyArray<Member>
}

const isSameWorker = (
  a: Pick<Member, "incarnation" | "workerId">,
  b: Pick<Member, "incarnation" | "workerId">
): boolean => a.workerId === b.workerId && a.incarnation === b.incarnation

/**
 * The partition key of a worker in a generation; -1 if it is not a member.
 *
 * @category utils
 * @since 0.1.0
 */
export const partitionKey = (
  generation: Generation,
  worker: Pick<Member, "incarnation" | "workerId">
): number => generation.members.findIndex((member) => isSameWorker(member, worker))

/**
 * The part of a projection's hash space that is assigned to a worker; undefined if the worker is not a member or does
 * not carry the projection. The space is divided evenly among the members that carry the projection, in the order of
 * their keys.
 *
 * @category utils
 * @since 0.1.0
 */
export const share = (
  generation: Generation,
  projection: string,
  worker: Pick<Member, "incarnation" | "workerId">
): HashRange.HashRange | undefined => parts(generation, { name: projection }, worker)[0]

/**
 * How a projection is divided among the workers that carry it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Division {
  readonly name: string
  /** The number of parts of a worker's share that it works on at the same time. Default 1. */
  readonly concurrency?: number | undefined
  /** Default `"aggregate"`. With `"global"`, one worker owns the whole space. */
  readonly ordering?: Ordering.Ordering | undefined
}

/**
 * The parts of a worker's share that it works on at the same time: `concurrency` adjacent parts of equal size, in the
 * order of their hashes. Empty if the worker has no share.
 *
 * @category utils
 * @since 0.1.0
 */
export const parts = (
  generation: Generation,
  { concurrency = 1, name, ordering }: Division,
  worker: Pick<Member, "incarnation" | "workerId">
): ReadonlyArray<HashRange.HashRange> => {
  const carriers = carriersOf(generation, name)
  const index = carriers.findIndex((member) => isSameWorker(member, worker))
  return index < 0 ? [] : partsAt(carriers, index, { concurrency, name, ordering })
}

/**
 * The members that carry a projection, with their parts: see `parts`.
 *
 * @category utils
 * @since 0.1.0
 */
export const divide = (
  generation: Generation,
  division: Division
): ReadonlyArray<{ readonly member: Member; readonly parts: ReadonlyArray<HashRange.HashRange> }> => {
  const carriers = carriersOf(generation, division.name)
  return carriers.map((member, index) => ({ member, parts: partsAt(carriers, index, division) }))
}

const partsAt = (
  carriers: ReadonlyArray<Member>,
  index: number,
  { concurrency = 1, name, ordering }: Division
): ReadonlyArray<HashRange.HashRange> => {
  if (ordering === "global") {
    const owner = Ordering.owner(name, carriers.map(({ workerId }) => workerId))
    return owner === carriers[index]!.workerId ? [HashRange.whole] : []
  }
  return Array.from(
    { length: concurrency },
    (_, part) => HashRange.partition(index * concurrency + part, carriers.length * concurrency)
  )
}

/**
 * The members of each generation by projection, computed once: a plan asks for each projection of the worker, and there
 * can be thousands.
 */
const carriersByProjection = new WeakMap<Generation, ReadonlyMap<string, ReadonlyArray<Member>>>()

const carriersOf = (generation: Generation, projection: string): ReadonlyArray<Member> => {
  let carriers = carriersByProjection.get(generation)
  if (carriers === undefined) carriersByProjection.set(generation, carriers = byProjection(generation))
  return carriers.get(projection) ?? []
}

const byProjection = ({ members }: Generation): ReadonlyMap<string, ReadonlyArray<Member>> => {
  const found = new Map<string, Array<Member>>()
  for (const member of members) {
    for (const name of new Set(member.projections)) {
      const others = found.get(name)
      if (others === undefined) found.set(name, [member])
      else others.push(member)
    }
  }
  return found
}

const sameMember = (a: Member, b: Member): boolean =>
  isSameWorker(a, b) &&
  a.projections.length === b.projections.length &&
  a.projections.every((name) => b.projections.includes(name))

/**
 * Whether both are the same generation. Comparing the number is not enough: a server that has lost its last commits
 * assigns a number again.
 *
 * @category guards
 * @since 0.1.0
 */
export const equals = (a: Generation, b: Generation): boolean =>
  a.replicaSet === b.replicaSet && a.generationId === b.generationId && a.members.length === b.members.length &&
  a.members.every((member, key) => sameMember(member, b.members[key]!))

/**
 * Whether the generation's members are exactly the live workers, with the projections that these carry.
 *
 * @category guards
 * @since 0.1.0
 */
export const isCurrent = (generation: Generation, live: ReadonlyArray<Member>): boolean =>
  generation.members.length === live.length &&
  generation.members.every((member) => live.some((worker) => sameMember(member, worker)))

/**
 * The members that only the next generation has (`joined`), and those that only the previous one has (`gone`).
 *
 * @category utils
 * @since 0.1.0
 */
export const difference = (
  previous: Generation,
  next: Generation
): { readonly joined: ReadonlyArray<Member>; readonly gone: ReadonlyArray<Member> } => ({
  joined: next.members.filter((member) => partitionKey(previous, member) < 0),
  gone: previous.members.filter((member) => partitionKey(next, member) < 0)
})

/**
 * The generation after `previous`. A member keeps the key that its worker id had in `previous`, if that is below the
 * new number of members. Newcomers take the vacated keys, oldest registration first. Only when the set shrinks do the
 * members with the highest keys move into the gaps.
 *
 * @category constructors
 * @since 0.1.0
 */
export const next = (
  replicaSet: string,
  previous: Generation | undefined,
  live: ReadonlyArray<Member>
): Generation => {
  const keyed: Array<Member | undefined> = live.map(() => undefined)
  const unplaced: Array<{ readonly member: Member; readonly oldKey: number }> = []
  for (const member of live) {
    const oldKey = previous?.members.findIndex((other) => other.workerId === member.workerId) ?? -1
    if (oldKey >= 0 && oldKey < live.length) keyed[oldKey] = member
    else unplaced.push({ member, oldKey: oldKey < 0 ? Infinity : oldKey })
  }
  unplaced.sort((a, b) =>
    a.oldKey !== b.oldKey
      ? a.oldKey - b.oldKey
      : a.member.incarnation < b.member.incarnation
      ? -1
      : 1
  )
  let placed = 0
  const members = keyed.map((member) => member ?? unplaced[placed++]!.member)
  return { replicaSet, generationId: (previous?.generationId ?? 0n) + 1n, members }
}

/**
 * The member whose presence `worker` watches: the next one in the ring of keys. Undefined if there is no other member,
 * or if `worker` is not a member.
 *
 * @category utils
 * @since 0.1.0
 */
export const neighbour = (
  generation: Generation,
  worker: Pick<Member, "incarnation" | "workerId">
): Member | undefined => {
  const key = partitionKey(generation, worker)
  const total = generation.members.length
  return key < 0 || total < 2 ? undefined : generation.members[(key + 1) % total]
}
