/** What a scenario needs of the environment in which it runs: simulated in memory, or PostgreSQL in real time. */
import type * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import type { Event } from "../../src/schema/Event.ts"
import type { HaltRequest, Request, Selection } from "../../src/schema/ParkedEvent.ts"
import type * as Orchestrator from "../../src/services/Orchestrator.ts"
import type * as Projection from "../../src/services/Projection.ts"
import type { Worker } from "./Run.ts"
import type { Write } from "./Scenario.ts"
import type { Subject } from "./Subject.ts"

export interface Environment<R> {
  /** Checks something once the checkers have received everything that is committed by now. */
  readonly check: (check: () => void) => void
  /** Runs a function later, even if workers are frozen. */
  readonly after: (millis: number, run: () => void) => void
  readonly write: (write: Write) => void
  /** The number of writers that have drawn positions and not ended. */
  readonly openWriters: () => number
  /** Applies one event's effects in the batch's transaction. */
  readonly handle: (subject: Subject, event: Event) => Effect.Effect<void, unknown, R>
  readonly start: (
    worker: Worker,
    options: Orchestrator.Options<ReadonlyArray<Projection.Projection<unknown, R | Projection.Delivery>>>,
    ended: (exit: Exit.Exit<unknown, unknown>) => void
  ) => void
  /** Interrupts the worker. */
  readonly stop: (worker: Worker) => void
  /** Ends the worker's sessions as a crash does; nothing that it still does has any effect. */
  readonly cut: (worker: Worker) => void
  /** Stops the worker completely; it does not even end its sessions. */
  readonly halt: (worker: Worker) => void
  readonly freeze: (worker: Worker) => void
  readonly thaw: (worker: Worker) => void
  /** Makes the stores unreachable for a worker until `ailments.awayUntil`, or for all until `run.awayUntil`. */
  readonly disconnect: (worker: Worker | undefined) => void
  /** Makes the stores reachable again. */
  readonly reconnect: (worker: Worker | undefined) => void
  /** Requests that parked events of a projection are retried or dropped. Returns how many; none if there are none. */
  readonly requestParked: (projection: string, request: Request, selection: Selection) => number
  /** Requests something about the event at which a range is halted. */
  readonly requestOnHalt: (projection: string, eventId: string, request: HaltRequest) => void
  /** How often workers were delayed for reasons outside of the scenario. */
  readonly stalls: () => number
  /** Ends the worker's presence for this long, or until it reconnects. Returns whether it had any. */
  readonly endPresence: (worker: Worker, millis: number | undefined) => boolean
}
