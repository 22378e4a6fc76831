/**
 * The network paths between workers and server: direct, through a proxy, and from a separate network namespace whose
 * packets can be dropped silently. Workers in the namespace also connect through a proxy; it keeps its connections
 * open, as a server does that has not noticed the loss.
 */
import * as Effect from "effect/Effect"
import * as ChildProcess from "node:child_process"
import * as Fs from "node:fs"
import * as Proxy from "../../support/Proxy.ts"
import type * as Harness from "../Harness.ts"

/** Which packets of a namespace are dropped, from its own point of view. */
export type Direction = "both" | "input" | "output"

export type Way =
  | { readonly kind: "straight"; readonly options: Harness.WorkerOptions }
  | { readonly kind: "proxy"; readonly options: Harness.WorkerOptions; readonly proxy: Proxy.Proxy }
  | {
    readonly kind: "namespace"
    readonly options: Harness.WorkerOptions
    readonly drop: (direction: Direction) => Effect.Effect<void>
    readonly restore: Effect.Effect<void>
  }

export interface Network {
  readonly ways: ReadonlyArray<Way>
  /** Why this machine has no namespace, if it has none. */
  readonly noNamespace: string | undefined
}

const run = (program: string, ...args: ReadonlyArray<string>): string =>
  ChildProcess.execFileSync(program, args, { stdio: ["ignore", "pipe", "pipe"], encoding: "utf8" })

const prefix = "pupsourcing-"

const isAlive = (pid: number): boolean => Fs.existsSync(`/proc/${pid}`)

/** Deletes the namespaces that killed runs have left. */
const tidy = (): void => {
  for (const line of run("ip", "netns", "list").split("\n")) {
    const name = line.split(" ")[0] ?? ""
    if (name.startsWith(prefix) && !isAlive(Number(name.slice(prefix.length)))) run("ip", "netns", "delete", name)
  }
}

/** A namespace with one virtual cable to this one. Returns its name and the address of this end. */
const namespace = Effect.acquireRelease(
  Effect.try({
    try: () => {
      tidy()
      const name = `${prefix}${process.pid}`
      const inside = (...args: ReadonlyArray<string>) => run("ip", "netns", "exec", name, ...args)
      const subnet = `10.213.${process.pid % 256}`
      const [here, there] = [`pup${process.pid}`, `pux${process.pid}`]
      run("ip", "netns", "add", name)
      run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
      run("ip", "address", "add", `${subnet}.1/24`, "dev", here)
      run("ip", "link", "set", here, "up")
      inside("ip", "address", "add", `${subnet}.2/24`, "dev", there)
      inside("ip", "link", "set", there, "up")
      inside("ip", "link", "set", "lo", "up")
      inside("nft", "add", "table", "inet", "faults")
      return { name, address: `${subnet}.1`, inside }
    },
    catch: (cause) => cause instanceof Error ? cause.message.split("\n").slice(0, 2).join(" ") : String(cause)
  }),
  // Deleting the namespace also deletes the cable.
  ({ name }) => Effect.sync(() => run("ip", "netns", "delete", name))
)

const straight: Way = { kind: "straight", options: {} }

export const make = Effect.fnUntraced(function*(url: string) {
  const server = new URL(url)
  const target = { host: server.hostname, port: Number(server.port) }
  const through = (host: string, port: number) => {
    const other = new URL(url)
    other.hostname = host
    other.port = String(port)
    return other.href
  }
  const proxy = yield* Proxy.make(target)
  const ways: Array<Way> = [straight, { kind: "proxy", options: { url: through("127.0.0.1", proxy.port) }, proxy }]

  const made = yield* Effect.result(namespace)
  if (made._tag === "Failure") return { ways, noNamespace: made.failure }
  const { address, inside, name } = made.success
  const outside = yield* Proxy.make(target, { host: address })
  ways.push({
    kind: "namespace",
    options: { url: through(address, outside.port), through: ["ip", "netns", "exec", name] },
    drop: (direction) =>
      Effect.sync(() => {
        for (const hook of ["input", "output"]) {
          if (direction !== "both" && direction !== hook) continue
          inside("nft", `add chain inet faults ${hook} { type filter hook ${hook} priority 0; policy drop; }`)
        }
      }),
    restore: Effect.sync(() => {
      inside("nft", "flush", "table", "inet", "faults")
      inside("nft", "delete", "table", "inet", "faults")
      inside("nft", "add", "table", "inet", "faults")
    })
  })
  return { ways, noNamespace: undefined }
})
