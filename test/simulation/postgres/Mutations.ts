/**
 * Mechanisms that can be removed from the library's statements on their way to PostgreSQL, to show that the checkers
 * detect their absence. `test/mutations` covers all mechanisms, one by one.
 */
import { concurrentDecisions, noOpenWriters, unfenced } from "../../mutations/Mutations.ts"
import * as Clauses from "../../support/Clauses.ts"
import type { Rewrite } from "./SimulatedWorker.ts"

const without = (swaps: ReadonlyArray<Clauses.Swap>): Rewrite => ({ text }) => Clauses.rewrite(swaps, text)

export const mutations: Readonly<Record<string, Rewrite>> = {
  "the fence and the position check": without(unfenced()),
  "the decision lock": without(concurrentDecisions()),
  "the settled position": without(noOpenWriters())
}
