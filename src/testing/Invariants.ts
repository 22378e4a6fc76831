/**
 * The coordination rows of a database at one moment, and the invariants that they must always satisfy. Read with SQL of its
 * own instead of `Projections.status`: the checks must not depend on the code under test, and they compare what the status
 * does not contain, such as the members of every generation and the fences of the rows.
 */
import * as Generation from "../schema/Generation.ts"
import * as HashRange from "../schema/HashRange.ts"

/** The coordination rows at one moment. */
export interface Rows {
  readonly workers: ReadonlyArray<{
    readonly replicaSet: string
    readonly workerId: string
    readonly incarnation: bigint
    readonly state: string
    readonly partitionKey: number
    readonly generationId: bigint | null
    readonly silentForMillis: number
  }>
  readonly generations: ReadonlyArray<Generation.Generation>
  readonly checkpoints: ReadonlyArray<{
    readonly projection: string
    readonly replicaSet: string
    readonly range: HashRange.HashRange
    readonly position: bigint
    readonly workerId: string | null
    readonly incarnation: bigint | null
    readonly generationId: bigint | null
    readonly halted: string | null
  }>
  readonly head: bigint
}

/** The rows as PostgreSQL returns them; 64-bit numbers are text. */
export interface Json {
  readonly workers: ReadonlyArray<
    {
      readonly replica_set: string
      readonly worker_id: string
      readonly incarnation: string
      readonly state: string
      readonly partition_key: number
      readonly generation_id: string | null
      readonly silent: number
    }
  >
  readonly generations: ReadonlyArray<
    {
      readonly replica_set: string
      readonly generation_id: string
      readonly members: ReadonlyArray<
        {
          readonly workerId: string
          readonly incarnation: string | number
          readonly projections: ReadonlyArray<string>
        }
      >
    }
  >
  readonly checkpoints: ReadonlyArray<
    {
      readonly projection_name: string
      readonly replica_set: string
      readonly range_start: number
      readonly range_end: number
      readonly position: string
      readonly worker_id: string | null
      readonly incarnation: string | null
      readonly generation_id: string | null
      readonly halted: string | null
    }
  >
  readonly head: string
}

/** The parts of a `json_build_object` that read the rows. One statement reads all of them, so that they come from the same moment. */
export const parts = `
    'workers', (SELECT coalesce(json_agg(json_build_object('replica_set', w.replica_set, 'worker_id', w.worker_id,
        'incarnation', w.incarnation::text, 'state', w.state, 'partition_key', w.partition_key,
        'generation_id', w.generation_id::text,
        'silent', round(extract(epoch FROM clock_timestamp() - h.heartbeat_at) * 1000)) ORDER BY w.incarnation), '[]')
      FROM orchestrator_workers w LEFT JOIN orchestrator_heartbeats h
        ON h.replica_set = w.replica_set AND h.worker_id = w.worker_id AND h.incarnation = w.incarnation),
    'generations', (SELECT coalesce(json_agg(json_build_object('replica_set', g.replica_set,
        'generation_id', g.generation_id::text, 'members', g.members) ORDER BY g.replica_set, g.generation_id), '[]')
      FROM orchestrator_generations g),
    'checkpoints', (SELECT coalesce(json_agg(json_build_object('projection_name', c.projection_name,
        'replica_set', c.replica_set, 'range_start', c.range_start, 'range_end', c.range_end,
        'position', c.position::text, 'worker_id', c.worker_id, 'incarnation', c.incarnation::text,
        'generation_id', c.generation_id::text,
        'halted', c.halted_error) ORDER BY c.projection_name, c.range_start), '[]')
      FROM orchestrator_checkpoints c),
    'head', (SELECT coalesce(max(global_position), 0)::text FROM events)`

export const fromJson = (row: Json): Rows => ({
  workers: row.workers.map((worker) => ({
    replicaSet: worker.replica_set,
    workerId: worker.worker_id,
    incarnation: BigInt(worker.incarnation),
    state: worker.state,
    partitionKey: worker.partition_key,
    generationId: worker.generation_id === null ? null : BigInt(worker.generation_id),
    silentForMillis: worker.silent
  })),
  generations: row.generations.map((generation) => ({
    replicaSet: generation.replica_set,
    generationId: BigInt(generation.generation_id),
    members: generation.members.map((member) => ({ ...member, incarnation: BigInt(member.incarnation) }))
  })),
  checkpoints: row.checkpoints.map((checkpoint) => ({
    projection: checkpoint.projection_name,
    replicaSet: checkpoint.replica_set,
    range: { start: checkpoint.range_start, end: checkpoint.range_end },
    position: BigInt(checkpoint.position),
    workerId: checkpoint.worker_id,
    incarnation: checkpoint.incarnation === null ? null : BigInt(checkpoint.incarnation),
    generationId: checkpoint.generation_id === null ? null : BigInt(checkpoint.generation_id),
    halted: checkpoint.halted
  })),
  head: BigInt(row.head)
})

/** The newest generation of a replica set. */
export const newest = (state: Rows, replicaSet: string): Generation.Generation | undefined =>
  state.generations.findLast((generation) => generation.replicaSet === replicaSet)

/** The current registration of a worker id. */
export const registered = (state: Rows, workerId: string, replicaSet: string) =>
  state.workers.find((worker) =>
    worker.replicaSet === replicaSet && worker.workerId === workerId && worker.state !== "stopped"
  )

/**
 * Returns whether exactly these workers are the members of the newest generation, each of them reports that it runs it,
 * and every row is held by the member to which the generation assigns it.
 */
export const isSharedBy = (state: Rows, workerIds: ReadonlyArray<string>, replicaSet: string): boolean => {
  const generation = newest(state, replicaSet)
  if (generation === undefined || generation.members.length !== workerIds.length) return false
  return generation.members.every((member) => {
    const row = registered(state, member.workerId, replicaSet)
    if (!workerIds.includes(member.workerId) || row?.incarnation !== member.incarnation) return false
    if (row.state !== "running" || row.generationId !== generation.generationId) return false
    return member.projections.every((projection) => {
      const share = Generation.share(generation, projection, member)
      const held = state.checkpoints.filter((checkpoint) =>
        checkpoint.projection === projection && checkpoint.workerId === member.workerId &&
        checkpoint.incarnation === member.incarnation
      )
      return share !== undefined && HashRange.tiles(held.map(({ range }) => range), share)
    })
  })
}

/** Returns the violated invariants of the rows. */
export const violations = (
  before: Rows | undefined,
  state: Rows,
  options: { readonly mayHalt?: boolean } = {}
): ReadonlyArray<string> => {
  const found: Array<string> = []
  const rowsOf = (at: Rows, projection: string) => at.checkpoints.filter((row) => row.projection === projection)
  for (const projection of new Set(state.checkpoints.map((row) => row.projection))) {
    const rows = rowsOf(state, projection)
    if (!HashRange.tiles(rows.map(({ range }) => range))) found.push(`the rows of ${projection} do not tile the space`)
    for (const row of rows) {
      if (row.halted !== null && options.mayHalt !== true) {
        found.push(`${projection} ${HashRange.format(row.range)} is halted: ${row.halted}`)
      }
      for (const old of before === undefined ? [] : rowsOf(before, projection)) {
        if (HashRange.overlaps(old.range, row.range) && row.position < old.position) {
          found.push(
            `${projection} went back from ${old.position} to ${row.position} in ${HashRange.format(row.range)}`
          )
        }
      }
    }
  }
  for (const old of before?.checkpoints ?? []) {
    if (rowsOf(state, old.projection).length === 0) found.push(`the rows of ${old.projection} are gone`)
  }
  for (const old of before?.generations ?? []) {
    const now = state.generations.find((generation) =>
      generation.replicaSet === old.replicaSet && generation.generationId === old.generationId
    )
    const text = (generation: Generation.Generation) =>
      JSON.stringify(generation.members, (_, value) => typeof value === "bigint" ? String(value) : value)
    if (now !== undefined && text(now) !== text(old)) found.push(`generation ${old.generationId} has other members now`)
    const last = newest(state, old.replicaSet)
    if (last === undefined || last.generationId < old.generationId) {
      found.push(`the generation of ${old.replicaSet} went back from ${old.generationId}`)
    }
  }
  return found
}

/** Lists the rows, for the message of a test that failed. */
export const describe = (state: Rows): string =>
  [
    "registrations:",
    ...state.workers.map((worker) =>
      `  ${worker.replicaSet} ${worker.workerId} #${worker.incarnation} ${worker.state}, partition ${worker.partitionKey} of generation ${worker.generationId}, silent for ${worker.silentForMillis} ms`
    ),
    "newest generations:",
    ...state.generations.slice(-6).map((generation) =>
      `  ${generation.replicaSet} ${generation.generationId}: ${
        generation.members.map((member) => `${member.workerId}#${member.incarnation}`).join(", ")
      }`
    ),
    `checkpoints (head ${state.head}):`,
    ...state.checkpoints.map((row) =>
      `  ${row.projection} ${HashRange.format(row.range)} at ${row.position}, ${
        row.workerId === null ? "free" : `${row.workerId}#${row.incarnation} in ${row.generationId}`
      }${row.halted === null ? "" : `, halted: ${row.halted}`}`
    )
  ].join("\n")
