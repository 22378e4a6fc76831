import * as Effect from "effect/Effect"
import * as Net from "node:net"

/**
 * A port of the loopback address that no process listens on. It is below those that systems give to outgoing connections,
 * so that none of the many connections of other tests takes it before it is used.
 */
export const freePort: Effect.Effect<number> = Effect.callback<number>((resume) => {
  const find = () => {
    const port = 10_000 + Math.floor(Math.random() * 20_000)
    const server = Net.createServer()
    server.once("error", find)
    server.listen(port, "127.0.0.1", () => {
      server.close(() => resume(Effect.succeed(port)))
    })
  }
  find()
})
