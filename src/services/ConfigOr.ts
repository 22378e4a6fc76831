/** Options that accept either a value or a `Config`. */
import * as Config from "effect/Config"
import * as Record from "effect/Record"

export type ConfigOr<A> = A | Config.Config<A>

/** Returns a config of all options. */
export const all = <A extends object>(options: { readonly [K in keyof A]: ConfigOr<A[K]> }): Config.Config<A> => {
  // Each value is wrapped in a Config first, because `Config.unwrap` would search plain values for Configs.
  const configs = Record.map(
    options as { readonly [option: string]: unknown },
    (value): Config.Config<unknown> => Config.isConfig(value) ? value : Config.succeed(value)
  )
  return Config.all(configs) as Config.Config<unknown> as Config.Config<A>
}
