/**
 * Half-open ranges of the hash space, and their division into partitions.
 *
 * @since 0.1.0
 */

/**
 * The number of hash values: an event's hash is a 32-bit unsigned integer.
 *
 * @category models
 * @since 0.1.0
 */
export const hashSpace = 2 ** 32

/**
 * The hashes from `start` (inclusive) to `end` (exclusive).
 *
 * @category models
 * @since 0.1.0
 */
export interface HashRange {
  readonly start: number
  readonly end: number
}

/**
 * The whole hash space.
 *
 * @category constructors
 * @since 0.1.0
 */
export const whole: HashRange = { start: 0, end: hashSpace }

/**
 * Partition `key` of `total`: `floor(key·2³²/total) … floor((key+1)·2³²/total)`. All partitions of one total tile the
 * space. `key` must be below `total`. 2³²·total is exact in a double for up to two million partitions.
 *
 * @category constructors
 * @since 0.1.0
 */
export const partition = (key: number, total: number): HashRange => ({
  start: Math.floor((key * hashSpace) / total),
  end: Math.floor(((key + 1) * hashSpace) / total)
})

/**
 * Whether the range is the whole hash space.
 *
 * @category guards
 * @since 0.1.0
 */
export const isWhole = (range: HashRange): boolean => range.start === 0 && range.end === hashSpace

/**
 * Whether both ranges contain the same hashes.
 *
 * @category guards
 * @since 0.1.0
 */
export const equals = (a: HashRange, b: HashRange): boolean => a.start === b.start && a.end === b.end

/**
 * Whether the ranges have a hash in common.
 *
 * @category guards
 * @since 0.1.0
 */
export const overlaps = (a: HashRange, b: HashRange): boolean => a.start < b.end && b.start < a.end

/**
 * Whether `inner` lies entirely within `outer`.
 *
 * @category guards
 * @since 0.1.0
 */
export const contains = (outer: HashRange, inner: HashRange): boolean =>
  outer.start <= inner.start && inner.end <= outer.end

/**
 * Whether the hash lies in the range.
 *
 * @category guards
 * @since 0.1.0
 */
export const includes = (range: HashRange, hash: number): boolean => range.start <= hash && hash < range.end

/**
 * The number of hashes in the range.
 *
 * @category utils
 * @since 0.1.0
 */
export const size = (range: HashRange): number => range.end - range.start

/**
 * The range from the start of the first to the end of the last of some adjacent ranges; undefined for none.
 *
 * @category utils
 * @since 0.1.0
 */
export const span = (adjacent: ReadonlyArray<HashRange>): HashRange | undefined =>
  adjacent.length === 0 ? undefined : { start: adjacent[0]!.start, end: adjacent[adjacent.length - 1]!.end }

/**
 * The parts of `range` before, inside and after `border`; undefined where empty.
 *
 * @category utils
 * @since 0.1.0
 */
export const cut = (range: HashRange, border: HashRange): {
  readonly before: HashRange | undefined
  readonly inside: HashRange | undefined
  readonly after: HashRange | undefined
} => {
  const part = (start: number, end: number): HashRange | undefined => start < end ? { start, end } : undefined
  return {
    before: part(range.start, Math.min(range.end, border.start)),
    inside: part(Math.max(range.start, border.start), Math.min(range.end, border.end)),
    after: part(Math.max(range.start, border.end), range.end)
  }
}

/**
 * The parts of `space` that none of the ranges contains, in order. The ranges lie within it and do not overlap.
 *
 * @category utils
 * @since 0.1.0
 */
export const gaps = (ranges: ReadonlyArray<HashRange>, space: HashRange = whole): ReadonlyArray<HashRange> => {
  const sorted = [...ranges].sort((a, b) => a.start - b.start)
  const starts = [space.start, ...sorted.map(({ end }) => end)]
  const ends = [...sorted.map(({ start }) => start), space.end]
  return starts.map((start, index) => ({ start, end: ends[index]! })).filter(({ end, start }) => start < end)
}

/**
 * Whether the ranges, in any order, cover `space` without gaps and overlaps.
 *
 * @category guards
 * @since 0.1.0
 */
export const tiles = (ranges: ReadonlyArray<HashRange>, space: HashRange = whole): boolean => {
  let next = space.start
  for (const range of [...ranges].sort((a, b) => a.start - b.start)) {
    if (range.start !== next || range.end <= range.start) return false
    next = range.end
  }
  return next === space.end
}

/**
 * The range as text, for logs and errors: `[0, 4294967296)`.
 *
 * @category utils
 * @since 0.1.0
 */
export const format = (range: HashRange): string => `[${range.start}, ${range.end})`
