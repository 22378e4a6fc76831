/**
 * Injects faults into a worker's statements at the seam to PostgreSQL. A connection that is lost there is ended by
 * `pg_terminate_backend`, so driver and server notice the loss as usual.
 */
import * as Effect from "effect/Effect"
import * as SqlError from "effect/sql/SqlError"
import type { Hooks, Statement } from "../../support/Seam.ts"
import * as Seam from "../../support/Seam.ts"
import type { Entry } from "../Coverage.ts"
import type { Run, Worker } from "../Run.ts"

/** The fibers of a frozen worker, which wait until it is resumed. */
export class Parking {
  private readonly parked = new Set<() => void>()

  /** Waits while the condition holds. */
  readonly while = (isSo: () => boolean): Effect.Effect<void> =>
    Effect.suspend(() =>
      isSo()
        ? Effect.callback<void>((resume) => {
          const leave = () => resume(Effect.void)
          this.parked.add(leave)
          return Effect.sync(() => this.parked.delete(leave))
        })
        : Effect.void
    )

  readonly leave = (): void => {
    for (const leave of this.parked) leave()
    this.parked.clear()
  }
}

type Kind = "pool" | "COMMIT of a batch" | "coordination" | "COMMIT of a decision" | "reader" | "listener" | "presence"

const kindOf = ({ session, text }: Statement): Kind => {
  const name = session.replace("pupsourcing-orchestrator ", "") as "pool" | "coordination" | "reader" | "listener"
  if (text !== "COMMIT") return name
  return name === "pool" ? "COMMIT of a batch" : name === "coordination" ? "COMMIT of a decision" : name
}

/** A batch has many statements. Few batches would commit if each statement failed as often as a COMMIT. */
const likelihood: Readonly<Record<Kind, number>> = {
  "pool": 0.05,
  "COMMIT of a batch": 0.5,
  "coordination": 0.05,
  "COMMIT of a decision": 0.5,
  "reader": 0.05,
  "listener": 0.3,
  "presence": 0.8
}

const conflict = new SqlError.SqlError({
  reason: new SqlError.SerializationError({ cause: new Error("at the seam"), operation: "execute" })
})

/** `awake` completes when the worker is not frozen. */
export const hooks = (run: Run, worker: Worker, awake: Effect.Effect<void>): Hooks => {
  const { ailments } = worker
  const { chance, coverage, now, scenario } = run

  const happens = (entry: Entry<"faults">): void => {
    coverage.count("faults", entry)
    run.say(worker.name, entry)
  }

  const pause = Effect.suspend(() => {
    const slow = now() < ailments.slowUntil
    if (slow) coverage.count("faults", "stores slow")
    const millis = (scenario.latency === 0 ? 0 : chance.int(0, scenario.latency)) +
      (slow ? chance.int(1, ailments.slowMillis) : 0)
    return millis === 0 ? Effect.void : Effect.sleep(millis)
  })

  const disturbed = <A>(
    statement: Statement,
    send: Effect.Effect<A, SqlError.SqlError>
  ): Effect.Effect<A, SqlError.SqlError> => {
    if (worker.isCut) return Effect.fail(Seam.connectionLost("execute"))
    // In an aborted transaction the server accepts no other statement.
    if (statement.text.startsWith("ROLLBACK")) return send
    const kind = kindOf(statement)
    const strikes = (until: number) => now() < until && chance.bool(likelihood[kind])
    if (kind === "pool" && statement.text === "BEGIN" && now() < ailments.failingUntil && chance.bool(0.3)) {
      happens("batch: conflict")
      return Effect.fail(conflict)
    }
    if (strikes(ailments.failingUntil)) {
      happens(`${kind}: connection lost`)
      return statement.lose
    }
    if (strikes(ailments.lossyUntil)) {
      happens(`${kind}: answer lost`)
      return Effect.andThen(send, statement.lose)
    }
    return send
  }

  return {
    around: (statement, send) =>
      pause.pipe(
        Effect.andThen(awake),
        Effect.andThen(Effect.suspend(() => disturbed(statement, send))),
        Effect.tap(() => Effect.andThen(awake, pause))
      ),
    deliver: (_, hand) =>
      Effect.suspend(() => {
        const millis = run.delivery()
        return millis === undefined
          ? Effect.void
          : Effect.sleep(millis).pipe(Effect.andThen(awake), Effect.andThen(hand))
      })
  }
}
