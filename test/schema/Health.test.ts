import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import { Activity } from "../../src/schema/Activity.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import * as Health from "../../src/schema/Health.ts"

const registration = {
  replicaSet: "main",
  workerId: "a",
  incarnation: 1n,
  startedAt: new Date(0),
  projections: ["users"]
}
const generation = { replicaSet: "main", generationId: 3n, members: [registration], leaderId: "a" }
const users = { projection: "users", range: HashRange.whole, position: 0n }
const mails = { projection: "mails", range: HashRange.whole, position: 0n }
const halt = { error: "Broken", position: 1n, eventId: "e" }

const starting = Activity.WorkerStarting({ workerId: "a", projections: ["users"] })
const registered = Activity.WorkerRegistered({ registration })
const changed = Activity.GenerationChanged({ generation, partition: 0, formedByThisWorker: true, reasons: [] })
const reached = Activity.AssignmentReached({ generation, partition: 0, after: Duration.zero, isLeftAlone: false })
const running = [starting, registered, changed, Activity.RangeClaimed(users), Activity.RangeClaimed(mails), reached]

/** The health after these activities, `seconds` after the last heartbeat. */
const after = (activities: ReadonlyArray<Activity>, seconds = 0) =>
  Health.make(activities.reduce((self, activity) => Health.observe(self, activity, 0n), Health.nothing), {
    replicaSet: "main",
    now: BigInt(seconds) * 1_000_000_000n,
    heartbeatInterval: Duration.seconds(5)
  })

it.each(
  [
    ["before the first run", [], "stopped", /is not running/],
    ["before it has registered", [starting], "starting", /not registered yet/],
    ["while it waits for a generation", [starting, registered], "pending", undefined],
    ["while it takes over its ranges", [starting, registered, changed], "ready", undefined],
    ["while it works", running, "running", undefined],
    ["while it is suspended", [...running, Activity.Suspended()], "suspended", /could not renew its heartbeat in time/],
    ["after it has resumed", [...running, Activity.Suspended(), Activity.Resumed()], "running", undefined],
    [
      "while it leaves",
      [...running, Activity.WorkerStopping({ registration })],
      "stopping",
      /asked to stop: it finishes its batches/
    ],
    [
      "after it has left",
      [...running, Activity.WorkerLeft({ registration, formedGeneration: true })],
      "stopped",
      /is not running/
    ],
    [
      "after a run that failed before it had registered",
      [starting, Activity.WorkerStopped({ failure: "The tables do not exist." })],
      "stopped",
      /^The worker has failed: The tables do not exist\.$/
    ],
    ["in the run after one that failed", [Activity.WorkerStopped({ failure: "x" }), ...running], "running", undefined],
    [
      "while one of its ranges is halted",
      [...running, Activity.RangeHalted({ ...users, halt, stack: "" })],
      "running",
      undefined
    ],
    [
      "while all of its ranges are halted",
      [...running, ...[users, mails].map((range) => Activity.RangeHalted({ ...range, halt, stack: "" }))],
      "running",
      /All ranges of the worker are halted/
    ],
    [
      "after its only halted range was given up",
      [...running, Activity.RangeHalted({ ...users, halt, stack: "" }), Activity.RangeStopped(users)],
      "running",
      undefined
    ]
  ] as const
)("%s", (_name, activities, state, problem) => {
  const health = after(activities)
  assert.strictEqual(health.state, state)
  if (problem === undefined) assert.notProperty(health, "problem")
  else assert.match(health.problem!, problem)
})

it("a heartbeat that is two intervals old is late", () => {
  assert.notProperty(after(running, 10), "problem")
  assert.match(after(running, 11).problem!, /renewed 11s ago; the database may be unreachable/)
  assert.notProperty(after([...running, Activity.HeartbeatRenewed({ took: Duration.zero })], 1), "problem")
})

it("counts ranges, and describes the generation", () => {
  const health = after([...running, Activity.RangeHalted({ ...users, halt, stack: "" })])
  assert.deepInclude(health, { workerId: "a", generationId: 3n, partition: 0, ranges: 2, haltedRanges: 1 })
})
