/** What every event store does. */
import type * as Layer from "effect/Layer"
import type { EventStore } from "../../src/services/EventStore.ts"
import * as AppendSuite from "./AppendSuite.ts"
import * as ReadingSuite from "./ReadingSuite.ts"
import * as StoredEventsSuite from "./StoredEventsSuite.ts"

export const suite = <R = never>(
  name: string,
  layer: Layer.Layer<EventStore | R, unknown>,
  options: AppendSuite.Options<R>
) => {
  AppendSuite.suite(name, layer, options)
  StoredEventsSuite.suite(name, layer, options)
  ReadingSuite.suite(name, layer, options)
}
