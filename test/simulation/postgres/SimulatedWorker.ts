/** A worker of the simulation in real time: a fiber with its own stores over its own pool, behind the seam. */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import type * as SqlClient from "effect/sql/SqlClient"
import type { Held } from "../../../src/schema/Checkpoint.ts"
import { CheckpointStore } from "../../../src/services/CheckpointStore.ts"
import { Membership } from "../../../src/services/Membership.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import type { Delivery, Projection } from "../../../src/services/Projection.ts"
import type { Stores } from "../../../src/services/Stores.ts"
import * as Seam from "../../support/Seam.ts"
import * as Logs from "../Logs.ts"
import type { Run, Worker } from "../Run.ts"
import { workerParameter } from "./Audit.ts"
import * as Faults from "./Faults.ts"
import { Wire } from "./Wire.ts"

/** The server is not restarted here, so commits need not wait for the disk. */
export const unflushed = { synchronous_commit: "off" }

/** Removes a mechanism from the library's statements on their way. */
export type Rewrite = NonNullable<Seam.Hooks["rewrite"]>

/**
 * A process's clock. It may show the wrong time, but it runs at the right speed. It wakes no fiber of a frozen process.
 */
const clockOf = (clock: Clock.Clock, skew: number, awake: Effect.Effect<void>): Clock.Clock => {
  const nanos = BigInt(skew) * 1_000_000n
  const currentTimeMillisUnsafe = () => clock.currentTimeMillisUnsafe() + skew
  const currentTimeNanosUnsafe = () => clock.currentTimeNanosUnsafe() + nanos
  return {
    currentTimeMillisUnsafe,
    currentTimeMillis: Effect.sync(currentTimeMillisUnsafe),
    currentTimeNanosUnsafe,
    currentTimeNanos: Effect.sync(currentTimeNanosUnsafe),
    monotonicTimeNanosUnsafe: () => clock.monotonicTimeNanosUnsafe(),
    monotonicTimeNanos: clock.monotonicTimeNanos,
    sleep: (duration) => Effect.andThen(clock.sleep(duration), awake)
  }
}

export class SimulatedWorker {
  readonly wire: Wire
  readonly parking = new Faults.Parking()
  private readonly awake: Effect.Effect<void>
  fiber: Fiber.Fiber<unknown, unknown> | undefined
  private readonly run: Run
  private readonly worker: Worker
  private readonly url: string
  private readonly fenced: (held: Held) => void

  constructor(run: Run, worker: Worker, url: string, fenced: (held: Held) => void) {
    const { hostname, port } = new URL(url)
    this.run = run
    this.worker = worker
    this.url = url
    this.fenced = fenced
    this.awake = this.parking.while(() => worker.isFrozen)
    this.wire = new Wire({ host: hostname, port: Number(port || 5432) })
  }

  /** The worker's program. */
  program(
    options: Orchestrator.Options<ReadonlyArray<Projection<unknown, Delivery | SqlClient.SqlClient>>>,
    rewrite: Rewrite | undefined
  ) {
    const { run, worker } = this
    const hooks: Seam.Hooks = { ...Faults.hooks(run, worker, this.awake), rewrite }
    const client = Seam.client({
      url: Redacted.make(this.url),
      maxConnections: 4,
      stream: this.wire.connect,
      startupParameters: { ...unflushed, [workerParameter]: worker.name }
    }, hooks)
    const skew = run.chance.bool(0.1) ? run.chance.int(-3_600_000, 3_600_000) : 0
    if (skew !== 0) run.coverage.count("faults", "worker's clock wrong")
    return Layer.build(Layer.provideMerge(Seam.stores(hooks), client)).pipe(
      Effect.flatMap((context) =>
        Orchestrator.make(options).pipe(
          Effect.flatMap((orchestrator) => worker.catchesUp ? orchestrator.catchUp : orchestrator.run),
          Effect.provideContext(Context.merge(context, this.watched(context)))
        )
      ),
      Effect.scoped,
      Effect.updateService(Clock.Clock, (clock) => clockOf(clock, skew, this.awake)),
      Effect.provideService(References.CurrentLoggers, new Set([Logs.logger(run, () => worker.name)])),
      Effect.provideService(References.MinimumLogLevel, "Warn")
    )
  }

  /** The stores, which report what they refused. */
  private watched(stores: Context.Context<Stores>): Context.Context<Stores> {
    const checkpoints = Context.get(stores, CheckpointStore)
    const membership = Context.get(stores, Membership)
    const note = (held: Held) => (error: { readonly _tag: string }) =>
      Effect.sync(() => {
        if (error._tag === "Fenced") this.fenced(held)
        if (error._tag === "HandlerFailure" || error._tag === "TransientFailure") {
          this.run.coverage.count("errors", error._tag)
        }
      })
    return Context.make(
      CheckpointStore,
      CheckpointStore.of({
        ...checkpoints,
        commit: (held, options, work) => Effect.tapError(checkpoints.commit(held, options, work), note(held)),
        advance: (held, options) => Effect.tapError(checkpoints.advance(held, options), note(held)),
        halt: (held, halt) => Effect.tapError(checkpoints.halt(held, halt), note(held))
      })
    ).pipe(Context.add(
      Membership,
      Membership.of({
        ...membership,
        join: (options) =>
          Effect.tap(membership.join(options), () =>
            Effect.sync(() => {
              this.worker.registrations++
            }))
      })
    ))
  }
}
