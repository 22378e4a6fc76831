/** What a program of this folder reports to the benchmark that started it. Depends on nothing, so that it does not delay the start. */
export interface Report {
  /** Milliseconds of the machine's monotonic clock, which every process of the machine shares. */
  readonly at: number
  /** CPU time of the process since its start, in milliseconds. */
  readonly cpu: number
}

export const report = (): void => {
  const { system, user } = process.cpuUsage()
  const report: Report = { at: Number(process.hrtime.bigint()) / 1e6, cpu: (user + system) / 1000 }
  process.send?.(report)
}
