/** The server of a client's configuration, as messages name it. */
import type { PgClientConfig } from "@effect/sql-pg/PgClient"
import * as Redacted from "effect/Redacted"

/**
 * The server, database and user of a client, for messages; never the password.
 */
export interface Server {
  readonly server: string
  readonly database: string
  readonly user: string
}

/**
 * Returns the server of a client's configuration, read in the same way as the driver reads it.
 */
export const serverOf = (config: PgClientConfig): Server => {
  const raw = config.url === undefined ? undefined : Redacted.value(config.url)
  const url = raw !== undefined && URL.canParse(raw) ? new URL(raw) : undefined
  const host = config.host ?? (url?.hostname || url?.searchParams.get("host")) ?? "localhost"
  const port = config.port ?? (url?.port || url?.searchParams.get("port")) ?? 5432
  const user = config.username ?? (url?.username ? safeDecode(url.username) : url?.searchParams.get("user")) ??
    "(default)"
  const path = url?.pathname.replace(/^\//, "")
  return {
    server: config.path ?? `${host || "localhost"}:${port || 5432}`,
    database: config.database ?? (path ? safeDecode(path) : url?.searchParams.get("dbname")) ?? user,
    user
  }
}

const safeDecode = (text: string): string => {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}
