/**
 * Holds a worker's transaction at a statement of the library: the server does not complete the statement until a gate is
 * open, even if the process has died meanwhile. (A lock would not hold it, because batches limit their lock waits.)
 */
import { Effect } from "effect"
import { SqlClient } from "effect/sql"

const table = "orchestrator_parked_events"

/** What is held: a change of parked events, or the COMMIT of a transaction that has changed them. */
export interface Held {
  readonly workerId: string
  readonly gate: string
  readonly change: "DELETE" | "INSERT"
  readonly at: "commit" | "statement"
}

const trigger = (at: Held["at"]) =>
  `TRIGGER hold_${at} AFTER INSERT OR DELETE ON ${table} ${
    at === "commit" ? "DEFERRABLE INITIALLY DEFERRED " : ""
  }FOR EACH ROW EXECUTE FUNCTION hold_statement('${at}')`

export const definitions: ReadonlyArray<string> = [
  `CREATE TABLE held_statements (worker text, change text, at text, gate text)`,
  `CREATE FUNCTION hold_statement() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
      closed text;
    BEGIN
      SELECT gate INTO closed FROM held_statements
      WHERE 'faults ' || worker = current_setting('application_name') AND change = TG_OP AND at = TG_ARGV[0];
      WHILE closed IS NOT NULL AND NOT EXISTS (SELECT FROM open_gates WHERE gate = closed) LOOP
        PERFORM pg_sleep(0.01);
      END LOOP;
      RETURN NULL;
    END $$`,
  `CREATE ${trigger("statement")}`,
  `CREATE CONSTRAINT ${trigger("commit")}`
]

/** Makes the server hold the next such statement. Returns an effect that reads whether it does. */
export const hold = Effect.fnUntraced(function*({ at, change, gate, workerId }: Held) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`INSERT INTO held_statements (worker, change, at, gate) VALUES (${workerId}, ${change}, ${at}, ${gate})`
  return Effect.map(
    sql`
      SELECT FROM pg_stat_activity
      WHERE datname = current_database() AND application_name = ${`faults ${workerId}`} AND wait_event = 'PgSleep'`,
    (sessions) => sessions.length > 0
  )
})
