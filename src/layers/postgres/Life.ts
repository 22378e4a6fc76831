/**
 * Tells one life of the server from the next, in statements.
 *
 * A crash ends every session; so does the loss of a server to the one that takes its place. Where the session that read
 * is still there, in the server that now writes, nothing was lost in between. It is known by its process id and its
 * beginning; and where the server does not show who began when, at least by the server's own.
 *
 * @since 0.1.0
 */
import type * as SqlClient from "effect/sql/SqlClient"
import type * as Statement from "effect/sql/Statement"
import { DatabaseUnavailable } from "../../schema/Errors.ts"
import type { ServerLife } from "../../services/EventStore.ts"
import type { Server } from "./DatabaseErrors.ts"

/** Of sessions that are lent out, only the server's start is known. */
const noSession = "0"

const serverStart = "extract(epoch FROM pg_postmaster_start_time())"

/**
 * SQL: the life of the server that this session is in. Behind a pooler a crash that the postmaster survives is not seen.
 *
 * @category constructors
 * @since 0.1.0
 */
export const select = (pooled: boolean): string =>
  pooled ? `concat_ws('@', '${noSession}', ${serverStart})` : `concat_ws('@', pg_backend_pid(), ${serverStart}, (
      SELECT extract(epoch FROM backend_start) FROM pg_stat_get_activity(pg_backend_pid())))`

/**
 * SQL: whether the statement runs in that life of the server.
 *
 * @category utils
 * @since 0.1.0
 */
export const goesOn = (sql: SqlClient.SqlClient, life: ServerLife | undefined): Statement.Fragment => {
  if (life === undefined) return sql`true`
  const [pid = "", server = "", since = null] = life.split("@")
  const sameServer = sql`${sql.literal(serverStart)}::text = ${server}`
  return pid === noSession ? sameServer : sql`(${sameServer} AND EXISTS (
      SELECT FROM pg_stat_get_activity(${pid}::text::int4)
      WHERE extract(epoch FROM backend_start)::text IS NOT DISTINCT FROM ${since}::text
    ))`
}

/**
 * What was seen in another life of the server is no knowledge of this one.
 *
 * @category errors
 * @since 0.1.0
 */
export const isOver = (server: Server): DatabaseUnavailable =>
  new DatabaseUnavailable({
    ...server,
    reason: "connection lost",
    cause: new Error("the session on which the events were read is gone")
  })
