import * as Layer from "effect/Layer"
import * as PostgresStores from "../../../src/layers/postgres/PostgresStores.ts"
import * as TypedEventsSuite from "../../suites/TypedEventsSuite.ts"
import * as EventStores from "../../support/EventStores.ts"

TypedEventsSuite.suite("postgres", PostgresStores.layer.pipe(Layer.provideMerge(EventStores.database())))
