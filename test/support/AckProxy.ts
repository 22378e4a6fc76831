/**
 * A TCP proxy in front of PostgreSQL that can swallow the answer to a COMMIT: the server has committed, the client
 * never hears of it.
 */
import * as Effect from "effect/Effect"
import * as Net from "node:net"

/** `ReadyForQuery`, idle: the transaction has ended. */
const ended = Buffer.from([0x5a, 0, 0, 0, 5, 0x49])

export interface AckProxy {
  readonly port: number
  /** Cuts every connection at the next end of a transaction, before the client hears of it; once. */
  readonly arm: Effect.Effect<void>
}

export const make = (target: { readonly host: string; readonly port: number }) =>
  Effect.acquireRelease(
    Effect.callback<AckProxy & { readonly server: Net.Server }>((resume) => {
      let armed = false
      const server = Net.createServer((client) => {
        const upstream = Net.connect(target)
        const cut = () => {
          client.destroy()
          upstream.destroy()
        }
        client.on("data", (data) => upstream.write(data))
        upstream.on("data", (data) => {
          if (armed && data.includes(ended)) {
            armed = false
            cut()
          } else client.write(data)
        })
        for (const socket of [client, upstream]) socket.on("close", cut).on("error", cut)
      })
      server.listen(0, "127.0.0.1", () => {
        const address = server.address()
        resume(Effect.succeed({
          server,
          port: typeof address === "object" && address !== null ? address.port : 0,
          arm: Effect.sync(() => {
            armed = true
          })
        }))
      })
    }),
    ({ server }) => Effect.sync(() => server.close())
  )
