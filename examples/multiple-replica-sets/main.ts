/**
 * Two replica sets on one event store: three workers keep a read model up to date, and one worker prepares messages. The
 * messages halt at an order that their handler cannot handle, while the read model continues. All workers run in this process; in
 * production, each replica set is a deployment of its own.
 */
import { Clock, Console, Effect, Layer, References } from "effect"
import { EventStore, Orchestrator, PostgresStores, Program, Projections, type Status } from "pupsourcing-orchestrator"
import * as ConsoleLog from "../support/ConsoleLog.ts"
import * as Database from "../support/Database.ts"
import { confirmations, orderTotals, Tables } from "./projections.ts"

const readModels = (workerId: string) =>
  Orchestrator.make({ replicaSet: "read-models", workerId, projections: [orderTotals] })

const notifications = (withoutEmail: "fail" | "skip") =>
  Orchestrator.make({
    replicaSet: "notifications",
    workerId: "notifications-1",
    projections: [confirmations(withoutEmail)]
  })

const customers = ["ada", "grace", "edsger"]

/** Appends 30 orders. One has no email address. */
const appendOrders = Effect.gen(function*() {
  const events = yield* EventStore.EventStore
  const now = yield* Clock.currentTimeMillis
  for (let index = 0; index < 30; index++) {
    const customer = customers[index % customers.length]!
    yield* events.append([{
      boundedContext: "shop",
      aggregateType: "Order",
      aggregateId: `order-${now}-${index}`,
      eventType: "OrderPlaced",
      payload: { customer, amount: 10 + index, email: index === 15 ? null : `${customer}@example.org` }
    }], { expectedVersion: "none" })
  }
  yield* Console.log("Appended 30 orders. One of them has no email address.")
})

const rangesOf = ({ projections }: Status.ReplicaSet) => projections.flatMap(({ ranges }) => ranges)
const lagOf = (status: Status.ReplicaSet) => rangesOf(status).reduce((sum, { lag }) => sum + lag.events, 0n)
const haltsOf = (status: Status.ReplicaSet) => rangesOf(status).flatMap(({ halt }) => halt ?? [])

const isRunning = ({ workers }: Status.ReplicaSet) => workers.every(({ state }) => state === "running")

/** Waits until both replica sets are as described, and prints their status. */
const reportWhen = Effect.fnUntraced(function*(
  what: string,
  holds: (readModels: Status.ReplicaSet, notifications: Status.ReplicaSet) => boolean
) {
  const projections = yield* Projections.Projections
  while (true) {
    const { replicaSets } = yield* projections.status
    const find = (name: string) => replicaSets.find(({ replicaSet }) => replicaSet === name)
    const pair = [find("read-models"), find("notifications")] as const
    if (pair[0] === undefined || pair[1] === undefined || !holds(pair[0], pair[1])) {
      yield* Effect.sleep("100 millis")
      continue
    }
    yield* Console.log(`\n${what}`)
    for (const status of [pair[0], pair[1]]) {
      yield* Console.log(
        `  ${
          status.replicaSet.padEnd(13)
        }  workers ${status.workers.length}  generation ${status.generation?.generationId}  ranges ${
          rangesOf(status).length
        }  halted ${haltsOf(status).length}  events behind ${lagOf(status)}`
      )
    }
    return
  }
})

/** What happens while the workers of `read-models` run. The worker of `notifications` runs until its step has ended. */
const steps = Effect.gen(function*() {
  const failing = yield* notifications("fail")
  yield* Effect.raceFirst(
    failing.run,
    Effect.andThen(
      reportWhen(
        "Each replica set divides the events among its own workers:",
        (readModels, notifications) =>
          readModels.workers.length === 3 && isRunning(readModels) && isRunning(notifications)
      ),
      Effect.andThen(
        appendOrders,
        reportWhen(
          "notifications is halted, read-models has handled everything:",
          (readModels, notifications) => lagOf(readModels) === 0n && haltsOf(notifications).length > 0
        )
      )
    )
  )
  const fixed = yield* notifications("skip")
  yield* Effect.raceFirst(
    fixed.run,
    reportWhen(
      "A worker with a fixed handler has continued notifications; read-models was not involved:",
      (readModels, notifications) =>
        lagOf(readModels) === 0n && haltsOf(notifications).length === 0 && lagOf(notifications) === 0n
    )
  )
})

const program = Effect.gen(function*() {
  const workers = yield* Effect.forEach(["read-models-1", "read-models-2", "read-models-3"], readModels)
  yield* Effect.raceAllFirst([steps, ...workers.map(({ run }) => run)])
})

const Live = PostgresStores.layer.pipe(
  Layer.provide(Tables),
  Layer.provide(PostgresStores.layerMigrations),
  Layer.provideMerge(Database.layer),
  Layer.provideMerge(ConsoleLog.layer),
  // Only the halt is logged; the status shows the rest.
  Layer.provideMerge(Layer.succeed(References.MinimumLogLevel, "Warn"))
)

Program.runMain(Effect.provide(program, Live))
