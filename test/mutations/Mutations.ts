/**
 * The mechanisms behind the guarantees on PostgreSQL, and how each is removed: mostly by swapping a clause that the
 * source names, on the way of its statements to the server.
 */
import * as ServerEpochSql from "../../src/layers/postgres/connection/ServerEpochSql.ts"
import { decisionLock } from "../../src/layers/postgres/coordination/CoordinationSession.ts"
import type { Observations } from "../../src/layers/postgres/coordination/Observations.ts"
import * as PlanWriter from "../../src/layers/postgres/coordination/PlanWriter.ts"
import * as Rows from "../../src/layers/postgres/coordination/Rows.ts"
import { isHeldByWriter } from "../../src/layers/postgres/events/SequenceCheck.ts"
import * as SettledTracker from "../../src/layers/postgres/events/SettledTracker.ts"
import { limitIdleTime } from "../../src/layers/postgres/progress/CheckpointStorePostgres.ts"
import * as FencedWrite from "../../src/layers/postgres/progress/FencedWrite.ts"
import type { Held } from "../../src/schema/Checkpoint.ts"
import { sql, swap, toFalse, toNull, toTrue } from "../support/Clauses.ts"
import * as Scenarios from "./Scenarios.ts"
import type { Mutation } from "./World.ts"

export interface Entry extends Mutation {
  readonly mechanism: string
  readonly scenario: Scenarios.Scenario
}

/** The values do not matter, because a clause is swapped with any parameters. */
const held: Held = {
  projection: "",
  range: { start: 0, end: 0 },
  position: 0n,
  replicaSet: "",
  fence: { workerId: "", incarnation: 0n, generationId: 0n },
  filter: "",
  halt: undefined
}

/** These columns of the range and its fence are not compared. */
const without = (...columns: ReadonlyArray<FencedWrite.Column>) =>
  columns.map((column) => swap(FencedWrite.isEqual(sql, column, FencedWrite.valuesOf(sql, held)[column]), toTrue))

/** Neither the fence nor the position of a row is compared. */
export const unfenced = () => [
  ...without("worker_id", "incarnation", "generation_id"),
  swap(FencedWrite.isAt(sql, 0n), toTrue)
]

/** Decisions do not wait for each other. */
export const concurrentDecisions = () => [swap(decisionLock(sql, "", ""), toNull)]

/** No transaction is found that can still add events. */
export const noOpenWriters = () => [swap(isHeldByWriter, toFalse)]

type ObservedWorker = NonNullable<ReturnType<Observations["workers"]["get"]>>

/** Observations in which every worker was present before. */
class PresentWorkers extends Map<string, ObservedWorker> {
  override get(key: string): ObservedWorker {
    return super.get(key) ?? { beat: "", beatAt: 0n, readAt: 0n, wasPresent: true, missingSince: undefined }
  }
}

export const entries: ReadonlyArray<Entry> = [
  {
    mechanism: "the fence: worker, incarnation and generation",
    scenario: Scenarios.replaced,
    swaps: without("worker_id", "incarnation", "generation_id")
  },
  {
    // A new incarnation always forms a new generation, so the generation alone would keep the guarantee.
    mechanism: "the incarnation and the generation in the fence",
    scenario: Scenarios.reincarnated,
    swaps: without("incarnation", "generation_id")
  },
  {
    // A decision renews the generation of every row that it cuts.
    mechanism: "draining before a hand-over, and the range's end and the generation in the fence",
    scenario: Scenarios.handedOver,
    swaps: without("range_end", "generation_id"),
    withoutActiveKeys: true
  },
  {
    mechanism: "draining before a hand-over, and the range's end and the fence",
    scenario: Scenarios.handedOver,
    swaps: without("range_end", "worker_id", "incarnation", "generation_id"),
    withoutActiveKeys: true
  },
  {
    mechanism: "the decision lock",
    scenario: Scenarios.atOnce,
    swaps: concurrentDecisions()
  },
  {
    mechanism: "locking rows before computing from them, and comparing them when they are replaced",
    scenario: Scenarios.outdated,
    swaps: [swap(Rows.lockInKeyOrder, () => sql``), swap(PlanWriter.isUnchanged, () => sql`true`)]
  },
  {
    mechanism: "comparing the rows of a previewed plan when they are replaced",
    scenario: Scenarios.outdatedPreview,
    swaps: [swap(PlanWriter.isUnchanged, () => sql`true`)]
  },
  {
    mechanism: "the settled position",
    scenario: Scenarios.late,
    swaps: noOpenWriters()
  },
  {
    // The order of two statements: the scenario reads the events before it waits for the proof.
    mechanism: "reading only after the proof",
    scenario: Scenarios.late,
    readsBeforeProof: true
  },
  {
    // Treats the furthest row as the end of the gapless run after the reader.
    mechanism: "a proof that covers only the reader that has passed the positions",
    scenario: Scenarios.raised,
    swaps: [
      swap(
        SettledTracker.starts,
        (starts) =>
          sql`(SELECT greatest(start.position, (SELECT max(c.position) FROM orchestrator_checkpoints AS c)), start.place
          FROM ${starts}) AS start (position, place)`
      )
    ]
  },
  {
    // A proof is the state of a session, not SQL: all connections of the session share one state.
    mechanism: "discarding a proof with its connection",
    scenario: Scenarios.less,
    session: {
      name: "pupsourcing-orchestrator reader",
      state: (make) => {
        const state = make()
        return () => state
      },
      isMet: false
    }
  },
  {
    mechanism: "writing progress only in the server epoch in which the events were read",
    scenario: Scenarios.outlived,
    swaps: [swap(ServerEpochSql.isCurrent(sql, "1@1@1"), toTrue)]
  },
  {
    // Observations are the state of a session, not SQL: every worker counts as observed present.
    mechanism: "counting absence only if the same session observed the presence",
    scenario: Scenarios.outage,
    session: {
      name: "pupsourcing-orchestrator coordination",
      state: (make) => () => ({ ...make(), workers: new PresentWorkers() }),
      isMet: false
    }
  },
  {
    mechanism: "the idle-in-transaction timeout",
    scenario: Scenarios.frozen,
    swaps: [swap(limitIdleTime(sql, ""), toNull)]
  },
  {
    // Without the lock the old transaction is considered failed, and only the position refuses the second attempt.
    mechanism: "resolving an unknown commit outcome under a lock, and the position check",
    scenario: Scenarios.unknown,
    swaps: [
      swap(FencedWrite.lockHeldAs(sql, held), () => FencedWrite.isHeldAs(sql, held)),
      swap(FencedWrite.isAt(sql, 0n), toTrue)
    ]
  }
]
