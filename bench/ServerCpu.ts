/** CPU time of a PostgreSQL server: of all its processes, ended ones included. Read from `/proc`, so on Linux only. */
import * as Fs from "node:fs"

/** Linux reports these times in hundredths of a second on every architecture that Node.js supports. */
const ticksPerSecond = 100

export interface ProcessTimes {
  readonly parent: number
  /** User and system time of the process. */
  readonly own: number
  /** The same of its ended children. */
  readonly children: number
}

/** Parses `/proc/PID/stat`. The name of the program is in parentheses and may contain spaces and parentheses. */
export const parse = (stat: string): ProcessTimes => {
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ").map(Number)
  // proc_pid_stat(5) numbers them from 1; these begin with the third.
  const field = (number: number) => fields[number - 3]!
  return {
    parent: field(4),
    own: (field(14) + field(15)) / ticksPerSecond,
    children: (field(16) + field(17)) / ticksPerSecond
  }
}

/** Returns the seconds since the server started; `NaN` if its processes cannot be read. */
export const seconds = (postmaster: number | undefined): number => {
  if (postmaster === undefined || !Fs.existsSync(`/proc/${postmaster}/stat`)) return Number.NaN
  const processes = Fs.readdirSync("/proc").filter((name) => /^\d+$/.test(name)).flatMap((pid) => {
    const times = read(pid)
    return times === undefined ? [] : [{ ...times, isServer: pid === String(postmaster) }]
  })
  return processes.reduce(
    (sum, { children, isServer, own, parent }) => sum + (isServer ? own + children : parent === postmaster ? own : 0),
    0
  )
}

/** Returns nothing for a process that has ended meanwhile. */
const read = (pid: string): ProcessTimes | undefined => {
  try {
    return parse(Fs.readFileSync(`/proc/${pid}/stat`, "utf8"))
  } catch {
    return undefined
  }
}

/** Returns the seconds that these processes have run, in nanoseconds of precision; `NaN` if one of them cannot be read. */
export const ofProcesses = (pids: ReadonlyArray<number>): number => pids.reduce((sum, pid) => sum + scheduled(pid), 0)

/** `/proc/PID/stat` rounds to hundredths of a second, which is more than an idle process needs in a minute. */
const scheduled = (pid: number): number => {
  try {
    return Number(Fs.readFileSync(`/proc/${pid}/schedstat`, "utf8").split(" ")[0]) / 1e9
  } catch {
    return Number.NaN
  }
}
