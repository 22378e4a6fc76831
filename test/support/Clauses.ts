/**
 * Swaps clauses of the library's statements on their way to the server. A clause is what the source exports: its
 * compiled text is replaced in every statement that contains it, with any parameters.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import { escape } from "effect/RegExp"
import * as Statement from "effect/sql/Statement"

/** Builds fragments; it has no connection. */
export const sql = Statement.make(Effect.never, PgClient.makeCompiler(), [], undefined)

export interface Swap {
  readonly clause: RegExp
  readonly becomes: string
  /** Whether a statement contained the clause: otherwise the mutation proves nothing. */
  isMet: boolean
}

const compile = (fragment: Statement.Fragment): string => sql`${fragment}`.compile()[0]

/**
 * Parameters stay in place, because PostgreSQL refuses a statement that does not use them: `$1` is the first parameter
 * of the clause on both sides.
 */
export const swap = (
  clause: Statement.Fragment | string,
  change: (clause: Statement.Fragment) => Statement.Fragment
): Swap => {
  const fragment = typeof clause === "string" ? sql.literal(clause) : clause
  const pattern = escape(compile(fragment)).replaceAll(/\\\$\d+/g, String.raw`(\$\d+)`)
  return { clause: new RegExp(pattern, "g"), becomes: compile(change(fragment)), isMet: false }
}

export const toTrue = (condition: Statement.Fragment) => sql`(${condition} OR true)`

export const toFalse = (condition: Statement.Fragment) => sql`(${condition} AND false)`

/** The expression is not evaluated. */
export const toNull = (expression: Statement.Fragment) => sql`CASE WHEN false THEN ${expression} END`

/** Returns the statement with its clauses swapped. */
export const rewrite = (swaps: ReadonlyArray<Swap>, text: string): string =>
  swaps.reduce((text, swap) => {
    const rewritten = text.replace(swap.clause, swap.becomes)
    swap.isMet ||= rewritten !== text
    return rewritten
  }, text)
