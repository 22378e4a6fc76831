/**
 * The checks of an orchestrator's projections before it runs: their names, their filters and partition keys, and
 * that the database can store them.
 */
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { microsOf } from "../../schema/Append.ts"
import * as BatchWindow from "../../schema/BatchWindow.ts"
import { DuplicateProjection, InvalidSettings } from "../../schema/Errors.ts"
import { isPolicy, mayPark } from "../../schema/FailurePolicy.ts"
import * as PartitionKey from "../../schema/PartitionKey.ts"
import { textProblem } from "../../schema/Text.ts"
import type { CheckpointStore } from "../CheckpointStore.ts"
import type * as Projection from "../Projection.ts"

const maximumNameLength = 200

/** Fails if the set of projections is empty, or if a name, a start, a filter or a partition key in it is invalid. */
export const check = (
  projections: ReadonlyArray<Projection.Any>
): Result.Result<void, DuplicateProjection | InvalidSettings> => {
  if (projections.length === 0) {
    return Result.fail(invalid("There is no projection. Pass at least one Projection.make(…)."))
  }
  const names = new Set<string>()
  for (const projection of projections) {
    const problem = problemOf(projection)
    if (problem !== undefined) return Result.fail(invalid(problem))
    if (names.has(projection.name)) return Result.fail(new DuplicateProjection({ projection: projection.name }))
    names.add(projection.name)
  }
  return Result.succeed(undefined)
}

/**
 * Fails if the database cannot store a name, a filter or a partition key. Names identify progress, filters select
 * events and partition keys divide them, so unlike diagnostic texts they must be stored unchanged.
 */
export const checkStorable = Effect.fnUntraced(function*(
  checkpoints: CheckpointStore,
  { projections, replicaSet, workerId }: {
    readonly projections: Iterable<Projection.Any>
    readonly replicaSet: string
    readonly workerId: string
  }
) {
  const stored = [
    { setting: "replicaSet", text: replicaSet },
    { setting: "workerId", text: workerId },
    ...[...projections].flatMap(({ filter, name, partitionBy }) =>
      [
        name,
        ...filterLists(filter).flatMap(([, values]) => values),
        ...(typeof partitionBy === "object" ? [partitionBy.metadata] : [])
      ].map((text) => ({ setting: "projections", text }))
    )
  ]
  // If the database is unavailable, a later step of the start retries or reports it.
  const unstorable = yield* Effect.orElseSucceed(
    checkpoints.unstorable(stored.map(({ text }) => text)),
    (): ReadonlyArray<string> => []
  )
  const first = stored.find(({ text }) => unstorable.includes(text))
  if (first === undefined) return
  return yield* new InvalidSettings({
    setting: first.setting,
    problem:
      `The database cannot store "${first.text}": its encoding cannot represent a character of this text. Use other characters, or a database with ENCODING 'UTF8'.`
  })
})

const invalid = (problem: string) => new InvalidSettings({ setting: "projections", problem })

const maximumConcurrency = 100

const isolationLevels: ReadonlyArray<Projection.Isolation> = ["read committed", "repeatable read", "serializable"]

const problemOf = (
  {
    concurrency,
    delivery,
    filter,
    handler,
    isolation,
    name,
    onFailure,
    ordering,
    parkingLimits,
    partitionBy,
    replacesFilter,
    startFrom
  }: Projection.Any
): string | undefined => {
  if (name.trim() === "") return "A projection's name must not be empty, because progress is stored by name."
  if (name.length > maximumNameLength) {
    return `The name "${name.slice(0, 40)}…" must have at most ${maximumNameLength} characters.`
  }
  const problem = textProblem(name)
  if (problem !== undefined) return `The name "${name}" ${problem}.`
  // Only JavaScript code can omit it.
  if ((handler as Projection.Any["handler"] | undefined) === undefined) {
    return `"${name}" must have either handle or handleBatch, not both. Give one of them to Projection.make(…).`
  }
  const missing = handler._tag === "One" ? handler.missing ?? [] : []
  if (missing.length > 0) {
    return `handle of "${name}" has no function for ${missing.join(", ")}. Give one for each tag of its event set.`
  }
  const windowProblem = handler._tag === "Batch" && handler.window !== undefined
    ? BatchWindow.problem(handler.window)
    : undefined
  if (windowProblem !== undefined) return `batchWindow of "${name}" ${windowProblem}.`
  if (typeof startFrom === "bigint" && startFrom < 0n) {
    return `startFrom of "${name}" is ${startFrom}. Give "beginning", "now" or a position of 0n or more.`
  }
  if (typeof startFrom === "object" && microsOf(startFrom) === undefined) {
    return `startFrom of "${name}" is not a date that the database can represent. Give a valid Date or DateTime from 4713 BC on.`
  }
  if (!Number.isInteger(concurrency) || concurrency < 1 || concurrency > maximumConcurrency) {
    return `concurrency of "${name}" is ${concurrency}. Give an integer from 1 to ${maximumConcurrency}.`
  }
  if (ordering !== "aggregate" && ordering !== "global") {
    return `ordering of "${name}" is ${JSON.stringify(ordering)}. Give "aggregate" or "global".`
  }
  if (isolation !== undefined && !isolationLevels.includes(isolation)) {
    return `isolation of "${name}" is ${JSON.stringify(isolation)}. Give one of ${isolationLevels.join(", ")}.`
  }
  if (delivery !== "exactly-once" && delivery !== "at-least-once") {
    return `delivery of "${name}" is ${JSON.stringify(delivery)}. Give "exactly-once" or "at-least-once".`
  }
  if (delivery === "at-least-once" && isolation !== undefined) {
    return `"${name}" has delivery "at-least-once" and an isolation. Omit one of them: its handler runs outside of a transaction.`
  }
  if (ordering === "global" && concurrency > 1) {
    return `"${name}" has ordering "global" and concurrency ${concurrency}. Omit one of them: in global order, events are handled one at a time.`
  }
  if (ordering === "global" && mayPark(onFailure)) {
    return `"${name}" has ordering "global" and an onFailure that may park events. Use "halt" or "skip": in global order, no event can be handled before a parked one.`
  }
  if (!isPolicy(onFailure)) {
    return `onFailure of "${name}" is ${
      JSON.stringify(onFailure)
    }. Give "halt", "park", "skip", one of these for each error tag, or a function.`
  }
  for (const [limit, value] of Object.entries(parkingLimits)) {
    if (!Number.isInteger(value) || value < 1) {
      return `parkingLimits.${limit} of "${name}" is ${value}. Give a positive integer.`
    }
  }
  const keyProblem = PartitionKey.problem(partitionBy)
  if (keyProblem !== undefined) return `partitionBy of "${name}" ${keyProblem}.`
  for (const [list, values] of filterLists(filter)) {
    if (values.length === 0) {
      return `${list} of "${name}" is empty, so that no event would match. Omit it to receive all events.`
    }
    const problem = values.map(textProblem).find((problem) => problem !== undefined)
    if (problem !== undefined) return `A value of ${list} of "${name}" ${problem}.`
  }
  if (!replacesFilter.every(isFilter)) {
    return `replacesFilter of "${name}" is not a filter. Give one such as { eventTypes: ["Added"] }, the filter of an event set, or an array of filters.`
  }
  return undefined
}

/** Only JavaScript code can pass another value. An event set, read as a filter, would select every event. */
const isFilter = (value: unknown): boolean =>
  typeof value === "object" && value !== null && !Object.hasOwn(value, "filter")

/** The lists of a filter that are given, by their names. */
const filterLists = (filter: Projection.Any["filter"]): ReadonlyArray<readonly [string, ReadonlyArray<string>]> =>
  Object.entries(filter).flatMap(([list, values]: [string, unknown]) => Array.isArray(values) ? [[list, values]] : [])
