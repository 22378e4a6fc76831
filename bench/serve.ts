/**
 * The child's side of `Contender.ts`: answers the calls of the benchmark one after another, with what each of them took. Imported by the
 * peers as well, so it depends on nothing.
 */

/** What a contender can do, by name. */
export type Handlers = Readonly<Record<string, (args: never) => Promise<unknown>>>

export interface Call {
  readonly method: string
  readonly args: unknown
}

/** The answer to a call. */
export type Answer =
  | { readonly failure: string }
  | {
    readonly value: unknown
    readonly seconds: number
    /** CPU time of this process during the call, user and system. */
    readonly cpuSeconds: number
  }

const answer = async (handlers: Handlers, { args, method }: Call): Promise<Answer> => {
  try {
    const cpu = process.cpuUsage()
    const began = performance.now()
    const value = await handlers[method]!(args as never)
    const seconds = (performance.now() - began) / 1000
    const { system, user } = process.cpuUsage(cpu)
    return { value, seconds, cpuSeconds: (user + system) / 1e6 }
  } catch (error) {
    return { failure: error instanceof Error ? error.stack ?? error.message : String(error) }
  }
}

/** Answers calls until the benchmark ends. */
export const serve = (handlers: Handlers): void => {
  process.on("message", (call: Call) => void answer(handlers, call).then((result) => process.send?.(result)))
  process.on("disconnect", () => process.exit())
}
