/** Passes every commit of the memory world to the checkers of the simulation, in the fiber that commits. */
import * as Fiber from "effect/Fiber"
import type * as TxRef from "effect/TxRef"
import type * as MemoryWorld from "../../src/layers/memory/MemoryWorld.ts"
import type { Checkpoint } from "../../src/schema/Checkpoint.ts"
import type { ParkedEvent } from "../../src/schema/ParkedEvent.ts"
import type { Author, Checkers } from "./Checkers.ts"
import { CurrentProcess } from "./Engine.ts"
import { nameOf } from "./Names.ts"
import type { Run } from "./Run.ts"

/** Calls `changed` on every commit of a value. */
const observe = <A>(ref: TxRef.TxRef<A>, changed: (before: A, after: A) => void): void => {
  let value = ref.value
  Object.defineProperty(ref, "value", {
    enumerable: true,
    get: () => value,
    set: (next: A) => {
      const before = value
      value = next
      changed(before, next)
    }
  })
}

/** Rows by key, each observed from its creation. */
export class ObservedRows extends Map<string, TxRef.TxRef<Checkpoint | undefined>> {
  changed: (key: string, after: Checkpoint | undefined) => void = () => {}

  override set(key: string, ref: TxRef.TxRef<Checkpoint | undefined>): this {
    observe(ref, (_, after) => this.changed(key, after))
    return super.set(key, ref)
  }
}

/** The parked events of each projection, observed from the first one. */
export class ObservedParked extends Map<string, TxRef.TxRef<ReadonlyArray<ParkedEvent>>> {
  changed: (projection: string, after: ReadonlyArray<ParkedEvent>) => void = () => {}

  override set(projection: string, ref: TxRef.TxRef<ReadonlyArray<ParkedEvent>>): this {
    if (this.get(projection) !== ref) observe(ref, (_, after) => this.changed(projection, after))
    return super.set(projection, ref)
  }
}

/** What of a world is observed. */
interface Observed extends MemoryWorld.MemoryWorld {
  readonly rows: ObservedRows
  readonly parked: ObservedParked
}

/** Passes everything that is committed in a world from now on to the checkers. */
export const attach = (world: Observed, run: Run, checkers: Checkers): void => {
  const author = (): Author => ({ name: Fiber.getCurrent()?.getRef(CurrentProcess)?.name ?? "?", at: run.now() })

  world.parked.changed = (projection, after) => checkers.parkedChanged(author(), projection, after)
  world.rows.changed = (key, after) => {
    const by = author()
    const worker = run.workers.find(({ name }) => name === by.name)
    if (worker?.isCut === true) run.violation(`P4: ${by.name} wrote ${key} after it was cut off`)
    const before = checkers.rows.get(key)
    const clearsHalt = before?.halt !== undefined && after !== undefined && after.position !== before.position
    // The runner retries an event whose halt was not confirmed. A request about the event ends its halt, and so does one
    // about parked events.
    const isRequested = before?.halt?.request !== undefined ||
      (after !== undefined && run.subjects.get(after.projection)?.onFailure === "park")
    if (clearsHalt && !isRequested && worker?.unansweredHalts.delete(key) !== true) {
      run.violation(`P6: ${by.name} cleared the halt of ${nameOf(before)} without a retry of its event`)
    }
    checkers.rowChanged(by, key, after)
  }
  observe(world.workers, (before, after) => {
    for (const [key, worker] of after) {
      if (worker !== before.get(key)) checkers.workerChanged(author(), worker)
    }
  })
  observe(world.generations, (before, after) => {
    for (const [replicaSet, records] of after) {
      const newest = records.at(-1)
      const known = before.get(replicaSet)?.at(-1)
      if (newest === undefined || newest === known) continue
      if (newest.generationId !== known?.generationId) checkers.generationFormed(author(), newest)
      else if (newest.state === "active") checkers.generationActivated(replicaSet, newest.generationId)
    }
  })
}
