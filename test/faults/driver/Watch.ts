/** Reads the rows many times a second during faults and checks the invariants that must always hold. */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Semaphore from "effect/Semaphore"
import * as Harness from "../Harness.ts"

const intervalMillis = 40
/** A query that takes longer has met an unreachable server. */
const lookDeadline = Duration.seconds(2)

/** The position up to which every range of every projection is handled. */
export const handled = (rows: Harness.Rows): bigint | undefined =>
  rows.checkpoints.reduce<bigint | undefined>(
    (least, { position }) => least === undefined || position < least ? position : least,
    undefined
  )

export interface Watch {
  /** The rows, unless the server is unreachable. */
  readonly look: Effect.Effect<Option.Option<Harness.Rows>>
  /** The violations found so far. */
  readonly violations: ReadonlyArray<string>
  readonly violate: (text: string) => void
  /** The database has lost commits, so the earlier rows are no longer comparable. */
  readonly forget: Effect.Effect<void>
  readonly millis: Effect.Effect<number>
}

export const start = Effect.fnUntraced(function*(harness: Harness.Harness["Service"]) {
  const violations: Array<string> = []
  const millis = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos) / 1e6)
  let before: Harness.Rows | undefined

  const violate = (text: string) => {
    // Violated rows usually stay unchanged, so every later query finds the same violation.
    if (!violations.includes(text)) violations.push(text)
  }

  const see = (found: Option.Option<Harness.Rows>) =>
    Effect.sync(() => {
      const rows = Option.getOrUndefined(found)
      if (rows === undefined) return
      for (const text of Harness.violations(before, rows)) violate(text)
      before = rows
    })

  // Sequential: of two concurrent queries the older might return last.
  const look = Semaphore.makeUnsafe(1).withPermit(
    Effect.timeoutOption(harness.look, lookDeadline).pipe(
      Effect.catch(() => Effect.succeedNone),
      Effect.tap(see)
    )
  )

  yield* Effect.forkScoped(Effect.forever(Effect.andThen(look, Effect.sleep(intervalMillis))))

  const watch: Watch = {
    look,
    violations,
    violate,
    forget: Effect.sync(() => {
      before = undefined
    }),
    millis
  }
  return watch
})
