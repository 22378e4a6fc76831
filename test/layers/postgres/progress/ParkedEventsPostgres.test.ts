import * as Layer from "effect/Layer"
import * as PostgresStores from "../../../../src/layers/postgres/PostgresStores.ts"
import * as ParkedEventsSuite from "../../../suites/ParkedEventsSuite.ts"
import { realTime } from "../../../suites/Suite.ts"
import * as EventStores from "../../../support/EventStores.ts"

const stores = PostgresStores.layer.pipe(Layer.provideMerge(EventStores.database()))

ParkedEventsSuite.suite("postgres", stores, { time: realTime })
