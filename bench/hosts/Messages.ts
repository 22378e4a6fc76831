/**
 * What a benchmark and its host processes send each other. All times are milliseconds of the machine's monotonic clock,
 * which every process of the machine shares.
 */
import type { Activity, HashRange } from "pupsourcing-orchestrator"

/** The time that is reported with every message. Independent of changes of the wall clock. */
export const now = (): number => Number(process.hrtime.bigint()) / 1e6

/** What the handlers of a worker do with an event: nothing, or one upsert of the row of its aggregate. */
export type Handler = "nothing" | "upsert"

export interface StartWorker {
  readonly do: "start"
  readonly worker: string
  readonly replicaSet: string
  readonly projections: ReadonlyArray<string>
  readonly handler: Handler
  readonly startFrom: "beginning" | "now"
}

/** Single appends at a fixed rate, open loop: a writer that is late sends its next event at once. */
export interface Append {
  readonly do: "append"
  readonly rate: number
  readonly seconds: number
  readonly writers: number
  /** The number of aggregates. */
  readonly aggregates: number
}

export type Command =
  | StartWorker
  | Append
  | { readonly do: "stop"; readonly worker: string }
  | { readonly do: "usage" }

/** An entry of a worker's activity. */
export interface Entry {
  readonly tag: Activity.Activity["_tag"]
  readonly host: number
  readonly worker: string
  readonly at: number
  readonly projection?: string
  readonly range?: HashRange.HashRange
  readonly position?: number
  readonly events?: number
  /** The number of members of the generation, and the worker's index among them. */
  readonly members?: number
  readonly partition?: number
}

/** The appends of one `Append`: when each was due, sent and answered, and the position of its event. */
export interface Appended {
  readonly due: ReadonlyArray<number>
  readonly sent: ReadonlyArray<number>
  readonly answered: ReadonlyArray<number>
  readonly positions: ReadonlyArray<number>
}

export interface Usage {
  readonly at: number
  /** CPU time of the process since its start, in milliseconds. */
  readonly cpu: number
  /** Resident memory now, and its maximum since the start of the process, in bytes. */
  readonly rss: number
  readonly peakRss: number
}

export type Report =
  | { readonly kind: "ready"; readonly at: number }
  | { readonly kind: "activity"; readonly entry: Omit<Entry, "host"> }
  /** A worker has left, because it was commanded to stop. */
  | { readonly kind: "stopped"; readonly worker: string }
  | { readonly kind: "appended"; readonly appended: Appended }
  | { readonly kind: "usage"; readonly usage: Usage }
  | { readonly kind: "failed"; readonly problem: string }
