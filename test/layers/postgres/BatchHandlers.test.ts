import * as Layer from "effect/Layer"
import * as PostgresStores from "../../../src/layers/postgres/PostgresStores.ts"
import * as BatchHandlersSuite from "../../suites/BatchHandlersSuite.ts"
import * as EventStores from "../../support/EventStores.ts"

BatchHandlersSuite.suite("postgres", PostgresStores.layer.pipe(Layer.provideMerge(EventStores.database())))
