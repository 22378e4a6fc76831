// Emmett's PostgreSQL consumer, unmodified, with tables and events of its own.
import { getPostgreSQLEventStore, postgreSQLEventStoreConsumer } from "@event-driven-io/emmett-postgresql"
import { serve } from "../serve.ts"

const connectionString = process.env.DATABASE_URL

/** Appends events like those of the other contenders, as 200 streams. */
const fill = async ({ events }) => {
  const store = getPostgreSQLEventStore(connectionString)
  const streams = 200
  for (let stream = 0; stream < streams; stream++) {
    await store.appendToStream(
      `thing-${stream}`,
      Array.from({ length: events / streams }, (_, i) => ({ type: "Happened", data: { i, pad: "x".repeat(40) } }))
    )
  }
  await store.close()
}

/** Handles all events with a reactor that does nothing. Returns the number of events. */
const catchUp = async ({ batchSize, run }) => {
  let handled = 0
  const consumer = postgreSQLEventStoreConsumer({
    connectionString,
    stopWhen: { noMessagesLeft: true },
    ...(batchSize === undefined ? {} : { pulling: { batchSize } })
  })
  consumer.reactor({
    processorId: run,
    eachMessage: () => {
      handled++
    }
  })
  await consumer.start()
  await consumer.close()
  return handled
}

serve({ fill, catchUp })
