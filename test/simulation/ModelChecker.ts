/** Checks that the read model of a projection is the fold of the events up to its rows. */
import type { Checkpoint } from "../../src/schema/Checkpoint.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import { nameOf } from "./Names.ts"
import type { Run } from "./Run.ts"
import type { Subject } from "./Subject.ts"

export const checkModel = (run: Run, subject: Subject, rows: ReadonlyArray<Checkpoint>): void => {
  const { events, model, scenario, violation } = run
  const { isAtLeastOnce, name, ordering } = subject
  let total = 0
  for (const key of subject.expected.keys()) {
    const hash = events.hashOf(key)
    const row = rows.find(({ range }) => HashRange.includes(range, hash))!
    const where = `${name}/${key} under ${nameOf(row)} at ${row.position}`
    const [unhandled] = run.unhandled(subject, key, Number(row.position))
    if (unhandled !== undefined) violation(`P3: ${where} has no effects of the event at ${unhandled.position}`)
    if (!isAtLeastOnce) checkEffects(run, subject, key, row, where)
    checkParked(run, subject, key, where)
    total += run.effects(subject, key).count
  }
  if (isAtLeastOnce) return
  if (ordering === "global" && model.isInPositionOrder?.(name) === false) {
    violation(`P2: ${name} was not handled in position order`)
  }
  if (scenario.sharesRows && total !== model.total(name)) {
    violation(`P1: the shared row of ${name} has ${model.total(name)} effects, its parts ${total}`)
  }
}

/** No event was handled twice, out of order, or before the row had passed it. */
const checkEffects = (run: Run, subject: Subject, key: string, row: Checkpoint, where: string): void => {
  const { left, parked } = run.withheld.of(subject.name, key)
  const events = subject.events(key, Number(row.position))
  const expected = events.length - left.size - parked.length
  const effects = run.effects(subject, key)
  if (effects.count > expected) run.violation(`P1: ${where} has ${effects.count} effects of ${expected} events`)
  if (!effects.ordered) run.violation(`P2: ${where} was handled out of order`)
  const last = events.at(-1)
  if (
    left.size + parked.length === 0 && last !== undefined && effects.count === expected &&
    BigInt(last.position) !== effects.position
  ) {
    run.violation(`P2: ${where} ended with the event at position ${effects.position}`)
  }
}

/** No event was handled before an earlier parked event of its key. */
const checkParked = (run: Run, subject: Subject, key: string, where: string): void => {
  const { name } = subject
  const { position: last } = run.effects(subject, key)
  for (const { position } of run.withheld.of(name, key).parked) {
    // A worker that has lost the range may have handled the event before it was parked, and then later ones.
    if (subject.isAtLeastOnce && run.deliveries.row(name, key).applied.has(position)) continue
    if (position < last) run.violation(`P2: ${where} has handled position ${last} before ${position}, which is parked`)
  }
}
