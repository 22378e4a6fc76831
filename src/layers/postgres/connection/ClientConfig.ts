/**
 * Checks a client's configuration before anything connects with it.
 *
 * The driver reports a configuration error like an unreachable server, so the start would wait for it. And if special
 * characters of a password are not percent-encoded, parts of the password become the host or the database of the URL,
 * which messages contain.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import type * as SqlClient from "effect/sql/SqlClient"
import * as SqlError from "effect/sql/SqlError"
import * as Tls from "node:tls"
import { InvalidSettings } from "../../../schema/Errors.ts"

/** The configuration of a client; undefined for a client that the driver did not create, such as a wrapped one. */
export const of = (client: SqlClient.SqlClient): PgClient.PgClientConfig | undefined =>
  Predicate.hasProperty(client, PgClient.TypeId) ? (client as PgClient.PgClient).config : undefined

const encode =
  "Percent-encode special characters of user, password and database: # as %23, % as %25, / as %2F, ? as %3F, @ as %40."

const example = "Use the form postgresql://user:password@host:5432/database."

/**
 * Describes the problem of a URL without quoting any part of it; undefined when the URL is unambiguous.
 *
 * The host follows an `@`. An `@` or a `#` after the authority means that a special character of the password has ended
 * the authority early.
 */
export const urlProblem = (text: string): string | undefined => {
  const url = text.trim()
  if (url === "") return `The URL is empty. ${example}`
  if (!/^postgres(ql)?:/i.test(url)) return `This is not a PostgreSQL URL. ${example}`
  if (!/^postgres(ql)?:\/\//i.test(url)) return `The URL has no // after its scheme. ${example}`
  if (!/^[^:]+:\/\/[^/?#]*([/?][^#@]*)?$/.test(url)) {
    return `The URL contains a #, or an @ after the host. ${encode}`
  }
  if (!URL.canParse(url)) return `The URL cannot be read: its host or port is not valid. ${encode}`
  return undefined
}

/** The parameters that the driver reads; it ignores all others. */
const parameters = new Set([
  "application_name",
  "connect_timeout",
  "dbname",
  "host",
  "options",
  "password",
  "port",
  "sslmode",
  "user"
])

/** Parameters of the client's URL that have no effect. */
export const ignoredParameters = (config: PgClient.PgClientConfig): ReadonlyArray<string> =>
  config.url === undefined
    ? []
    : [...new URL(Redacted.value(config.url)).searchParams.keys()].filter((name) => !parameters.has(name))

const adviceFor = (reason: string): string =>
  /percent-encoding/.test(reason)
    ? encode
    : /sslmode/.test(reason)
    ? "Use disable, prefer, require, verify-ca or verify-full; to accept any certificate, pass ssl: { rejectUnauthorized: false } to PgClient."
    : /username/.test(reason)
    ? "Put the user into the URL, or pass username to PgClient."
    : "Correct the URL, or the options of PgClient."

const unconnected = new Error("not connected")

const reasonOf = (error: unknown): string | undefined => {
  // The driver reports an invalid option as a defect.
  if (!SqlError.isSqlError(error)) return error instanceof Error ? error.message : String(error)
  const { cause, message } = error.reason
  return cause === unconnected ? undefined : (message ?? error.message).replace(/^PgConnection: /, "")
}

/** Has the driver read its configuration without connecting, and returns its error message, if any. */
const readByDriver = (config: PgClient.PgClientConfig): Effect.Effect<string | undefined> =>
  Effect.scoped(PgConnection.make({
    ...config,
    // Not evaluated here, because the application may obtain its password from a service.
    password: undefined,
    stream: () => {
      throw unconnected
    }
  })).pipe(Effect.matchCause({ onSuccess: () => undefined, onFailure: (cause) => reasonOf(Cause.squash(cause)) }))

const portProblem = ({ port }: PgClient.PgClientConfig): string | undefined =>
  port === undefined || Number.isInteger(port) && port > 0 && port < 65536
    ? undefined
    : `The port ${port} is not between 1 and 65535.`

const pem = "Give the text of PEM files in ssl.ca, ssl.cert and ssl.key, not their paths."

/** The driver reads certificates after the server has accepted encryption; an error there would end the process. */
const tlsProblem = ({ ssl }: PgClient.PgClientConfig): string | undefined => {
  if (typeof ssl !== "object") return undefined
  const context = Result.try(() => Tls.createSecureContext(ssl))
  if (Result.isFailure(context)) {
    const { failure } = context
    return `The TLS options cannot be used: ${failure instanceof Error ? failure.message : String(failure)}. ${pem}`
  }
  // Node ignores anything else.
  return [ssl.ca ?? []].flat().every((ca) => ca.toString().includes("-----BEGIN"))
    ? undefined
    : `ssl.ca is not a certificate. ${pem}`
}

/** Fails with `InvalidSettings` if no connection attempt could succeed. */
export const check = Effect.fnUntraced(function*(
  config: PgClient.PgClientConfig,
  /** The setting that contains the URL. Default: an option of `PgClient`. */
  setting?: string
): Effect.fn.Return<void, InvalidSettings> {
  const url = config.url === undefined ? undefined : urlProblem(Redacted.value(config.url))
  if (url !== undefined) return yield* new InvalidSettings({ setting: setting ?? "url", problem: url })
  const port = portProblem(config)
  if (port !== undefined) return yield* new InvalidSettings({ setting: "port", problem: port })
  const tls = tlsProblem(config)
  if (tls !== undefined) return yield* new InvalidSettings({ setting: "ssl", problem: tls })
  const reason = yield* readByDriver(config)
  if (reason !== undefined) {
    return yield* new InvalidSettings({ setting: setting ?? "PgClient", problem: `${reason}. ${adviceFor(reason)}` })
  }
})
