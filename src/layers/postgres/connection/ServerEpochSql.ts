/**
 * SQL that identifies a server epoch and compares it with the current one.
 *
 * A crash ends every session, and so does a failover. If the session that read still exists on the server that now
 * writes, nothing was lost in between. A session is identified by its process id, the start time of the server and, if
 * the server shows it, the start time of the session.
 */
import type * as Statement from "effect/sql/Statement"
import type { StoreError } from "../../../schema/Errors.ts"
import type { ServerEpoch } from "../../../services/EventStore.ts"
import type { Server } from "./Server.ts"
import { unavailable } from "./SqlErrors.ts"

const serverStart = "extract(epoch FROM pg_postmaster_start_time())"

/** SQL: the server epoch of this session. */
export const select = `concat_ws('@', pg_backend_pid(), ${serverStart}, (
      SELECT extract(epoch FROM backend_start) FROM pg_stat_get_activity(pg_backend_pid())))`

const parts = (epoch: ServerEpoch) => {
  const [pid = "", server = "", since = null] = epoch.split("@")
  return { pid, server, since }
}

/** SQL: whether the statement runs on the server of the given epoch, which has not been restarted since. */
export const isSameServer = (sql: Statement.Constructor, epoch: ServerEpoch): Statement.Fragment =>
  sql`${sql.literal(serverStart)}::text = ${parts(epoch).server}`

/** SQL: whether the statement runs in the given server epoch; true if none is given. */
export const isCurrent = (sql: Statement.Constructor, epoch: ServerEpoch | undefined): Statement.Fragment => {
  if (epoch === undefined) return sql`true`
  const { pid, since } = parts(epoch)
  return sql`(${isSameServer(sql, epoch)} AND EXISTS (
      SELECT FROM pg_stat_get_activity(${pid}::text::int4)
      WHERE extract(epoch FROM backend_start)::text IS NOT DISTINCT FROM ${since}::text
    ))`
}

/** The error for events that were read in another server epoch, because they may not exist in this one. */
export const epochEnded = (server: Server): StoreError =>
  unavailable(server, "connection lost", new Error("the session on which the events were read is gone"))
