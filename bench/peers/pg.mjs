// A loop on `pg` as one would write it by hand: it reads a page, handles it, and updates its position in a transaction for each page.
// It has one process, no fencing, and may miss events whose transactions commit out of order.
import { Client } from "pg"
import { serve } from "../serve.ts"

const client = new Client({ connectionString: process.env.DATABASE_URL, application_name: "bench pg" })
await client.connect()

const columns =
  "global_position, bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, " +
  "event_version, payload, trace_id, correlation_id, causation_id, metadata, created_at"

const nothing = async () => {}

const upsert = (run) => async (rows) => {
  for (const row of rows) {
    await client.query({
      name: "upsert",
      text: "INSERT INTO counts VALUES ($1, $2, 1) ON CONFLICT (run, id) DO UPDATE SET events = counts.events + 1",
      values: [run, row.aggregate_id]
    })
  }
}

/** Handles all events, and returns their number. */
const catchUp = async ({ batchSize, run }, handle) => {
  await client.query("CREATE TABLE IF NOT EXISTS pg_checkpoints (run text PRIMARY KEY, position bigint NOT NULL)")
  await client.query("INSERT INTO pg_checkpoints VALUES ($1, 0)", [run])
  let position = "0"
  let events = 0
  while (true) {
    const { rows } = await client.query({
      name: "page",
      text: `SELECT ${columns} FROM events WHERE global_position > $1 ORDER BY global_position LIMIT $2`,
      values: [position, batchSize]
    })
    if (rows.length === 0) return events
    events += rows.length
    position = rows.at(-1).global_position
    await client.query("BEGIN")
    await handle(rows)
    await client.query({
      name: "position",
      text: "UPDATE pg_checkpoints SET position = $2 WHERE run = $1",
      values: [run, position]
    })
    await client.query("COMMIT")
  }
}

serve({
  read: (options) => catchUp(options, nothing),
  upsert: (options) => catchUp(options, upsert(options.run))
})
