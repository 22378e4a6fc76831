/** Faults of the server and of the sessions on it. */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import { SqlClient } from "effect/sql"
import * as EmbeddedPostgres from "../../../../src/testing/EmbeddedPostgres.ts"
import { Driver } from "../Driver.ts"
import { type Fault, nobodyReplaced } from "../Fault.ts"
import * as Journal from "../Journal.ts"
import * as Sessions from "./Sessions.ts"

const streamOfTerminations: Fault = {
  kind: "sessions terminated, a stream",
  on: "start",
  inject: Effect.gen(function*() {
    const some = Effect.flatMap(Random.nextIntBetween(1, 4), Sessions.terminate)
    const pause = Effect.flatMap(Random.nextIntBetween(20, 200), (millis) => Effect.sleep(millis))
    const { fleet } = yield* Driver
    yield* fleet.without(
      fleet.members().map(({ workerId }) => workerId),
      Effect.repeat(Effect.andThen(some, pause), Schedule.during("3 seconds"))
    )
  })
}

const allTerminated: Fault = {
  kind: "all sessions terminated at once",
  on: "start",
  inject: Sessions.terminate()
}

/** Stops the server for this long, then starts it again. */
const restart = (mode: EmbeddedPostgres.StopMode, downMillis: number, whileDown: Effect.Effect<void, never, Driver>) =>
  Effect.gen(function*() {
    const { server } = yield* Driver
    yield* Effect.acquireUseRelease(
      EmbeddedPostgres.stop(server, mode),
      () => Effect.andThen(whileDown, Effect.sleep(downMillis)),
      () => EmbeddedPostgres.ensure(server)
    )
  })

const restarts: ReadonlyArray<Fault> = (["fast", "immediate"] as const).map((mode) => ({
  kind: `server restart, ${mode}`,
  alone: true,
  inject: restart(mode, 0, Effect.void),
  judge: nobodyReplaced
}))

const outage: Fault = {
  kind: "server down for longer than every timeout",
  alone: true,
  inject: Effect.flatMap(Driver, ({ settings }) => restart("fast", settings.staleWorkerTimeout * 1.6, Effect.void)),
  judge: nobodyReplaced
}

/**
 * A crash loses commits that were not flushed: events, read models and progress alike. A worker that joined just before
 * may have to join again.
 */
const lostCommits: Fault = {
  kind: "server crash that loses commits",
  alone: true,
  inject: Effect.gen(function*() {
    const { admin, say, watch } = yield* Driver
    const lines = Effect.provideService(Journal.lines, SqlClient.SqlClient, admin)
    yield* Effect.acquireRelease(
      admin`ALTER SYSTEM SET synchronous_commit = off`.pipe(
        Effect.andThen(admin`ALTER SYSTEM SET wal_writer_delay = '10s'`),
        Effect.andThen(admin`SELECT pg_reload_conf()`)
      ),
      () =>
        admin`ALTER SYSTEM RESET synchronous_commit`.pipe(
          Effect.andThen(admin`ALTER SYSTEM RESET wal_writer_delay`),
          Effect.andThen(admin`SELECT pg_reload_conf()`),
          Effect.retry(Schedule.spaced("100 millis")),
          Effect.orDie
        )
    )
    yield* Effect.sleep("1 second")
    const before = yield* lines
    yield* restart("immediate", 0, watch.forget)
    const after = yield* Effect.retry(lines, Schedule.spaced("50 millis"))
    yield* say(after < before ? `the server has lost ${before - after} lines and more` : "the server has lost nothing")
  })
}

export const server: ReadonlyArray<Fault> = [streamOfTerminations, allTerminated, ...restarts, outage, lostCommits]
