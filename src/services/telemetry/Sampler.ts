/**
 * Samples what no activity of the worker shows: the process's connections, and, on the worker with partition 0, the
 * status of the replica set. Runs beside the worker's other fibers, so that a handler that hangs does not stop it, and
 * a sample that fails or hangs disturbs none of them.
 */
import type * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import { Activity } from "../../schema/Activity.ts"
import * as Health from "../../schema/Health.ts"
import * as ReplicaSetSample from "../../schema/ReplicaSetSample.ts"
import * as Abandonable from "../Abandonable.ts"
import { errorText } from "../ErrorText.ts"
import type { EventStore } from "../EventStore.ts"
import type { Connections, Membership } from "../Membership.ts"
import type { Projections } from "../Projections.ts"
import type { ActivityStream } from "./ActivityStream.ts"

export interface Sampler {
  /** Samples at once, because much has changed. */
  readonly sampleNow: () => void
  readonly run: Effect.Effect<never>
}

interface Options {
  readonly replicaSet: string
  readonly membership: Pick<Membership, "connections">
  readonly status: Projections["Service"]["status"]
  readonly events: Pick<EventStore["Service"], "openWriters">
  readonly log: Pick<ActivityStream, "health" | "record">
}

interface State {
  /** Opened to end the wait for the next sample. */
  readonly due: Latch.Latch
  connections: Connections | undefined
  /** The samples that have failed since the last one that succeeded. */
  failures: number
}

const interval = Duration.seconds(15)

/** A status that takes longer is left behind. */
const limit = Duration.seconds(10)

/** After so many failures, 45 to 100 seconds, the last sample no longer counts. */
const mostFailures = 4

class TooLate extends Data.TaggedError("TooLate") {
  override readonly message = `no answer within ${Duration.format(limit)}`
}

/** Makes the sampler of a registration. */
export const make = (options: Options): Sampler => {
  const state: State = { due: Latch.makeUnsafe(false), connections: undefined, failures: 0 }
  return {
    sampleNow: () => state.due.openUnsafe(),
    run: run(options, state)
  }
}

const run = Effect.fnUntraced(function*(options: Options, state: State): Effect.fn.Return<never> {
  while (true) {
    yield* sampleConnections(options, state)
    if (Health.isReporter(yield* options.log.health)) yield* sampleStatus(options, state)
    yield* Effect.timeoutOption(state.due.await, interval)
    state.due.closeUnsafe()
  }
})

const sampleConnections = Effect.fnUntraced(function*({ log, membership }: Options, state: State) {
  const connections = yield* membership.connections
  const { isListening, sessions } = connections
  if (state.connections?.isListening === isListening && state.connections.sessions === sessions) return
  state.connections = connections
  yield* log.record(Activity.ConnectionsChanged({ isListening, sessions }))
})

/** Records a sample of the status. A failure keeps the last one for a while, because a gap would reset alerts. */
const sampleStatus = Effect.fnUntraced(function*(options: Options, state: State) {
  const { events, log, replicaSet, status } = options
  const exit = yield* Effect.exit(Abandonable.run(
    Effect.all([status, events.openWriters]),
    { grace: Duration.zero, limit: Abandonable.after(limit, () => new TooLate()) }
  ))
  if (Exit.isFailure(exit)) return yield* sampleFailed(options, state, exit.cause)
  state.failures = 0
  const sample = ReplicaSetSample.make(exit.value[0], replicaSet, exit.value[1])
  yield* log.record(Activity.ReplicaSetSampled({ sample }))
})

/** Logs the first of several failures. */
const sampleFailed = Effect.fnUntraced(function*({ log }: Options, state: State, cause: Cause.Cause<unknown>) {
  state.failures++
  if (state.failures === 1) {
    yield* Effect.logWarning(
      `The status for the metrics of the replica set could not be read; trying again every ${
        Duration.format(interval)
      }. ${errorText(cause)}`
    )
  }
  if (state.failures === mostFailures) yield* log.record(Activity.ReplicaSetSampled({ sample: undefined }))
})
