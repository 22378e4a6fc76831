/**
 * The status of projections, for operators. Needs only the stores, no running worker.
 *
 * **Example** (List what needs attention)
 *
 * ```ts
 * import { PgClient } from "@effect/sql-pg"
 * import { Config, Console, Effect, Layer } from "effect"
 * import { PostgresStores, Projections, Status } from "pupsourcing-orchestrator"
 *
 * const problems = Effect.gen(function*() {
 *   const { status } = yield* Projections.Projections
 *   for (const { problem, projection, range } of Status.problems(yield* status)) {
 *     yield* Console.error(projection, problem, range.halt?.error ?? "")
 *   }
 * })
 *
 * export const program = problems.pipe(
 *   Effect.provide(PostgresStores.layer.pipe(Layer.provide(PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL") }))))
 * )
 * ```
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { StoreError } from "../schema/Errors.ts"
import type { Status } from "../schema/Status.ts"

/**
 * Reads the status of projections.
 *
 * @category services
 * @since 0.1.0
 */
export class Projections extends Context.Service<Projections, {
  /**
   * The status of all replica sets at one moment: workers, and position, owner, lag and halt of every range. Reads only,
   * in one round trip. Waits for no lock that workers hold.
   */
  readonly status: Effect.Effect<Status, StoreError>
}>()("pupsourcing-orchestrator/services/Projections") {}
