/**
 * A TCP proxy in front of PostgreSQL that falls silent: connections stay open, but nothing is forwarded any more, not
 * even their end. So looks a server whose host has lost power, or a path that a firewall has forgotten.
 */
import * as Effect from "effect/Effect"
import * as Net from "node:net"

/** `ReadyForQuery`, idle: the transaction has ended. */
const ended = Buffer.from([0x5a, 0, 0, 0, 5, 0x49])

export interface SilentProxy {
  readonly port: number
  /** Silences the connections that stand now; later ones are forwarded. */
  readonly silence: Effect.Effect<void>
  /** Silences one connection at the next end of a transaction, before the client hears of it. */
  readonly arm: Effect.Effect<void>
  /** Ends the silent connections at last, as the client's kernel does after a quarter of an hour. */
  readonly giveUp: Effect.Effect<void>
}

export const make = (target: { readonly host: string; readonly port: number }) =>
  Effect.acquireRelease(
    Effect.callback<SilentProxy & { readonly close: () => void }>((resume) => {
      const pairs = new Set<{ readonly client: Net.Socket; readonly upstream: Net.Socket; silent: boolean }>()
      let armed = false
      const server = Net.createServer((client) => {
        const upstream = Net.connect(target)
        const pair = { client, upstream, silent: false }
        pairs.add(pair)
        client.on("data", (data) => {
          if (!pair.silent) upstream.write(data)
        })
        upstream.on("data", (data) => {
          if (armed && data.includes(ended)) {
            armed = false
            pair.silent = true
          }
          if (!pair.silent) client.write(data)
        })
        const cut = () => {
          upstream.destroy()
          if (!pair.silent) client.destroy()
        }
        for (const socket of [client, upstream]) socket.on("close", cut).on("error", cut)
      })
      server.listen(0, "127.0.0.1", () => {
        const address = server.address()
        resume(Effect.succeed({
          port: typeof address === "object" && address !== null ? address.port : 0,
          silence: Effect.sync(() => {
            for (const pair of pairs) pair.silent = true
          }),
          arm: Effect.sync(() => {
            armed = true
          }),
          giveUp: Effect.sync(() => {
            for (const { client, silent } of pairs) if (silent) client.destroy()
          }),
          close: () => {
            server.close()
            for (const { client, upstream } of pairs) {
              client.destroy()
              upstream.destroy()
            }
          }
        }))
      })
    }),
    ({ close }) => Effect.sync(close)
  )
