/** The status as text that fits 80 columns. */
import * as Duration from "effect/Duration"
import * as HashRange from "../schema/HashRange.ts"
import type * as Status from "../schema/Status.ts"
import { table, truncated } from "./Table.ts"

const columns = 80

export const render = (status: Status.Status): string =>
  [
    `${time(status.at)}, last event at position ${status.head}`,
    ...(status.openWriters === undefined
      ? ["Read from a standby: whether processes live and readers wait is not known."]
      : status.openWriters.map((writer) => writerLine(writer, status.at))),
    ...(status.replicaSets.length === 0 ? ["", "No worker has registered yet."] : []),
    ...status.replicaSets.flatMap((replicaSet) => ["", ...section(replicaSet, status.at)])
  ].map((line) => line.split("\n").map((part) => truncated(part, columns)).join("\n")).join("\n")

const writerLine = ({ application, pid, since }: Status.OpenWriter, at: Date): string =>
  `Readers wait for a transaction of ${application ?? "an unnamed session"}${pid === undefined ? "" : ` (pid ${pid})`}${
    since === undefined ? "" : `, open for ${age(since, at)}`
  }`

const section = ({ generation, projections, replicaSet, workers }: Status.ReplicaSet, at: Date) => [
  `Replica set ${replicaSet}: ${
    generation === undefined
      ? "no generation yet"
      : `generation ${generation.generationId} of ${count(generation.partitions, "partition")}, formed ${
        age(generation.formedAt, at)
      } ago`
  }`,
  workers.length === 0 ? "  No worker is registered." : indented(table([
    ["WORKER", "STATE", "PARTITION", "HEARTBEAT", "PROCESS"],
    ...workers.map(({ host, isPresent, partition, pid, silentFor, state, workerId }) => [
      workerId,
      isPresent === false ? `${state} (gone)` : state,
      partition === undefined ? "-" : String(partition),
      `${age(new Date(at.getTime() - Duration.toMillis(silentFor)), at)} ago`,
      host === undefined ? "-" : `${host}:${pid ?? "-"}`
    ])
  ], [23, 15, 9, 10, 14])),
  ...(projections.length === 0 ? [] : [indented(table([
    ["PROJECTION", "RANGE", "POSITION", "LAG", "OWNER"],
    ...projections.flatMap(({ projection, ranges }) =>
      ranges.map((range) => [
        projection,
        HashRange.format(range),
        String(range.position),
        lagText(range.lag, at),
        range.owner ?? "NONE"
      ])
    )
  ], [15, 24, 11, 11, 12]))]),
  ...projections.flatMap(({ parked, projection }) =>
    parked === undefined ? [] : [
      `  PARKED for ${age(parked.oldest, at)}: ${count(parked.events, "event")} of ${
        count(parked.keys, "key")
      } of ${projection}`
    ]
  ),
  ...projections.flatMap(({ projection, ranges }) =>
    ranges.flatMap(({ halt, ...range }) =>
      halt === undefined ? [] : [
        `  HALTED for ${age(halt.since, at)}: ${projection} ${HashRange.format(range)} at ${halt.position}`,
        `    ${halt.request === undefined ? "" : `(${halt.request} requested) `}${halt.error.replaceAll(/\s+/g, " ")}`
      ]
    )
  )
]

const lagText = ({ events, isEstimate, oldest }: Status.Lag, at: Date): string =>
  `${isEstimate ? "~" : ""}${events}${oldest === undefined ? "" : ` (${age(oldest, at)})`}`

const indented = (text: string): string => text.split("\n").map((line) => `  ${line}`).join("\n")

const count = (n: number, unit: string): string => `${n} ${unit}${n === 1 ? "" : "s"}`

const time = (date: Date): string => date.toISOString().replace("T", " ").replace(/\.\d+Z$/, " UTC")

/** The time between two dates in its largest unit. */
const age = (since: Date, at: Date): string => {
  const seconds = Math.max(0, (at.getTime() - since.getTime()) / 1000)
  return seconds < 10
    ? `${seconds.toFixed(1)}s`
    : seconds < 120
    ? `${Math.round(seconds)}s`
    : seconds < 7200
    ? `${Math.round(seconds / 60)}min`
    : seconds < 172_800
    ? `${Math.round(seconds / 3600)}h`
    : `${Math.round(seconds / 86_400)}d`
}
