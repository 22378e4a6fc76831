/**
 * The steps of the demo: three workers join one after the other, one is killed and one is stopped in the middle of a
 * batch, while events are appended.
 */
import { Clock, Effect, Schedule } from "effect"
import { Status } from "pupsourcing-orchestrator"
import * as StatusText from "../../src/cli/StatusText.ts"
import type * as WorkerProcess from "../../src/testing/WorkerProcess.ts"
import { DemoFailed } from "./DemoFailed.ts"
import type { Fleet } from "./Fleet.ts"
import type { Flight } from "./Flights.ts"
import type { Ledger, ToCome } from "./Ledger.ts"
import { names } from "./projections.ts"
import * as Snapshot from "./Snapshot.ts"
import { count, type Row, type Screen } from "./Table.ts"

/** The number of events that a worker must still have to handle when it is killed or stopped. */
const leastToCome = 2000

/**
 * When the steps happen, as numbers of events that all projections have handled, and how many events may be appended
 * before. Each step therefore happens while events are appended, on a fast and on a slow machine.
 */
const plan = {
  secondWorker: 4000,
  thirdWorker: 8000,
  kill: 13_000,
  appendedBeforeKill: 22_000,
  stop: 20_000,
  appendedBeforeStop: 30_000
}

/** Maximum number of events that are appended and not handled: the appender waits for the workers. */
const largestBacklog = 4000

/** The longest wait for a step. */
const patience = "45 seconds"
const stillness = 60_000
const pollInterval = "10 millis"
const frame = "250 millis"
/** Time over which events per second are averaged, in milliseconds. */
const rateWindow = 2000

interface Member {
  readonly process: WorkerProcess.WorkerProcess
  state: string
}

export const run = Effect.fnUntraced(function*({ fleet, flights, ledger, screen }: {
  readonly flights: ReadonlyArray<Flight>
  readonly ledger: Ledger
  readonly fleet: Fleet
  readonly screen: Screen
}) {
  const members: Array<Member> = []
  let latest = yield* Snapshot.take
  let handled = 0
  let mayAppendTo = plan.appendedBeforeKill

  /** The events that each worker has handled, by time, counted once for each projection. */
  const done = new Map<string, Array<{ readonly at: number; readonly events: number }>>()

  const record = (snapshot: Snapshot.Snapshot) => {
    if (snapshot.at <= latest.at) return
    for (const range of snapshot.ranges) {
      if (range.worker === undefined) continue
      // The part that another row covered before may have been at another position.
      const events = latest.ranges.reduce((sum, before) => {
        if (before.projection !== range.projection || before.position >= range.position) return sum
        const overlap = { ...range, start: Math.max(before.start, range.start), end: Math.min(before.end, range.end) }
        return overlap.start < overlap.end ? sum + ledger.between(overlap, before.position, range.position) : sum
      }, 0)
      const log = done.get(range.worker) ?? []
      log.push({ at: snapshot.at, events })
      done.set(range.worker, log.filter(({ at }) => at > snapshot.at - rateWindow))
    }
    latest = snapshot
    handled = Math.min(...names.map((name) => ledger.handled(snapshot, name)))
  }

  const poll = Effect.gen(function*() {
    const snapshot = yield* Snapshot.take
    record(snapshot)
    const halted = Status.problems(snapshot.status).find(({ problem }) => problem === "halted")
    if (halted !== undefined) {
      return yield* new DemoFailed({ problem: `Projection ${halted.projection} halted: ${halted.range.halt?.error}` })
    }
    return snapshot
  })

  /** Takes snapshots until the condition returns a value. */
  const until = <A>(what: string, condition: (snapshot: Snapshot.Snapshot) => A | undefined) =>
    Effect.gen(function*() {
      while (true) {
        const found = condition(yield* poll)
        if (found !== undefined) return found
        yield* Effect.sleep(pollInterval)
      }
    }).pipe(
      Effect.timeoutOrElse({
        duration: patience,
        orElse: () =>
          Effect.fail(
            new DemoFailed({ problem: `Waited ${patience}, without success, until ${what}.\n${report()}` })
          )
      })
    )

  const report = () =>
    [
      StatusText.render(latest.status),
      ...members.filter(({ process }) => process.isAlive()).map(({ process }) =>
        `Output of ${process.id}:\n${process.output()}`
      )
    ].join("\n")

  const appending = ledger.appendAll(
    flights,
    Effect.sync(() => ledger.appended() < mayAppendTo && ledger.appended() - handled < largestBacklog).pipe(
      Effect.repeat({ until: (may) => may, schedule: Schedule.spaced(pollInterval) })
    )
  )

  const rows = (): ReadonlyArray<Row> =>
    members.map(({ process, state }) => {
      const ranges = process.isAlive() ? Snapshot.rangesOf(latest, process.id) : []
      const worker = latest.workers.find(({ workerId }) => workerId === process.id)
      const holds = ranges.length > 0
      const lags = names.map((name) => ledger.toCome(ranges.filter(({ projection }) => projection === name)).waiting)
      const recent = done.get(process.id)?.filter(({ at }) => at > latest.at - rateWindow) ?? []
      return {
        worker: process.id,
        state,
        partition: holds && worker?.partition !== undefined && worker.generationId === latest.generation?.generationId
          ? `${worker.partition} of ${latest.generation?.partitions}`
          : "",
        generation: holds ? String(worker?.generationId ?? "") : "",
        position: holds ? Math.min(...ranges.map(({ position }) => position)) : undefined,
        lag: holds ? Math.max(...lags) : undefined,
        eventsPerSecond: holds ? recent.reduce((sum, { events }) => sum + events, 0) / (rateWindow / 1000) : undefined
      }
    })

  const showing = Effect.gen(function*() {
    let movedAt = yield* Clock.currentTimeMillis
    let before = -1
    while (true) {
      yield* poll
      const sum = names.reduce((sum, name) => sum + ledger.handled(latest, name), 0)
      const now = yield* Clock.currentTimeMillis
      if (sum !== before || members.length === 0) movedAt = now
      before = sum
      if (now - movedAt > stillness) {
        return yield* new DemoFailed({
          problem: `No event was handled for ${stillness / 1000} seconds.\n${report()}`
        })
      }
      yield* screen.draw({ appended: ledger.appended(), total: ledger.total, handled: sum, rows: rows() })
      yield* Effect.sleep(frame)
    }
  })

  const alive = () => members.filter(({ process }) => process.isAlive()).map(({ process }) => process.id)

  const start = Effect.fnUntraced(function*(id: string) {
    const startedAt = latest.at
    const process = yield* fleet.start(id)
    const member: Member = { process, state: "starting" }
    members.push(member)
    yield* screen.print(`${id} started (process ${process.pid})`)
    const workers = alive()
    const settled = yield* until(
      `${id} takes part, and each of ${workers.length} workers holds its share`,
      (snapshot) => Snapshot.isSettled(snapshot, workers) ? snapshot : undefined
    )
    member.state = "alive"
    yield* screen.print(
      `${id} takes part: generation ${settled.generation?.generationId}, ${workers.length} of ${workers.length} partitions taken ` +
        `${millis(settled.at - settled.formedAt)} after it was formed, ${
          millis(settled.at - startedAt)
        } after the process was started`
    )
    return member
  })

  /** Waits without a limit, because the time depends on the machine; `showing` fails when nothing is handled. */
  const handledAtLeast = (events: number) =>
    Effect.sync(() => handled >= events).pipe(
      Effect.repeat({ until: (enough) => enough, schedule: Schedule.spaced(pollInterval) })
    )

  /**
   * Freezes a worker for the few milliseconds in which its state is read, so that the state still holds when the signal
   * is sent: a batch in flight, and enough events to handle.
   */
  const catchInBatch = Effect.fnUntraced(function*({ process }: Member) {
    let seen: { readonly projection: string; readonly toCome: ToCome } | undefined
    const attempt = Effect.gen(function*() {
      if ((yield* Snapshot.batches(process.id)).length === 0) return undefined
      yield* process.send("SIGSTOP")
      const batches = yield* Snapshot.batches(process.id).pipe(
        // A running statement ends; a transaction that is idle afterwards waits for the frozen worker.
        Effect.repeat({
          until: (batches) => batches.every(({ state, stateAge }) => state === "idle in transaction" && stateAge > 3),
          schedule: Schedule.spaced("2 millis"),
          times: 50
        })
      )
      const inFlight = batches.filter(({ state, stateAge }) => state === "idle in transaction" && stateAge > 3)
      const snapshot = yield* poll
      const toCome = names.map((projection) => ({
        projection,
        toCome: ledger.toCome(Snapshot.rangesOf(snapshot, process.id, projection))
      }))
      seen = toCome.reduce((a, b) => sumOf(b.toCome) < sumOf(a.toCome) ? b : a)
      if (inFlight.length > 0 && sumOf(seen.toCome) >= leastToCome) return { snapshot, inFlight, toCome: seen.toCome }
      yield* process.send("SIGCONT")
      return undefined
    })
    const caught = yield* attempt.pipe(
      Effect.repeat({ until: (found) => found !== undefined, schedule: Schedule.spaced("5 millis") }),
      Effect.timeoutOrElse({
        duration: patience,
        orElse: () =>
          Effect.fail(
            new DemoFailed({
              problem: `${process.id} was not caught with a batch in flight and ${count(leastToCome)} events to come${
                seen === undefined ? "" : `; last state: ${describe(seen.toCome)} (${seen.projection})`
              }.\n${report()}`
            })
          )
      })
    )
    return caught ?? (yield* Effect.die(new Error("The loop ended without a catch")))
  })

  type Caught = Effect.Success<ReturnType<typeof catchInBatch>>

  const facts = ({ inFlight, toCome }: Caught) =>
    `${inFlight.length === 1 ? "a batch" : `${inFlight.length} batches`} in flight (open for ${
      inFlight.map(({ age }) => millis(age)).join(" and ")
    }, uncommitted), ${describe(toCome)}`

  /** Waits until the others own all ranges and have handled events of those that the victim owned. */
  const takenOver = Effect.fnUntraced(function*(victim: Member, { snapshot: before }: Caught) {
    const others = alive().filter((id) => id !== victim.process.id)
    const lost = Snapshot.rangesOf(before, victim.process.id)
    const settled = yield* until(
      `${others.join(" and ")} take over from ${victim.process.id}`,
      (snapshot) =>
        Snapshot.rangesOf(snapshot, victim.process.id).length === 0 && Snapshot.isSettled(snapshot, others)
          ? snapshot
          : undefined
    )
    const taken = settled.ranges.filter((range) =>
      lost.some((was) => range.projection === was.projection && overlap(range, was))
    )
    const continued = yield* until(
      `${others.join(" and ")} handle what was ${victim.process.id}'s`,
      (snapshot) =>
        names.every((projection) =>
            taken.some((was) =>
              was.projection === projection &&
              snapshot.ranges.some((range) =>
                range.projection === projection && overlap(range, was) && range.position > was.position
              )
            )
          )
          ? snapshot
          : undefined
    )
    return `${others.join(" and ")} took over: generation ${settled.generation?.generationId} formed after ${
      millis(settled.formedAt - before.at)
    }, all ranges taken after ${millis(settled.at - before.at)}, the first batches committed after ${
      millis(continued.at - before.at)
    }`
  })

  const ended = Effect.fnUntraced(function*({ process }: Member) {
    return yield* Effect.timeoutOrElse(process.ended, {
      duration: patience,
      orElse: () =>
        Effect.fail(new DemoFailed({ problem: `${process.id} did not end in ${patience}.\n${process.output()}` }))
    })
  })

  /** Fails unless the worker ended with exit code 0 after SIGTERM. */
  const leftGracefully = (member: Member, ending: WorkerProcess.Ended) => {
    if (ending.code === 0) return Effect.void
    return Effect.fail(
      new DemoFailed({
        problem: `${member.process.id} was stopped with SIGTERM and should have ended with exit code 0, but: ${
          ending.signal ?? `exit code ${ending.code}`
        }. Its output:\n${member.process.output()}`
      })
    )
  }

  const steps = Effect.gen(function*() {
    const first = yield* start("worker-1")
    yield* handledAtLeast(plan.secondWorker)
    const second = yield* start("worker-2")
    yield* handledAtLeast(plan.thirdWorker)
    const third = yield* start("worker-3")

    yield* handledAtLeast(plan.kill)
    mayAppendTo = plan.appendedBeforeStop
    const caughtSecond = yield* catchInBatch(second)
    yield* second.process.send("SIGKILL")
    second.state = "killed (SIGKILL)"
    yield* screen.print(`SIGKILL to worker-2: ${facts(caughtSecond)}`)
    yield* ended(second)
    yield* screen.print(yield* takenOver(second, caughtSecond))

    yield* handledAtLeast(plan.stop)
    mayAppendTo = ledger.total
    const caughtThird = yield* catchInBatch(third)
    yield* third.process.send("SIGTERM")
    yield* third.process.send("SIGCONT")
    third.state = "stopping (SIGTERM)"
    yield* screen.print(`SIGTERM to worker-3: ${facts(caughtThird)}`)
    const handover = yield* Effect.all(
      [takenOver(third, caughtThird), ended(third)],
      { concurrency: "unbounded" }
    )
    third.state = "stopped, exit code 0"
    yield* leftGracefully(third, handover[1])
    yield* screen.print(`worker-3 left gracefully, exit code 0; ${handover[0]}`)

    yield* handledAtLeast(ledger.total)
    yield* screen.print(`All ${count(ledger.total)} events are appended, and handled by both projections`)
    yield* first.process.send("SIGTERM")
    first.state = "stopped, exit code 0"
    yield* leftGracefully(first, yield* ended(first))
    yield* screen.print("worker-1 left gracefully, exit code 0")
  })

  yield* Effect.raceAllFirst([
    steps,
    showing,
    Effect.andThen(appending, Effect.never)
  ])
})

const overlap = (a: Snapshot.Range, b: Snapshot.Range): boolean => a.start < b.end && b.start < a.end

const sumOf = ({ notAppended, waiting }: ToCome): number => waiting + notAppended

const describe = (toCome: ToCome): string =>
  `${count(sumOf(toCome))} events to come (${count(toCome.waiting)} waiting in its ranges, ${
    count(toCome.notAppended)
  } still to be appended to them)`

const millis = (value: number): string => `${Math.round(value)} ms`
