/**
 * Tests `examples/custom-logging` as users run it: the output of a worker that logs JSON.
 *
 * @module-tag long
 */
import { assert } from "@effect/vitest"
import * as Path from "node:path"
import * as WorkerProcess from "../../src/testing/WorkerProcess.ts"
import { postgres as test } from "../support/Tests.ts"

const spawn = (file: string, url: string) =>
  WorkerProcess.spawn({
    id: file,
    script: Path.resolve(import.meta.dirname, "../../examples/custom-logging", file),
    env: { DATABASE_URL: url },
    mayEnd: true
  })

interface Line {
  readonly message: unknown
  readonly level: string
  readonly annotations: Readonly<Record<string, string>>
}

/** Every line, parsed; there is no other output. */
const linesOf = <A = Line>({ errors, output }: WorkerProcess.WorkerProcess): ReadonlyArray<A> => {
  assert.strictEqual(errors(), "")
  return output().trimEnd().split("\n").map((line) => JSON.parse(line) as A)
}

test("a worker with JSON logs prints one annotated object a line", function*({ url }) {
  const worker = yield* spawn("main.ts", url)
  assert.deepStrictEqual(yield* worker.ended, { code: 0, signal: null }, worker.output())
  const lines = linesOf(worker)
  for (const { annotations, message } of lines) {
    assert.deepInclude(annotations, { replica_set: "logged-orders", worker: "worker-1" }, String(message))
  }
  const stored = lines.filter(({ message }) => message === "Order stored")
  assert.strictEqual(stored.length, 3)
  for (const { annotations } of stored) {
    assert.deepInclude(annotations, { projection: "orders", generation: "1" })
    assert.match(annotations["order"]!, /^order-/)
    assert.isString(annotations["range"])
  }
})

test("a failed start is one annotated object, too", function*({ url }) {
  const missing = new URL(url)
  missing.pathname = "/no_such_database"
  const worker = yield* spawn("main.ts", missing.href)
  assert.deepStrictEqual(yield* worker.ended, { code: 1, signal: null }, worker.output())
  const errors = linesOf(worker).filter(({ level }) => level === "ERROR")
  assert.strictEqual(errors.length, 1, worker.output())
  assert.include(String(errors[0]!.message), "no_such_database")
  assert.deepInclude(errors[0]!.annotations, { replica_set: "logged-orders", worker: "worker-1" })
})

test("an adapter passes each line with its annotations to the application's logger", function*({ url }) {
  const worker = yield* spawn("pino.ts", url)
  assert.deepStrictEqual(yield* worker.ended, { code: 0, signal: null }, worker.output())
  const stored = linesOf<Readonly<Record<string, unknown>>>(worker).filter(({ msg }) => msg === "Order stored")
  assert.strictEqual(stored.length, 3)
  for (const line of stored) {
    assert.deepInclude(line, { level: 30, replica_set: "logged-orders", worker: "worker-1", projection: "orders" })
  }
})
