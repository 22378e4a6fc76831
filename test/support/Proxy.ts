/**
 * A TCP proxy in front of PostgreSQL that simulates network faults. It can go silent: connections stay open but nothing
 * is forwarded, not even their end, as if the server's host had lost power or a firewall had forgotten the path. It can
 * also cut connections, delay data and lose connections.
 */
import * as Effect from "effect/Effect"
import * as Net from "node:net"

/** `ReadyForQuery`, idle: the transaction has ended. */
const ended = Buffer.from([0x5a, 0, 0, 0, 5, 0x49])

export interface Proxy {
  readonly port: number
  /** Cuts every connection at the next end of a transaction, before the client receives the answer; once. */
  readonly cutAtEnd: Effect.Effect<void>
  /** Silences one connection at the next end of a transaction, before the client receives the answer. */
  readonly silenceAtEnd: Effect.Effect<void>
  /** Silences the existing connections; later ones are forwarded. */
  readonly silence: Effect.Effect<void>
  /**
   * Holds the next message from a client that contains `text`, and what the client sends after it. Completes when the
   * message is held, with the effect that lets it pass.
   */
  readonly hold: (text: string) => Effect.Effect<Effect.Effect<void>>
  /** Ends the silent connections, as the client's kernel does after a quarter of an hour. */
  readonly giveUp: Effect.Effect<void>
  /** Cuts all connections, and refuses new ones until called with `false`. */
  readonly refuse: (refuses: boolean) => Effect.Effect<void>
  /** Delays each piece of data by this many milliseconds, or ends its connection with the probability `loss`. */
  readonly impair: (how: { readonly delayMillis: number; readonly loss: number }) => Effect.Effect<void>
}

interface Pair {
  readonly client: Net.Socket
  readonly upstream: Net.Socket
  silent: boolean
}

/** Writes in order, each piece after the delay that applied when it arrived. */
const later = () => {
  let last: Promise<unknown> = Promise.resolve()
  return (delayMillis: number, write: () => void) => {
    const due = new Promise((resolve) => setTimeout(resolve, delayMillis))
    last = last.then(() => due).then(write)
  }
}

export const make = (
  target: { readonly host: string; readonly port: number },
  options: { readonly host?: string; readonly random?: () => number } = {}
) =>
  Effect.acquireRelease(
    Effect.callback<Proxy & { readonly close: () => void }>((resume) => {
      const random = options.random ?? Math.random
      const pairs = new Set<Pair>()
      let armed: "cut" | "silence" | undefined
      let awaited: { readonly text: string; readonly reached: (pass: Effect.Effect<void>) => void } | undefined
      let refuses = false
      let delayMillis = 0
      let loss = 0

      const cutAll = () => {
        for (const { client, upstream } of pairs) {
          client.destroy()
          upstream.destroy()
        }
      }

      const server = Net.createServer((client) => {
        if (refuses) {
          client.destroy()
          return
        }
        const upstream = Net.connect(target)
        const pair: Pair = { client, upstream, silent: false }
        pairs.add(pair)
        const cut = () => {
          upstream.destroy()
          if (!pair.silent) client.destroy()
          if (client.destroyed) pairs.delete(pair)
        }
        const forward = (to: Net.Socket) => {
          const queue = later()
          return (data: Buffer) => {
            if (pair.silent) return
            if (loss > 0 && random() < loss) return cut()
            if (delayMillis === 0) to.write(data)
            else queue(delayMillis, () => to.write(data))
          }
        }
        const toUpstream = forward(upstream)
        const toClient = forward(client)
        client.on("data", (data) => {
          if (awaited !== undefined && data.includes(awaited.text)) {
            client.pause()
            awaited.reached(Effect.sync(() => {
              toUpstream(data)
              client.resume()
            }))
            awaited = undefined
            return
          }
          toUpstream(data)
        })
        upstream.on("data", (data) => {
          if (armed !== undefined && data.includes(ended)) {
            if (armed === "silence") pair.silent = true
            else cutAll()
            armed = undefined
          }
          toClient(data)
        })
        for (const socket of [client, upstream]) socket.on("close", cut).on("error", cut)
      })

      server.listen(0, options.host ?? "127.0.0.1", () => {
        const address = server.address()
        resume(Effect.succeed({
          port: typeof address === "object" && address !== null ? address.port : 0,
          cutAtEnd: Effect.sync(() => {
            armed = "cut"
          }),
          silenceAtEnd: Effect.sync(() => {
            armed = "silence"
          }),
          silence: Effect.sync(() => {
            for (const pair of pairs) pair.silent = true
          }),
          hold: (text) =>
            Effect.callback((resume) => {
              awaited = { text, reached: (pass) => resume(Effect.succeed(pass)) }
            }),
          giveUp: Effect.sync(() => {
            for (const { client, silent } of pairs) if (silent) client.destroy()
          }),
          refuse: (value) =>
            Effect.sync(() => {
              refuses = value
              if (value) cutAll()
            }),
          impair: (how) =>
            Effect.sync(() => {
              delayMillis = how.delayMillis
              loss = how.loss
            }),
          close: () => {
            server.close()
            cutAll()
          }
        }))
      })
    }),
    ({ close }) => Effect.sync(close)
  )
