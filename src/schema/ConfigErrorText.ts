/** Messages for configuration errors. Each names the environment variable. */
import type * as Config from "effect/Config"
import type * as SchemaIssue from "effect/SchemaIssue"
import * as String from "effect/String"

/** Returns the path and the innermost part of an issue. */
const locate = (
  issue: SchemaIssue.Issue,
  path: ReadonlyArray<PropertyKey> = []
): { readonly path: ReadonlyArray<PropertyKey>; readonly inner: SchemaIssue.Issue } => {
  switch (issue._tag) {
    case "Pointer":
      return locate(issue.issue, [...path, ...issue.path])
    case "Filter":
    case "Encoding":
      return locate(issue.issue, path)
    case "Composite":
    case "AnyOf":
      return issue.issues[0] === undefined ? { path, inner: issue } : locate(issue.issues[0], path)
    default:
      return { path, inner: issue }
  }
}

/**
 * Returns the name under which `ConfigProvider.constantCase` finds the value, and the name in the program if it
 * differs.
 */
const variableOf = (path: ReadonlyArray<PropertyKey>): string => {
  const own = path.map((part) => part.toString()).join("_")
  const variable = path.map((part) => typeof part === "string" ? String.configCase(part) : part.toString()).join("_")
  return variable === own ? own : `${variable} (or ${own})`
}

/**
 * Returns the message of a `ConfigError` with the name of the variable. Effect's own message contains a path in a
 * schema instead.
 */
export const configErrorText = (error: Config.ConfigError): string => {
  const { cause } = error
  if (cause._tag === "SourceError") return cause.message
  const { inner, path } = locate(cause.issue)
  if (path.length === 0) return error.message
  const variable = variableOf(path)
  // Configuration sources contain only strings, so a value of another type means that the variable is missing.
  if (inner._tag === "InvalidType" || inner._tag === "MissingKey") {
    return `${variable} is not set. Set it in the environment of this process.`
  }
  return `${variable} is not valid: ${
    cause.message.replace(/\s+at \[.*$/s, "")
  }. Correct it in the environment of this process.`
}
