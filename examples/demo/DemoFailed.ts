import { Schema } from "effect"

/** The demo did not show what it promises; `problem` states why. */
export class DemoFailed extends Schema.TaggedError<DemoFailed>()("DemoFailed", { problem: Schema.String }) {
  override get message(): string {
    return this.problem
  }
}
