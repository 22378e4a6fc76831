/** Finds the calls of Effect's log functions in the source, with their texts. */
import { readdirSync, readFileSync } from "node:fs"

export interface LogCall {
  /** Path of the module, relative to src. */
  readonly module: string
  readonly level: string
  /** The text, with … for each value. If the call does not contain the text, the expression that it contains. */
  readonly text: string
  readonly isLiteral: boolean
}

const source = new URL("../src/", import.meta.url)

const isComment = (line: string): boolean => /^\s*(?:\*|\/\/|\/\*)/.test(line)

/** Returns the calls of all modules, sorted by module. */
export const find = (): ReadonlyArray<LogCall> =>
  readdirSync(source, { recursive: true, encoding: "utf8" })
    .filter((path) => path.endsWith(".ts"))
    .sort()
    .flatMap((module) => callsIn(module, readFileSync(new URL(module, source), "utf8")))

const callsIn = (module: string, text: string): ReadonlyArray<LogCall> => {
  const code = text.split("\n").filter((line) => !isComment(line)).join("\n")
  return [...code.matchAll(/Effect\.log(Debug|Info|Warning|Error)\(\s*/g)].map(({ 0: call, 1: name, index }) => {
    const argument = code.slice(index + call.length)
    const level = name === "Warning" ? "Warn" : name!
    return argument[0] === "\"" || argument[0] === "`"
      ? { module, level, text: literal(argument), isLiteral: true }
      : { module, level, text: /^[.\w]+/.exec(argument)![0], isLiteral: false }
  })
}

/** The text of the literal with which the code begins, with … for each expression of a template. */
const literal = (code: string): string => {
  const quote = code[0]
  let text = ""
  for (let at = 1; code[at] !== quote; at++) {
    if (code[at] === "\\") text += code[++at]
    else if (quote === "`" && code.startsWith("${", at)) {
      at = endOfExpression(code, at + 2)
      if (!text.endsWith("…")) text += "…"
    } else text += code[at]
  }
  return text
}

/** Where the expression of a template ends; the braces of templates within it are balanced too. */
const endOfExpression = (code: string, begin: number): number => {
  let [at, depth] = [begin, 1]
  while (true) {
    if (code[at] === "{") depth++
    if (code[at] === "}" && --depth === 0) return at
    at++
  }
}
