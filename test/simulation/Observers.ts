/** Passes every commit of the memory world to the checkers of the simulation, in the fiber that commits. */
import * as Fiber from "effect/Fiber"
import type * as TxRef from "effect/TxRef"
import type * as MemoryWorld from "../../src/layers/memory/MemoryWorld.ts"
import type { Checkpoint } from "../../src/schema/Checkpoint.ts"
import { type Author, type Checkers, nameOf } from "./Checkers.ts"
import { CurrentProcess } from "./Engine.ts"
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

/** Passes everything that is committed in a world from now on to the checkers. */
export const attach = (world: MemoryWorld.MemoryWorld, rows: ObservedRows, run: Run, checkers: Checkers): void => {
  const author = (): Author => ({ name: Fiber.getCurrent()?.getRef(CurrentProcess)?.name ?? "?", at: run.now() })

  rows.changed = (key, after) => {
    const by = author()
    const worker = run.workers.find(({ name }) => name === by.name)
    if (worker?.isCut === true) run.violation(`P4: ${by.name} wrote ${key} after it was cut off`)
    const before = checkers.rows.get(key)
    const clearsHalt = before?.halt !== undefined && after !== undefined && after.position !== before.position
    // The runner retries an event whose halt was not confirmed.
    // A request about parked events also retries the event at which the range is halted.
    const isRequested = after !== undefined && run.subjects.get(after.projection)?.parks === true
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
