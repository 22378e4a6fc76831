/** The configuration and the settings of the library's own sessions. */
import type * as PgClient from "@effect/sql-pg/PgClient"
import * as PgTypes from "@effect/sql-pg/PgTypes"
import * as Duration from "effect/Duration"

/** The driver's own codecs, regardless of those that the application registers for its client or for all clients. */
const types = PgTypes.makeRegistry()

/**
 * How the library's own connections differ from the application's: they have another name and the driver's own codecs,
 * detect an unreachable network, and are not shared.
 */
export const config = (config: PgClient.PgClientConfig, name: string): PgClient.PgClientConfig => ({
  ...config,
  applicationName: name,
  keepAlive: config.keepAlive ?? Duration.seconds(15),
  multiplex: false,
  types
})

/**
 * The settings of every session of the library, so that no default of the role, the database or the client affects its
 * statements.
 *
 * Values are transferred in binary, or as text that no setting changes, so the formats of dates and numbers do not
 * matter. Three settings are deliberately not changed: the role, because the privileges are granted to it;
 * `default_transaction_read_only`, with which an administrator prevents all writes; and `synchronous_commit`, because a
 * crash that loses a commit also loses every later one, so the remaining state is an earlier consistent state.
 */
const common: Readonly<Record<string, string>> = {
  default_transaction_isolation: "read committed",
  statement_timeout: "0",
  lock_timeout: "0",
  idle_session_timeout: "0",
  idle_in_transaction_session_timeout: "0",
  transaction_timeout: "0",
  standard_conforming_strings: "on",
  quote_all_identifiers: "off",
  exit_on_error: "off",
  jit: "off"
}

/** SQL: an expression that applies the common settings and `settings`. Those that the server does not have are skipped. */
export const apply = (settings: Readonly<Record<string, string>> = {}): string =>
  `(SELECT count(set_config(s.name, s.value, false)) FROM (VALUES ${
    Object.entries({ ...common, ...settings }).map(([name, value]) => `('${name}', '${value}')`).join(", ")
  }) AS s (name, value) WHERE current_setting(s.name, true) IS NOT NULL)`
