/**
 * Settings of an orchestrator, their defaults and their validation.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Option from "effect/Option"
import * as Result from "effect/Result"
import { InvalidSettings } from "./Errors.ts"
import { textProblem } from "./Text.ts"

/**
 * Validated settings, with the defaults filled in.
 *
 * @category models
 * @since 0.1.0
 */
export interface Settings {
  /**
   * Name of the group of projections that scale together. Required. All workers of a replica set carry the same
   * projections, except during a deploy. Under another name the workers form a group of their own: they fail with
   * `ProjectionInOtherReplicaSet` while the old group is alive, and claim its projections afterwards.
   */
  readonly replicaSet: string
  /**
   * Interval between a worker's heartbeats. Default 5 seconds. Change it together with `staleWorkerTimeout`. A shorter
   * interval costs two statements per worker and interval: a worker also looks for changes of the replica set.
   */
  readonly heartbeatInterval: Duration.Duration
  /**
   * A worker without a heartbeat for longer than this is evicted. At least three heartbeat intervals. Default 30
   * seconds. It limits how long a frozen or disconnected worker keeps its ranges; a worker that dies is detected in
   * milliseconds. If it is too short, handlers that block the event loop and short outages cause evictions.
   */
  readonly staleWorkerTimeout: Duration.Duration
  /**
   * Time limit for releasing ranges that the worker no longer owns. A worker that exceeds it fails and leaves. A worker
   * that only waits for other workers fails after twice this time. Default 60 seconds. Raise it together with
   * `drainTimeout`. If it is too short, slow handlers end workers with `CoordinationTimeout`.
   */
  readonly coordinationTimeout: Duration.Duration
  /**
   * Maximum number of events in a batch. A batch that takes longer than 100 ms ends early, and a
   * `handleBatch` gets fewer events if it takes longer. Default 5000. Lower it if
   * large batches exceed the memory of the process, or if transactions of your own wait for rows that a batch has locked.
   * Small batches reduce the throughput, because each batch is one commit.
   */
  readonly batchSize: number
  /**
   * Maximum size of the events in a batch, in bytes. A batch contains at least one event. Default 4 MiB. Each range
   * holds up to this much in memory.
   */
  readonly batchBytes: number
  /**
   * Maximum delay before an event is found if its notification was lost, or if its writer sends none. Default 1 second.
   * Lower it if events are written without notifications, for example by a Go service; each interval costs one statement
   * per process. While LISTEN is not active, it is also the maximum delay of changes of the replica set, which is
   * `heartbeatInterval` otherwise.
   */
  readonly pollInterval: Duration.Duration
  /**
   * Joins and leaves that are closer together than this form one generation. Default 25 milliseconds. Raise it if many
   * workers start at the same time and form several generations one after another; every hand-over takes this much
   * longer.
   */
  readonly registrationWindow: Duration.Duration
  /**
   * Time that the current event may still take when its range is released. After it, the batch is interrupted and
   * rolled back. Must be shorter than `coordinationTimeout`. Default 10 seconds. Set it longer than the slowest event,
   * and shorter than the time after which the platform kills a stopping process. If it is too short, the work of slow
   * events is lost at every hand-over.
   */
  readonly drainTimeout: Duration.Duration
  /**
   * Id of this worker; generated when absent. Set it to an id that is easy to recognise in logs and in the status, such
   * as a pod's name. Two live workers with one id are refused (`WorkerIdInUse`).
   */
  readonly workerId: string | undefined
}

/**
 * Settings as they are given. Absent ones have their defaults. Durations may be texts such as `"5s"` or `"5 seconds"`,
 * numbers of milliseconds, or `Duration`s.
 *
 * @category models
 * @since 0.1.0
 */
export interface Input {
  readonly replicaSet: string
  readonly heartbeatInterval?: Duration.Input | undefined
  readonly staleWorkerTimeout?: Duration.Input | undefined
  readonly coordinationTimeout?: Duration.Input | undefined
  readonly batchSize?: number | undefined
  readonly batchBytes?: number | undefined
  readonly pollInterval?: Duration.Input | undefined
  readonly registrationWindow?: Duration.Input | undefined
  readonly drainTimeout?: Duration.Input | undefined
  readonly workerId?: string | undefined
}

/**
 * The values of settings that are not given.
 *
 * @category options
 * @since 0.1.0
 */
export const defaults = {
  heartbeatInterval: Duration.seconds(5),
  staleWorkerTimeout: Duration.seconds(30),
  coordinationTimeout: Duration.seconds(60),
  batchSize: 5000,
  batchBytes: 4 * 1024 * 1024,
  pollInterval: Duration.seconds(1),
  registrationWindow: Duration.millis(25),
  drainTimeout: Duration.seconds(10)
} as const

const durations = [
  "heartbeatInterval",
  "staleWorkerTimeout",
  "coordinationTimeout",
  "pollInterval",
  "registrationWindow",
  "drainTimeout"
] as const

const maximumNameLength = 200

/**
 * Examples of durations, for error messages.
 *
 * @category constants
 * @since 0.1.0
 */
export const durationExamples = "5s, 250ms, 2m, 1h or \"5 seconds\""

const millisOf = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const
const shortDuration = /^(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+$/
const shortPart = /(\d+(?:\.\d+)?)(ms|s|m|h|d)/g

/**
 * Parses a duration, in Effect's form (`5 seconds`) or in the short form (`5s`, `250ms`, `1m30s`); returns undefined if
 * the text has neither form. A number without a unit is refused, because it is ambiguous.
 *
 * @category utils
 * @since 0.1.0
 */
export const parseDuration = (text: string): Duration.Duration | undefined => {
  const short = text.replaceAll(/\s/g, "").toLowerCase()
  if (!shortDuration.test(short)) return Option.getOrUndefined(Duration.fromInput(text.trim() as Duration.Input))
  let millis = 0
  for (const [, number, unit] of short.matchAll(shortPart)) {
    millis += Number(number) * millisOf[unit as keyof typeof millisOf]
  }
  return Duration.millis(millis)
}

/**
 * Fills in the defaults and checks the settings one by one and against each other.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (input: Input): Result.Result<Settings, InvalidSettings> =>
  Result.gen(function*() {
    const times: Times = { ...defaults }
    for (const name of durations) {
      const given = input[name]
      if (given !== undefined) times[name] = yield* checkDuration(name, given)
    }
    for (const name of ["batchSize", "batchBytes"] as const) yield* checkCount(name, input[name])
    yield* checkName("replicaSet", input.replicaSet)
    if (input.workerId !== undefined) yield* checkName("workerId", input.workerId)
    yield* checkTogether(times)
    return {
      replicaSet: input.replicaSet,
      ...times,
      batchSize: input.batchSize ?? defaults.batchSize,
      batchBytes: input.batchBytes ?? defaults.batchBytes,
      workerId: input.workerId
    }
  })

type Times = Record<(typeof durations)[number], Duration.Duration>

const valid = Result.succeed(undefined)

const invalid = (setting: string, problem: string) => Result.fail(new InvalidSettings({ setting, problem }))

const checkDuration = (
  name: keyof Times,
  given: Duration.Input
): Result.Result<Duration.Duration, InvalidSettings> => {
  const parsed = typeof given === "string"
    ? parseDuration(given)
    // Duration converts NaN to zero, so a number that could not be parsed would be accepted.
    : Number.isNaN(given)
    ? undefined
    : Option.getOrUndefined(Duration.fromInput(given))
  if (parsed === undefined) {
    return invalid(
      name,
      `${
        typeof given === "string" ? `"${given}"` : "The value"
      } is not a valid duration. Use ${durationExamples}, or a number of milliseconds.`
    )
  }
  const millis = Duration.toMillis(parsed)
  if (!(millis >= 0) || !Number.isFinite(millis)) return invalid(name, "A duration must be finite and not negative.")
  if (millis === 0 && name !== "registrationWindow" && name !== "drainTimeout") {
    return invalid(name, "The duration must be greater than zero.")
  }
  return Result.succeed(parsed)
}

const checkCount = (name: string, given: number | undefined): Result.Result<void, InvalidSettings> =>
  given === undefined || (Number.isSafeInteger(given) && given >= 1)
    ? valid
    : invalid(name, "It must be a whole number of at least 1.")

/** Callers without types may leave out a required name. */
const checkName = (setting: string, given: string | undefined): Result.Result<void, InvalidSettings> => {
  if (given === undefined || given.trim() === "") {
    return invalid(setting, "The name must not be empty. Give one such as \"main-projections\".")
  }
  if (given.length > maximumNameLength) {
    return invalid(setting, `The name must have at most ${maximumNameLength} characters.`)
  }
  const problem = textProblem(given)
  return problem === undefined ? valid : invalid(setting, `The name ${problem}.`)
}

/** The rules between durations. */
const checkTogether = (times: Times): Result.Result<void, InvalidSettings> => {
  if (Duration.toMillis(times.heartbeatInterval) * 3 > Duration.toMillis(times.staleWorkerTimeout)) {
    return invalid(
      "staleWorkerTimeout",
      `At least three heartbeats must fit: with a heartbeatInterval of ${
        Duration.format(times.heartbeatInterval)
      } it must be ${Duration.format(Duration.times(times.heartbeatInterval, 3))} or more, but it is ${
        Duration.format(times.staleWorkerTimeout)
      }.`
    )
  }
  if (Duration.toMillis(times.drainTimeout) >= Duration.toMillis(times.coordinationTimeout)) {
    return invalid(
      "drainTimeout",
      `It must be shorter than coordinationTimeout (${
        Duration.format(times.coordinationTimeout)
      }), within which a worker has to release the ranges that it no longer owns.`
    )
  }
  if (Duration.toMillis(times.registrationWindow) >= Duration.toMillis(times.heartbeatInterval)) {
    return invalid(
      "registrationWindow",
      `It must be shorter than heartbeatInterval (${
        Duration.format(times.heartbeatInterval)
      }): a worker that forms a generation does nothing else meanwhile.`
    )
  }
  // A worker that waits for others waits twice the coordination timeout. Within that time a session that is two
  // heartbeat intervals old must be able to evict a stale worker.
  const noticed = Duration.sum(times.staleWorkerTimeout, Duration.times(times.heartbeatInterval, 2))
  if (Duration.toMillis(times.coordinationTimeout) * 2 < Duration.toMillis(noticed)) {
    return invalid(
      "coordinationTimeout",
      `It must be at least half of staleWorkerTimeout and two heartbeats, ${
        Duration.format(Duration.times(noticed, 0.5))
      }: workers would give up before a silent one can be replaced.`
    )
  }
  return valid
}
