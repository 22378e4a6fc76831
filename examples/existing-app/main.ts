/**
 * An HTTP API on Express that appends events, and a worker beside it in the same process. With `--once`, the app calls itself and
 * ends.
 */
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import express, { type ErrorRequestHandler } from "express"
import { once } from "node:events"
import type { AddressInfo } from "node:net"
import { Errors, EventStore } from "pupsourcing-orchestrator"
import * as Client from "./client.ts"
import { Endpoints, runtime } from "./worker.ts"

const append = (list: string, eventType: "TodoAdded" | "TodoDone", payload: unknown) =>
  runtime.runPromise(
    EventStore.EventStore.use((events) =>
      events.append([{ boundedContext: "todos", aggregateType: "TodoList", aggregateId: list, eventType, payload }])
    )
  )

const app = express().use(express.json())

app.post("/lists/:list/todos", async (request, response) => {
  const { lastVersion } = await append(request.params.list, "TodoAdded", { text: String(request.body?.text ?? "") })
  response.status(201).json({ version: Number(lastVersion) })
})

app.post("/lists/:list/done", async (request, response) => {
  const { lastVersion } = await append(request.params.list, "TodoDone", null)
  response.status(201).json({ version: Number(lastVersion) })
})

app.get("/lists", async (_request, response) => {
  response.json(
    await runtime.runPromise(
      SqlClient.SqlClient.use((sql) => sql`SELECT list, open, done FROM todos_per_list ORDER BY list`)
    )
  )
})

// The worker's endpoints.
app.get(["/healthz", "/readyz", "/metrics", "/status", "/openapi.json"], async (request, response) => {
  const forwarded = new Request(new URL(request.originalUrl, "http://localhost"))
  const answer = await runtime.runPromise(Endpoints.use((handle) => Effect.promise(() => handle(forwarded))))
  response.status(answer.status).type(answer.headers.get("content-type") ?? "text/plain").send(await answer.text())
})

const onError: ErrorRequestHandler = (error: unknown, _request, response, _next) => {
  const { message } = error instanceof Error ? error : new Error("Unknown error")
  response.status(error instanceof Errors.StoreError ? 503 : 500).json({ error: message })
}
app.use(onError)

// Builds the runtime: an unusable database fails the start.
await runtime.runPromise(Effect.void).catch((error: Error) => {
  console.error(error.message)
  process.exit(1)
})
const server = app.listen(Number(process.env["PORT"] ?? 3000))
await once(server, "listening")
const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
console.log(`Listening on ${url}`)

/** Finishes the requests first, because they need the runtime; then the worker drains, releases its ranges and unregisters. */
const stop = async () => {
  server.close()
  await once(server, "close")
  await runtime.dispose()
}
let stopping: Promise<void> | undefined
// A signal can arrive twice: from the terminal, and from npm, which forwards it.
for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => stopping ??= stop())

if (process.argv.includes("--once")) {
  await Client.call(url)
  await stop()
}
