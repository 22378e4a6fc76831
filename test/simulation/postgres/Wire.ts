/**
 * The connections of one worker, below its driver. They can end all at once as when a process dies, be refused as when
 * a server is unreachable, and stay open without a process behind them.
 */
import * as Net from "node:net"

const close = (socket: Net.Socket): void => {
  Net.Socket.prototype.destroy.call(socket)
}

export class Wire {
  private readonly server: Net.TcpNetConnectOpts
  private readonly sockets = new Set<Net.Socket>()
  private readonly losses: Array<number> = []
  private isRefused = false

  constructor(server: Net.TcpNetConnectOpts) {
    this.server = server
  }

  /** Opens a connection for the driver. */
  readonly connect = (): Net.Socket => {
    if (this.isRefused) {
      const socket = new Net.Socket()
      process.nextTick(() => socket.destroy(Object.assign(new Error("connect ECONNREFUSED"), { code: "ECONNREFUSED" })))
      return socket
    }
    const socket = Net.connect({ ...this.server, noDelay: true })
    this.sockets.add(socket)
    socket.once("close", () => {
      this.sockets.delete(socket)
      this.losses.push(Date.now())
    })
    return socket
  }

  /** The local ports, by which the server identifies the worker's sessions. */
  get ports(): ReadonlyArray<number> {
    return [...this.sockets].flatMap(({ localPort }) => localPort ?? [])
  }

  /** When the first of its connections since `moment` ended. */
  lostSince(moment: number): number | undefined {
    return this.losses.find((at) => at >= moment)
  }

  refuse(): void {
    this.isRefused = true
    for (const socket of this.sockets) close(socket)
  }

  accept(): void {
    this.isRefused = false
  }

  /** Sends nothing any more, not even the end of a connection. */
  hold(): void {
    this.isRefused = true
    for (const socket of this.sockets) {
      Object.assign(socket, { write: () => true, end: () => socket, destroy: () => socket })
    }
  }
}
