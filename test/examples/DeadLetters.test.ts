/**
 * Tests `examples/dead-letters` as users run it: its output is the one in its README.
 *
 * @module-tag long
 */
import { assert } from "@effect/vitest"
import { readFileSync } from "node:fs"
import * as Path from "node:path"
import * as WorkerProcess from "../../src/testing/WorkerProcess.ts"
import { postgres as test } from "../support/Tests.ts"

const folder = Path.resolve(import.meta.dirname, "../../examples/dead-letters")

test("parks two orders, retries one in order, drops the other, and ends", function*({ url }) {
  const program = yield* WorkerProcess.spawn({
    id: "dead-letters",
    script: Path.join(folder, "main.ts"),
    env: { DATABASE_URL: url },
    mayEnd: true
  })
  assert.deepStrictEqual(yield* program.ended, { code: 0, signal: null }, program.output())
  const [, documented] = /```text\n([\s\S]*?)\n```/.exec(readFileSync(Path.join(folder, "README.md"), "utf8"))!
  assert.strictEqual(program.output().trim(), documented)
})
