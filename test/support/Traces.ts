/** A tracing backend that keeps its spans. */
import * as Option from "effect/Option"
import * as Tracer from "effect/Tracer"

/** A tracer and the spans that it has made, oldest first. */
export const make = () => {
  const spans: Array<Tracer.NativeSpan> = []
  const tracer = Tracer.make({
    span: (options) => {
      const span = new Tracer.NativeSpan(options)
      spans.push(span)
      return span
    }
  })
  return {
    tracer,
    spans,
    named: (name: string) => spans.filter((span) => span.name === name),
    childrenOf: (parent: Tracer.NativeSpan) => spans.filter((span) => Option.getOrUndefined(span.parent) === parent)
  }
}

/** A span's attributes as an object. */
export const attributesOf = ({ attributes }: Tracer.NativeSpan): Readonly<Record<string, unknown>> =>
  Object.fromEntries(attributes)

/** How a span ended: with success, the errors that a tracer exports, `interrupted`, or not at all. */
export const outcomeOf = ({ status }: Tracer.NativeSpan): string => {
  if (status._tag === "Started") return "open"
  if (status.exit._tag === "Success") return "ok"
  const errors = status.exit.cause.reasons.flatMap((reason) => reason._tag === "Fail" ? [String(reason.error)] : [])
  return errors.length === 0 ? "interrupted" : errors.join("; ")
}
