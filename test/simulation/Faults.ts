/** The stores of one simulated worker: the memory layers with injected faults. */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as CheckpointStoreMemory from "../../src/layers/memory/CheckpointStoreMemory.ts"
import * as CoordinationStoreMemory from "../../src/layers/memory/CoordinationStoreMemory.ts"
import * as MembershipMemory from "../../src/layers/memory/MembershipMemory.ts"
import type { Handle } from "../../src/layers/memory/MemoryWorld.ts"
import * as ParkedEventsMemory from "../../src/layers/memory/ParkedEventsMemory.ts"
import * as ProjectionsMemory from "../../src/layers/memory/ProjectionsMemory.ts"
import * as Checkpoint from "../../src/schema/Checkpoint.ts"
import type { StoreError } from "../../src/schema/Errors.ts"
import {
  type BatchOptions,
  CheckpointStore,
  HandlerFailure,
  TransientFailure
} from "../../src/services/CheckpointStore.ts"
import { CoordinationStore } from "../../src/services/CoordinationStore.ts"
import { EventStore, type Page, type ReadOptions } from "../../src/services/EventStore.ts"
import { Membership } from "../../src/services/Membership.ts"
import { ParkedEvents, type Requests } from "../../src/services/ParkedEvents.ts"
import { Projections } from "../../src/services/Projections.ts"
import type { Stores } from "../../src/services/Stores.ts"
import { unavailable } from "../support/StoreErrors.ts"
import type { Checkers } from "./Checkers.ts"
import type { Entry } from "./Coverage.ts"
import type { Process } from "./Engine.ts"
import type { EventLog } from "./EventLog.ts"
import type { Mutation } from "./Mutations.ts"
import type { Run, Worker } from "./Run.ts"

/** Marks a batch whose connection is lost after its handler has run. */
const connectionLost = { simulated: "connection lost after the handler" }

const simulatedLoss = () => new TransientFailure({ kind: "connection", cause: new Error("simulated loss") })

/** What the stores of one worker depend on. */
export interface Ground {
  readonly run: Run
  readonly worker: Worker
  readonly process: Process
  readonly handle: Handle
  readonly log: EventLog
  readonly checkers: Checkers
  readonly mutation: Mutation
}

export const make = (
  { checkers, handle, log: events, mutation, process, run, worker }: Ground
): Context.Context<EventStore | Projections | Stores> => {
  const { chance, coverage, now, scenario } = run
  const { ailments } = worker
  const { reach } = handle

  const pause = (millis: number): Effect.Effect<void> => millis <= 0 ? Effect.void : Effect.sleep(millis)

  const latency = (): number => {
    const slow = now() < ailments.slowUntil
    if (slow) coverage.count("faults", "stores slow")
    return (scenario.latency === 0 ? 0 : chance.int(0, scenario.latency)) +
      (slow ? chance.int(1, ailments.slowMillis) : 0)
  }

  const isAway = (): boolean => now() < run.awayUntil || now() < ailments.awayUntil

  /** Fails a call that was in flight when the stores became unreachable. */
  const unlessAway = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E | StoreError, R> =>
    Effect.suspend((): Effect.Effect<A, E | StoreError, R> =>
      isAway() ? Effect.fail(unavailable("connection lost")) : self
    )

  /** The error of a call that cannot even start, or undefined. */
  const refusal = (): Effect.Effect<never, StoreError> | undefined => {
    if (isAway()) {
      coverage.count("errors", "DatabaseUnavailable")
      return chance.bool(0.5)
        ? Effect.andThen(pause(chance.int(1, 20)), Effect.fail(unavailable("refused")))
        : Effect.andThen(pause(scenario.settings.heartbeatInterval / 2), Effect.fail(unavailable("no answer in time")))
    }
    if (now() < ailments.failingUntil && chance.bool(0.3)) {
      coverage.count("faults", "stores failing sometimes")
      coverage.count("errors", "DatabaseUnavailable")
      return Effect.fail(unavailable("connection lost"))
    }
    return undefined
  }

  const loses = (): boolean => now() < ailments.lossyUntil && chance.bool(0.3)

  /** Makes a call that may fail before it starts, take time, and lose its answer. */
  const call = <A, E, R>(
    self: Effect.Effect<A, E, R>,
    lost?: { readonly entry: Entry<"faults">; readonly happens: () => void } | undefined
  ): Effect.Effect<A, E | StoreError, R> =>
    Effect.suspend((): Effect.Effect<A, E | StoreError, R> => {
      const refused = refusal()
      if (refused !== undefined) return refused
      const before = latency()
      const after = latency()
      // Halts are rare; without this it would take many runs until one of them loses its answer.
      const halts = lost?.entry === "halt: answer lost" && now() < ailments.handlerFailsUntil && chance.bool(0.2)
      const isLost = lost !== undefined && (halts || loses())
      return pause(before).pipe(
        Effect.andThen(unlessAway(self)),
        Effect.tap(() => {
          if (!isLost) return pause(after)
          coverage.count("faults", lost.entry)
          run.say(worker.name, lost.entry)
          lost.happens()
          return Effect.andThen(pause(after), Effect.fail(unavailable("connection lost")))
        })
      )
    })

  const nothing = () => {}

  const realCheckpoints = CheckpointStoreMemory.make(handle)
  const checkpoints = mutation.checkpoints?.(realCheckpoints, handle, chance) ?? realCheckpoints

  const refusedCommit = (): TransientFailure | undefined => {
    if (now() < ailments.failingUntil && chance.bool(0.2)) {
      return new TransientFailure({ kind: "conflict", cause: new Error("simulated conflict") })
    }
    return undefined
  }

  const observeFailure = (held: Checkpoint.Held, tag: string) =>
    Effect.sync(() => {
      if (tag === "Fenced") checkers.fenced(worker, held)
      if (tag === "EpochEnded") coverage.count("errors", tag)
    })

  const commit = <E, R>(
    held: Checkpoint.Held,
    options: BatchOptions,
    work: Effect.Effect<bigint, E, R>
  ): ReturnType<typeof checkpoints.commit<E, R>> =>
    Effect.suspend((): ReturnType<typeof checkpoints.commit<E, R>> => {
      const refused = refusal()
      if (refused !== undefined) return refused
      const conflict = refusedCommit()
      if (conflict !== undefined) {
        coverage.count("errors", "TransientFailure")
        return Effect.fail(conflict)
      }
      const lost = loses() ? chance.pick(["before", "after the handler", "looked up"] as const) : undefined
      if (lost === "before") {
        coverage.count("faults", "commit: connection lost before")
        coverage.count("errors", "TransientFailure")
        return Effect.fail(simulatedLoss())
      }
      let hasMoved = true
      const observed = Effect.tap(work, (to) =>
        Effect.sync(() => {
          hasMoved = to !== options.from
        }))
      const full = lost === "after the handler"
        ? Effect.andThen(observed, Effect.die(connectionLost))
        : observed
      const before = latency()
      const after = latency() + (lost === "looked up" ? chance.int(1, 300) : 0)
      return pause(before).pipe(
        Effect.andThen(unlessAway(checkpoints.commit(held, options, full))),
        Effect.catchTag("HandlerFailure", (failure): Effect.Effect<never, HandlerFailure | TransientFailure> => {
          if (
            failure.cause.reasons.some((reason) => Cause.isDieReason(reason) && reason.defect === connectionLost)
          ) {
            coverage.count("faults", "commit: connection lost after the handler")
            coverage.count("errors", "TransientFailure")
            return Effect.fail(simulatedLoss())
          }
          coverage.count("errors", "HandlerFailure")
          run.say(worker.name, `handler fails in ${Checkpoint.key(held)}`)
          return Effect.fail(new HandlerFailure({ cause: failure.cause }))
        }),
        Effect.tapError(({ _tag }) => observeFailure(held, _tag)),
        Effect.onInterrupt(() =>
          Effect.sync(() => {
            if (!worker.isCut) coverage.count("steps", "batch interrupted")
          })
        ),
        // The commit is complete. A store that looks up the outcome takes longer to return and cannot be interrupted. It
        // cannot find the outcome of a batch that does not move the position.
        Effect.tap(() => {
          if (lost === "looked up" && hasMoved) coverage.count("faults", "commit: answer lost, looked up")
          const answer = lost === "looked up" && !hasMoved ? Effect.fail(simulatedLoss()) : Effect.void
          return Effect.andThen(Effect.uninterruptible(pause(after)), answer)
        })
      )
    })

  const checkpointStore = CheckpointStore.of({
    commit,
    advance: (held, options) =>
      call(Effect.tapError(checkpoints.advance(held, options), ({ _tag }) => observeFailure(held, _tag)), {
        entry: "progress: answer lost",
        happens: () => worker.unanswered.add(Checkpoint.key(held))
      }),
    halt: (held, halt) =>
      Effect.tap(
        call(Effect.tapError(checkpoints.halt(held, halt), ({ _tag }) => observeFailure(held, _tag)), {
          entry: "halt: answer lost",
          happens: () => worker.unansweredHalts.add(Checkpoint.key(held))
        }),
        () => Effect.sync(() => worker.unansweredHalts.delete(Checkpoint.key(held)))
      ),
    rows: (projection) => call(checkpoints.rows(projection)),
    unstorable: checkpoints.unstorable,
    classifyHandler: checkpoints.classifyHandler,
    checkClient: checkpoints.checkClient
  })

  const realParked = ParkedEventsMemory.make(handle)
  const parked = mutation.parked?.(realParked, handle) ?? realParked
  /** An operator may change a request to skip an event while the worker executes it. */
  const changeRequest = Effect.fnUntraced(function*({ projection }: Checkpoint.Held, { halt }: Requests) {
    if (halt?.request !== "skip" || !chance.bool(0.5)) return
    coverage.count("faults", "request to skip changed")
    run.say("scenario", `requests to retry ${halt.eventId} of ${projection} instead`)
    yield* realParked.requestOnHalt(projection, { eventId: halt.eventId, request: "retry" })
  })
  const parkedEvents = ParkedEvents.of({
    ...parked,
    keys: (held, epoch) => call(parked.keys(held, epoch)),
    requests: (held) => call(Effect.tap(parked.requests(held), (requests) => changeRequest(held, requests)))
  })

  const log = events.store(process, mutation.readable?.(events), mutation.readBy)
  /** Where the pages with events end that this worker has read. */
  const pageEnds = new Set<bigint>()
  /** Whether there is only one range, and it has not passed the position. */
  const isAhead = (position: bigint) => {
    const rows = [...handle.world.rows.values()].flatMap(({ value }) => value ?? [])
    return rows.length === 1 && rows[0]!.position < position
  }
  const mayPark = scenario.projections.some(({ onFailure }) => onFailure === "park")
  const countRead = ({ after, hashes }: ReadOptions) => {
    // Without parked events, only a page that ranges divide needs hashes.
    if (hashes === true && !mayPark) coverage.count("steps", "page divided among ranges")
    if (pageEnds.has(after) && isAhead(after)) coverage.count("steps", "read ahead of a batch")
  }
  const readPage = (options: ReadOptions) =>
    Effect.suspend(() => {
      countRead(options)
      return Effect.map(log.read(options), (page): Page => {
        if (page.events.length > 0) pageEnds.add(page.position)
        return mutation.page?.(page) ?? page
      })
    })
  const readFailed = { entry: "read: failed", happens: nothing } as const
  const eventStore = EventStore.of({
    append: log.append,
    readStream: log.readStream,
    read: (options) => call(reach(readPage(options)), readFailed),
    endEpoch: log.endEpoch,
    settledPosition: call(reach(log.settledPosition)),
    positionBefore: log.positionBefore,
    settledBeyond: (position, pollInterval) => call(reach(log.settledBeyond(position, pollInterval))),
    headPosition: call(reach(log.headPosition)),
    openWriters: log.openWriters
  })

  const realCoordination = CoordinationStoreMemory.make(handle)
  const coordination = mutation.coordination?.(realCoordination, handle, chance) ?? realCoordination
  const countEviction = <A, E extends { readonly _tag: string }>(self: Effect.Effect<A, E>): Effect.Effect<A, E> =>
    Effect.tapError(self, ({ _tag }) =>
      Effect.sync(() => {
        if (_tag === "WorkerEvicted") coverage.count("errors", _tag)
      }))
  const coordinationStore = CoordinationStore.of({
    preview: (request) => countEviction(call(coordination.preview(request))),
    apply: (request) =>
      countEviction(call(coordination.apply(request), { entry: "decision: answer lost", happens: nothing }))
  })

  const membership = MembershipMemory.make(handle)
  const membershipService = Membership.of({
    join: (options) =>
      Effect.suspend(() => {
        const isLost = loses()
        const join = Effect.tap(membership.join(options), (registration) =>
          Effect.sync(() => {
            run.owners.set(registration.incarnation, worker)
            worker.registration = registration
            coverage.count("steps", "join")
            coverage.count("numbers", "joins")
            if (!isLost && worker.registrations++ > 0) coverage.count("steps", "join again after an eviction")
            run.say(worker.name, `joins as ${registration.workerId}#${registration.incarnation}`)
          }))
        if (!isLost) return call(join)
        // The registration ends with the attempt, as a session's lock does.
        return call(Effect.andThen(
          Effect.scoped(join),
          Effect.suspend(() => {
            coverage.count("faults", "join: answer lost")
            return Effect.fail(unavailable("connection lost"))
          })
        ))
      }),
    heartbeat: (registration, displayed) =>
      call(membership.heartbeat(registration, displayed), { entry: "heartbeat: answer lost", happens: nothing }).pipe(
        Effect.tapErrorTag("WorkerEvicted", () => Effect.sync(() => coverage.count("errors", "WorkerEvicted")))
      ),
    departed: (registration, members) => call(membership.departed(registration, members)),
    wakeUps: Effect.fnUntraced(function*(registration) {
      const sent = yield* membership.wakeUps(registration)
      const received = yield* Queue.sliding<void>(1)
      yield* Effect.forkScoped(Effect.forever(Effect.andThen(
        Queue.take(sent),
        Effect.suspend(() => {
          const delay = run.delivery()
          return delay === undefined ? Effect.void : Effect.andThen(pause(delay), Queue.offer(received, undefined))
        })
      )))
      return received
    }),
    watch: membership.watch,
    connections: membership.connections
  })

  return Context.make(EventStore, eventStore).pipe(
    Context.add(
      Projections,
      ProjectionsMemory.make(handle, { events: eventStore, parkedEvents })
    ),
    Context.add(CheckpointStore, checkpointStore),
    Context.add(ParkedEvents, parkedEvents),
    Context.add(Membership, membershipService),
    Context.add(CoordinationStore, coordinationStore)
  )
}
