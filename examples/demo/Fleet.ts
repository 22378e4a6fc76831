/** The worker processes of the demo. */
import { Deferred, Effect, type Redacted, Scope } from "effect"
import { Redacted as Secret } from "effect"
import { fileURLToPath } from "node:url"
import * as WorkerProcess from "../../src/testing/WorkerProcess.ts"
import { DemoFailed } from "./DemoFailed.ts"

export interface Fleet {
  readonly start: (id: string) => Effect.Effect<WorkerProcess.WorkerProcess>
  /** Fails when a process ends by itself. */
  readonly unexpectedEnd: Effect.Effect<never, DemoFailed>
}

/** A worker that has not stopped after this time is killed. */
const patience = "10 seconds"

/** Stops a worker, which may be frozen. */
const stop = (worker: WorkerProcess.WorkerProcess) =>
  worker.isAlive()
    ? worker.send("SIGTERM").pipe(
      Effect.andThen(worker.wake),
      Effect.andThen(worker.ended),
      Effect.timeoutOrElse({ duration: patience, orElse: () => worker.kill })
    )
    : Effect.void

/** Starts workers, which are stopped when the scope closes. */
export const make = Effect.fnUntraced(function*(
  url: Redacted.Redacted
): Effect.fn.Return<Fleet, never, Scope.Scope> {
  const scope = yield* Effect.scope
  const unexpected = yield* Deferred.make<never, DemoFailed>()

  const start = Effect.fnUntraced(function*(id: string) {
    const worker = yield* WorkerProcess.spawn({
      id,
      script: fileURLToPath(new URL("worker.ts", import.meta.url)),
      env: { DATABASE_URL: Secret.value(url), DEMO_WORKER_ID: id },
      stdin: "pipe",
      mayEnd: false
    })
    yield* Effect.addFinalizer(() => Effect.suspend(() => stop(worker)))
    yield* Effect.forkScoped(Effect.andThen(
      worker.ended,
      Effect.suspend(() => {
        const problem = worker.problem()
        return problem === undefined
          ? Effect.void
          : Deferred.fail(unexpected, new DemoFailed({ problem: `${problem}. Its output:\n${worker.output()}` }))
      })
    ))
    return worker
  }, Effect.provideService(Scope.Scope, scope))

  return { start, unexpectedEnd: Deferred.await(unexpected) }
})
