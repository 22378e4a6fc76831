/**
 * Why the database refused an append, determined from the columns of the violated constraint: constraint names differ
 * between databases, and the server's messages are translated and may be hidden from a role.
 */
import * as Effect from "effect/Effect"
import type * as SqlError from "effect/sql/SqlError"
import { ConcurrencyConflict, DuplicateEvent, type StoreError } from "../../../schema/Errors.ts"
import type { ExpectedVersion, StreamId } from "../../../schema/Event.ts"
import * as SqlErrors from "../connection/SqlErrors.ts"
import type { Database } from "../Database.ts"
import { literal } from "../migrations/Sql.ts"
import type { ReadSession } from "./ReadSession.ts"

/** Prefix of the error that the append's statement raises when a trigger suppressed or redirected an event. */
export const altered = "pupsourcing-orchestrator: events stored as given: "

/**
 * Prefix of the error that the append's statement raises when the sequence returned a position that is not above those
 * of all existing events.
 */
export const behind = "pupsourcing-orchestrator: position below the last one: "

const invalidText = "22P02"

const versionColumns = ["bounded_context", "aggregate_type", "aggregate_id", "aggregate_version"]

interface Dependencies {
  readonly database: Database["Service"]
  /** Looks up the constraint, because the caller's transaction is aborted at this point. */
  readonly session: ReadSession
}

/**
 * Converts the error of an append that the database refused. Errors that are not specific to the append, and violated
 * constraints of the application, are returned unchanged.
 */
export const explain = (
  self: Dependencies,
  { expected, stream }: { readonly expected: ExpectedVersion; readonly stream: StreamId },
  error: SqlError.SqlError
): Effect.Effect<ConcurrencyConflict | DuplicateEvent | StoreError | SqlError.SqlError> => {
  const events = self.database.qualified("events")
  const raised = SqlErrors.codeOf(error) === invalidText ? fieldOf(error, "message") : ""
  if (raised.includes(behind)) return Effect.succeed(sequenceBehind(events))
  if (raised.includes(altered)) return Effect.succeed(alteredByTrigger(events))
  if (error.reason._tag !== "UniqueViolation") return Effect.succeed(error)
  return Effect.map(
    // If the look-up fails, the error is reported unchanged, with the name of the constraint.
    Effect.orElseSucceed(violatedColumns(self, error), (): ReadonlyArray<string> => []),
    (columns) => {
      if (columns.includes("event_id")) {
        return new DuplicateEvent({ detail: fieldOf(error, "detail") || fieldOf(error, "constraint") })
      }
      if (versionColumns.every((column) => columns.includes(column))) {
        return new ConcurrencyConflict({ ...stream, expected: String(expected) })
      }
      return columns.includes("global_position") ? sequenceBehind(events) : error
    }
  )
}

const sequenceBehind = (events: string) =>
  SqlErrors.unsupported({
    problem: `The sequence of ${events}.global_position issues positions that are in use, or below those in use.`,
    advice: `Set it to the position of the last event: SELECT setval(pg_get_serial_sequence(${
      literal(events)
    }, 'global_position'), (SELECT max(global_position) FROM ${events}));`
  })

const alteredByTrigger = (events: string) =>
  SqlErrors.unsupported({
    problem: `A trigger on ${events} suppressed or changed the events of an append. Nothing was appended.`,
    advice: "Change the trigger so that it keeps every row with its aggregate, version and event id."
  })

const violatedColumns = (
  { database, session }: Dependencies,
  error: SqlError.SqlError
): Effect.Effect<ReadonlyArray<string>, StoreError> =>
  session.use("look up a constraint", ({ sql }) =>
    Effect.map(
      sql.unsafe<{ readonly name: string }>(columnsStatement, [
        fieldOf(error, "schema"),
        fieldOf(error, "table"),
        fieldOf(error, "constraint"),
        database.qualified("events")
      ]),
      (rows) => rows.map(({ name }) => name)
    ))

/** Returns the columns of unique index $3 of table $1.$2, if that table is the events table $4. */
const columnsStatement = `
  SELECT a.attname::text AS name
  FROM pg_catalog.pg_index AS i
  JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid
    AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
  WHERE i.indrelid = pg_catalog.to_regclass($4::text) AND c.relname = $3::text
    AND i.indrelid = pg_catalog.to_regclass(pg_catalog.format('%I.%I', $1::text, $2::text))`

const fieldOf = (error: SqlError.SqlError, name: "constraint" | "detail" | "message" | "schema" | "table"): string =>
  SqlErrors.fieldOf(error, name) ?? ""
