import * as Layer from "effect/Layer"
import * as PostgresStores from "../../../src/layers/postgres/PostgresStores.ts"
import * as OrderSuite from "../../suites/OrderSuite.ts"
import * as EventStores from "../../support/EventStores.ts"

OrderSuite.suite("postgres", PostgresStores.layer.pipe(Layer.provideMerge(EventStores.database())))
