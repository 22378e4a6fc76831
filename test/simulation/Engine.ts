/**
 * Virtual time and a seeded scheduler for several simulated processes. Everything runs in one synchronous loop that
 * picks tasks of fibers and timers by the seed alone, so the same seed gives the same run.
 *
 * Each process has its own scheduler and clock. The tasks and timers of a frozen process are parked while the others
 * continue. A fiber of a frozen process that another process's task resumes yields before it runs any operation.
 */
import type * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scheduler from "effect/Scheduler"
import { Chance } from "./Chance.ts"

/** The process to which a fiber belongs. */
export const CurrentProcess = Context.Reference<Process | undefined>("simulation/CurrentProcess", {
  defaultValue: () => undefined
})

interface Task {
  readonly process: Process
  readonly run: () => void
}

/** A timer that has not fired; `cancelled` disables it without a search in the heap. */
export interface Timer {
  readonly at: number
  readonly order: number
  readonly process: Process
  readonly run: () => void
  cancelled: boolean
}

const earlier = (a: Timer, b: Timer): boolean => a.at < b.at || (a.at === b.at && a.order < b.order)

/** A simulated process, which can be frozen and ended as a whole. */
export class Process {
  readonly engine: Engine
  readonly name: string
  readonly scheduler: Scheduler.Scheduler
  readonly clock: Clock.Clock
  /** The error of its wall clock, in milliseconds. */
  skew = 0
  frozen = false
  /** It never runs again. */
  ended = false
  private parked: Array<Task> = []
  private parkedTimers: Array<Timer> = []

  constructor(engine: Engine, name: string, preemptible: boolean) {
    this.engine = engine
    this.name = name
    this.scheduler = {
      executionMode: "async",
      // Not before a fiber's first operation: a fiber that is interrupted before it starts and then yields before it
      // fails would be started anyway. Effect's own scheduler never yields there either.
      shouldYield: (fiber) =>
        preemptible && (this.frozen || this.ended || (fiber.currentOpCount > 1 && engine.preempts())),
      makeDispatcher: () => ({
        scheduleTask: (run) => engine.enqueue({ process: this, run }),
        flush: () => {}
      })
    }
    const nanos = (millis: number) => BigInt(Math.round(millis)) * 1_000_000n
    const wall = () => engine.now + this.skew
    this.clock = {
      currentTimeMillisUnsafe: wall,
      currentTimeMillis: Effect.sync(wall),
      currentTimeNanosUnsafe: () => nanos(wall()),
      currentTimeNanos: Effect.sync(() => nanos(wall())),
      monotonicTimeNanosUnsafe: () => nanos(engine.now),
      monotonicTimeNanos: Effect.sync(() => nanos(engine.now)),
      sleep: (duration) => this.sleep(duration)
    }
  }

  private sleep(duration: Duration.Duration): Effect.Effect<void> {
    const millis = Duration.toMillis(duration)
    if (millis <= 0) return Effect.yieldNow
    if (!Number.isFinite(millis)) return Effect.never
    return Effect.callback((resume) => {
      const timer = this.engine.after(this, millis, () => resume(Effect.void))
      return Effect.sync(() => {
        timer.cancelled = true
      })
    })
  }

  park(what: Task | Timer): void {
    if (this.ended) return
    if ("at" in what) this.parkedTimers.push(what)
    else this.parked.push(what)
  }

  thaw(): void {
    this.frozen = false
    const tasks = this.parked
    const timers = this.parkedTimers
    this.parked = []
    this.parkedTimers = []
    for (const task of tasks) this.engine.enqueue(task)
    for (const timer of timers) {
      if (!timer.cancelled) this.engine.enqueue(timer)
    }
  }
}

/** More tasks than this at one instant of virtual time mean an endless loop. */
const tasksPerInstant = 50_000

export class Engine {
  now = 0
  /** Tasks run so far. */
  steps = 0
  private readonly chance: Chance
  private readonly preemption: number
  private readonly disorder: number
  private ready: Array<Task> = []
  private timers: Array<Timer> = []
  private order = 0
  /** Called after every task. */
  afterTask: () => void = () => {}

  /**
   * `preemption`: the probability that a fiber yields before an operation. `disorder`: the probability that the next
   * task is a random one of those that are ready, instead of the oldest.
   */
  constructor(seed: number, preemption: number, disorder: number) {
    this.chance = new Chance(seed, 1)
    this.preemption = preemption
    this.disorder = disorder
  }

  preempts(): boolean {
    return this.preemption > 0 && this.chance.next() < this.preemption
  }

  enqueue(task: Task): void {
    this.ready.push(task)
  }

  /** Runs a function in a process after some milliseconds, rounded up to an integer. */
  after(process: Process, millis: number, run: () => void): Timer {
    const timer: Timer = {
      at: this.now + Math.max(0, Math.ceil(millis)),
      order: this.order++,
      process,
      run,
      cancelled: false
    }
    this.push(timer)
    return timer
  }

  private push(timer: Timer): void {
    const heap = this.timers
    let index = heap.push(timer) - 1
    while (index > 0) {
      const parent = (index - 1) >> 1
      if (!earlier(timer, heap[parent]!)) break
      heap[index] = heap[parent]!
      index = parent
    }
    heap[index] = timer
  }

  private popTimer(): Timer | undefined {
    const heap = this.timers
    const first = heap[0]
    const last = heap.pop()
    if (first === undefined || last === undefined || first === last) return first
    let index = 0
    while (true) {
      let child = 2 * index + 1
      if (child >= heap.length) break
      if (child + 1 < heap.length && earlier(heap[child + 1]!, heap[child]!)) child++
      if (!earlier(heap[child]!, last)) break
      heap[index] = heap[child]!
      index = child
    }
    heap[index] = last
    return first
  }

  private take(): Task {
    const index = this.ready.length > 1 && this.chance.next() < this.disorder
      ? Math.floor(this.chance.next() * this.ready.length)
      : 0
    return this.ready.splice(index, 1)[0]!
  }

  /** Runs until `done` holds or virtual time passes `deadline`. Returns whether `done` holds. */
  run(done: () => boolean, deadline: number): boolean {
    while (true) {
      let tasks = 0
      while (this.ready.length > 0) {
        const task = this.take()
        if (task.process.ended || ("cancelled" in task && task.cancelled)) continue
        if (task.process.frozen) {
          task.process.park(task)
          continue
        }
        if (++tasks > tasksPerInstant) throw new Error(`nothing comes to rest at ${this.now} ms`)
        this.steps++
        task.run()
        this.afterTask()
      }
      if (done()) return true
      let timer = this.popTimer()
      while (timer !== undefined && (timer.cancelled || timer.process.ended)) timer = this.popTimer()
      if (timer === undefined) return false
      if (timer.at > deadline) {
        this.push(timer)
        this.now = deadline
        return false
      }
      this.now = Math.max(this.now, timer.at)
      this.enqueue(timer)
      // All timers of one instant become ready together; the seed determines their order.
      while (this.timers[0] !== undefined && this.timers[0].at <= this.now) {
        const next = this.popTimer()!
        if (!next.cancelled) this.enqueue(next)
      }
    }
  }
}
