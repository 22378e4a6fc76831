/** The events of an account, declared once for the program that appends them and for the projection. */
import { Schema } from "effect"
import { EventSet } from "pupsourcing-orchestrator"

export const AccountEvents = EventSet.make({
  AccountOpened: {
    version: 2,
    payload: Schema.Struct({ owner: Schema.String, currency: Schema.String }),
    // Version 1 had no currency: all accounts were in euros.
    upcast: { 1: (old) => ({ ...old, currency: "EUR" }) },
    storedAs: ["AccountCreated"]
  },
  Deposited: Schema.Struct({ cents: Schema.Int }),
  Withdrawn: Schema.Struct({ cents: Schema.Int })
}, { boundedContext: "bank", aggregateType: "Account", retired: ["StatementPrinted"] })
