/** Checks a change of the parked events of a projection. */
import type { Checkpoint } from "../../src/schema/Checkpoint.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import type { Author } from "./Checkers.ts"
import type { Run } from "./Run.ts"
import type { Parked } from "./Withheld.ts"

/** Checks and records the change. `rows` are those of the projection. */
export const changed = (
  run: Run,
  by: Author,
  rows: ReadonlyArray<Checkpoint>,
  projection: string,
  after: ReadonlyArray<Parked>
): void => {
  const before = run.withheld.parked(projection)
  const known = new Map(before.map((event) => [event.position, event]))
  const remaining = new Set(after.map(({ position }) => position))
  const where = ({ key, position }: Parked) => `${projection}/${key} at ${position}`
  for (const event of after) {
    const was = known.get(event.position)
    if (was === undefined) parked(run, by, projection, event, after)
    if (was?.attempts !== event.attempts) checkOwner(run, by, rows, event, where(event))
  }
  for (const event of before) {
    if (remaining.has(event.position)) continue
    checkOwner(run, by, rows, event, where(event))
    unparked(run, by, projection, event)
  }
  run.withheld.setParked(projection, after)
}

/** Only the owner of the range changes a parked event, except for its request. */
const checkOwner = (
  run: Run,
  by: Author,
  rows: ReadonlyArray<Checkpoint>,
  { keyHash }: Parked,
  where: string
): void => {
  const fence = rows.find(({ range }) => HashRange.includes(range, keyHash))?.fence
  const owner = fence === undefined ? undefined : run.owners.get(fence.incarnation)
  if (owner?.name === by.name) return
  run.violation(`P4: ${by.name} changed the parked event ${where}, whose range ${owner?.name ?? "no worker"} holds`)
}

const parked = (
  run: Run,
  by: Author,
  projection: string,
  event: Parked,
  all: ReadonlyArray<Parked>
): void => {
  const isFailed = event.attempts > 0
  const where = `${projection}/${event.key} at ${event.position}`
  run.coverage.count("steps", isFailed ? "park an event" : "queue an event")
  run.say(by.name, `${isFailed ? "parks" : "queues"} ${where}`, by.at)
  if (isFailed && !run.mayHaveFailed(projection, event.position)) {
    run.violation(`P6: ${where} was parked although it did not fail`, by.at)
  }
  if (!isFailed && !all.some(({ keyHash, position }) => keyHash === event.keyHash && position < event.position)) {
    run.violation(`P6: ${where} was queued although no earlier event of its key is parked`, by.at)
  }
}

const unparked = (run: Run, by: Author, projection: string, { key, position, request }: Parked): void => {
  run.say(by.name, `${request === "drop" ? "drops" : "retries"} ${projection}/${key} at ${position}`, by.at)
  run.coverage.count("steps", request === "drop" ? "drop a parked event" : "handle a parked event")
  if (request === undefined) run.violation(`P3: position ${position} of ${projection} was unparked without a request`)
  if (request === "drop") run.withheld.leaveOut(projection, key, position)
}
