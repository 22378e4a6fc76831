/**
 * Layers that are memoized per instance of a service, not per program.
 *
 * Effect memoizes a layer by its reference alone. A constant layer that takes a database client from its context would
 * therefore be built once, for the first client, and be used for every other client of the program as well.
 */
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

/**
 * Returns a layer that is memoized once per instance of `service`: two places that provide the same instance share the
 * services that `make` builds; two instances never share them. Within one instance Effect's own rules apply
 * (`Layer.fresh`, scopes, nested `Effect.provide`).
 *
 * **Gotchas**
 *
 * `make` must return new layers only: a constant layer inside it would be shared between instances.
 */
export const layerPer = <Identifier, Service extends object, ROut, E, RIn>(
  service: Context.Key<Identifier, Service>,
  make: () => Layer.Layer<ROut, E, RIn>
): Layer.Layer<ROut, E, RIn | Identifier> => {
  const layers = new WeakMap<Service, Layer.Layer<ROut, E, RIn>>()
  return Layer.fromBuild((memoMap, scope) =>
    Effect.flatMap(service, (instance) => {
      let layer = layers.get(instance)
      if (layer === undefined) {
        layer = make()
        layers.set(instance, layer)
      }
      return Layer.buildWithMemoMap(layer, memoMap, scope)
    })
  )
}
