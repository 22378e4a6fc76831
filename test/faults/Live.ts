/** Tests with a harness: real worker processes on a database of their own. */
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import * as Tests from "../support/Tests.ts"
import * as Harness from "./Harness.ts"

/** Registers a test, whose processes end before their database is dropped. */
export const test = Tests.live(Harness.layer, Effect.all({ harness: Harness.Harness, sql: SqlClient.SqlClient }))
