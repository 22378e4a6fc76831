import { assert, describe, it } from "@effect/vitest"
import * as ServerCpu from "../../bench/ServerCpu.ts"

describe("ServerCpu", () => {
  it("parses a process whose name contains spaces and parentheses", () => {
    const stat = "4711 (postgres: a) S (b) S 4700 4711 4711 0 -1 4194560 1 2 3 4 150 50 300 100 20 0 1 0 99"
    assert.deepStrictEqual(ServerCpu.parse(stat), { parent: 4700, own: 2, children: 4 })
  })

  it("returns no number for a server whose processes are out of reach", () => {
    assert.isNaN(ServerCpu.seconds(undefined))
    // Above the largest process id of Linux.
    assert.isNaN(ServerCpu.seconds(2 ** 22 + 1))
  })
})
