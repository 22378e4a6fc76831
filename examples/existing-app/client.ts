/** Calls the app as a user and a probe would, and prints the answers. */
import { randomUUID } from "node:crypto"
import { setTimeout } from "node:timers/promises"

const request = async (url: string, path: string, method = "GET", body?: unknown) => {
  const response = await fetch(`${url}${path}`, {
    method,
    ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { "content-type": "application/json" } })
  })
  return { status: response.status, text: (await response.text()).trim() }
}

/** Repeats a request until its answer is as expected. */
const waitFor = async (url: string, path: string, holds: (answer: { status: number; text: string }) => boolean) => {
  for (let attempt = 0; attempt < 600; attempt++) {
    const answer = await request(url, path)
    if (holds(answer)) return answer
    await setTimeout(100)
  }
  throw new Error(`GET ${path} does not answer as expected`)
}

export const call = async (url: string): Promise<void> => {
  const list = `list-${randomUUID().slice(0, 8)}`
  const print = (line: string, { status, text }: { status: number; text: string }) =>
    console.log(`${line}\n  ${status} ${text}`)

  print(`POST /lists/${list}/todos`, await request(url, `/lists/${list}/todos`, "POST", { text: "write tests" }))
  print(`POST /lists/${list}/todos`, await request(url, `/lists/${list}/todos`, "POST", { text: "write docs" }))
  print(`POST /lists/${list}/done`, await request(url, `/lists/${list}/done`, "POST"))
  const row = `{"list":"${list}","open":1,"done":1}`
  const { status } = await waitFor(url, "/lists", ({ text }) => text.includes(row))
  print("GET /lists", { status, text: `… ${row} …` })
  print("GET /readyz", await waitFor(url, "/readyz", ({ status }) => status === 200))
  const metrics = await request(url, "/metrics")
  const processed = /^pupsourcing_orchestrator_events_processed_total.*$/m.exec(metrics.text)?.[0] ?? ""
  print("GET /metrics", { status: metrics.status, text: `… ${processed} …` })
}
