// The project's own rules, as an oxlint plugin (.oxlintrc.json). Every rule has a fixture in test/fixtures/lint which it must refuse.
import { dirname, relative, resolve, sep } from "node:path"
import { fileURLToPath } from "node:url"
import * as Words from "./Words.ts"

const root = dirname(dirname(fileURLToPath(import.meta.url)))

// A fixture names on its first line the file that it stands for.
const pathOf = (context) => {
  const stands = /^\/\/ stands for (\S+)/.exec(context.sourceCode.text)
  return stands ? stands[1] : relative(root, context.filename).split(sep).join("/")
}

const sqlText = new RegExp(
  "^\\s*(?:SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH|VALUES|CREATE|ALTER|DROP|TRUNCATE|LOCK TABLE|SET|SHOW|BEGIN|COMMIT|ROLLBACK|SAVEPOINT|" +
    "LISTEN|UNLISTEN|NOTIFY|GRANT|REVOKE|PREPARE|COPY)(?:\\s+[\\w\"$(*]|\\s*$)"
)

const layersAbove = {
  "src/schema/": ["src/services/", "src/layers/", "src/cli/", "src/testing/"],
  "src/services/": ["src/layers/", "src/cli/", "src/testing/"],
  "src/layers/": ["src/cli/", "src/testing/"],
  "src/cli/": ["src/testing/"],
  "src/testing/": ["src/cli/"]
}

const rule = (description, create) => ({ meta: { type: "problem", docs: { description } }, create })

const direction = rule("Imports point one way: cli and testing → layers → services → schema.", (context) => {
  const path = pathOf(context)
  const own = Object.keys(layersAbove).find((folder) => path.startsWith(folder))
  if (own === undefined) return {}
  const check = (node) => {
    const source = node.source?.value
    if (typeof source !== "string" || !source.startsWith(".")) return
    const target = relative(root, resolve(root, dirname(path), source)).split(sep).join("/")
    const above = layersAbove[own].find((folder) => target.startsWith(folder))
    if (above !== undefined || !target.startsWith("src/")) {
      context.report({
        node,
        message: `${own} must not import ${target}: imports point from layers to services to schema, and stay in src.`
      })
    }
  }
  return {
    ImportDeclaration: check,
    ExportNamedDeclaration: check,
    ExportAllDeclaration: check,
    ImportExpression: check
  }
})

const ambient = new Set([
  "setTimeout",
  "setInterval",
  "setImmediate",
  "queueMicrotask",
  "Promise",
  "Date",
  "performance",
  "process",
  "console",
  "crypto",
  "fetch"
])

const pureServices = rule(
  "Services and schema take time, chance and waiting from Effect, so that a test's clock and seed drive them.",
  (context) => {
    const path = pathOf(context)
    if (!path.startsWith("src/services/") && !path.startsWith("src/schema/")) return {}
    const report = (node, what) =>
      context.report({
        node,
        message: `${what} in ${path}: use Clock, DateTime, Random, Effect.sleep, Effect.log or a service instead.`
      })
    const isAsync = (node) => node.async && report(node, "an async function")
    return {
      CallExpression(node) {
        if (node.callee.type === "Identifier" && ambient.has(node.callee.name)) report(node, node.callee.name)
      },
      NewExpression(node) {
        const { name, type } = node.callee
        // `new Date(value)` only converts.
        if (type === "Identifier" && ambient.has(name) && !(name === "Date" && node.arguments.length > 0)) {
          report(node, `new ${name}`)
        }
      },
      MemberExpression(node) {
        const { name, type } = node.object
        if (type !== "Identifier") return
        const property = node.property.name ?? node.property.value
        if (name === "Math" ? property === "random" : name === "Date" ? property === "now" : ambient.has(name)) {
          report(node, `${name}.${property}`)
        }
        if (name === "globalThis" && (ambient.has(property) || property === "Math")) {
          report(node, `globalThis.${property}`)
        }
      },
      ImportDeclaration(node) {
        if (node.source.value.startsWith("node:")) report(node, `an import of ${node.source.value}`)
      },
      AwaitExpression: (node) => report(node, "await"),
      FunctionDeclaration: isAsync,
      FunctionExpression: isAsync,
      ArrowFunctionExpression: isAsync
    }
  }
)

const sqlPlace = rule("SQL text of the library lives in src/layers/postgres and migrations only.", (context) => {
  const path = pathOf(context)
  if (!path.startsWith("src/") || /^src\/(?:layers\/postgres|testing)\//.test(path)) return {}
  const check = (node, text) => {
    if (sqlText.test(text)) {
      context.report({ node, message: `SQL in ${path}: it belongs to src/layers/postgres.` })
    }
  }
  return {
    TemplateLiteral: (node) => check(node, node.quasis.map((quasi) => quasi.value.raw).join("$")),
    Literal: (node) => typeof node.value === "string" && check(node, node.value)
  }
})

const detachedFibers = rule("A fiber that outlives its parent is started by Abandonable.", (context) => {
  const path = pathOf(context)
  if (!path.startsWith("src/") || path === "src/services/Abandonable.ts") return {}
  return {
    MemberExpression(node) {
      if (node.property.name === "forkDetach") {
        context.report({ node, message: `forkDetach in ${path}: use Abandonable.run or Abandonable.start.` })
      }
    }
  }
})

const testNames = new Set(["it", "test", "describe", "suite", "layer", "bench"])

const noSkippedTests = rule("Every test runs.", (context) => {
  if (!pathOf(context).startsWith("test/")) return {}
  return {
    MemberExpression(node) {
      const name = node.property.name ?? node.property.value
      if (name !== "only" && name !== "skip" && name !== "todo") return
      let object = node.object
      while (object.type === "MemberExpression" || object.type === "CallExpression") {
        object = object.type === "MemberExpression" ? object.object : object.callee
      }
      if (object.type === "Identifier" && testNames.has(object.name)) {
        context.report({ node, message: `.${name}: every test runs; fix it or remove it.` })
      }
    }
  }
})

const words = rule("Comments and strings are plain technical English; see Words.ts.", (context) => {
  const path = pathOf(context)
  if (!/^(?:src|test|examples|scripts|bench)\//.test(path) || path === "scripts/Words.ts") return {}
  const check = (node, text) => {
    for (const { instead, word } of Words.find(text)) {
      context.report({ node, message: `"${word}": write ${instead}` })
    }
  }
  return {
    Program() {
      let above
      // Consecutive line comments are one text: a phrase may continue on the next line.
      for (const comment of context.sourceCode.getAllComments()) {
        const text = comment.value.replaceAll(/\n\s*\*?\s*/g, " ")
        const continues = comment.type === "Line" && above?.line === comment.loc.start.line - 1
        const before = continues ? above.text : ""
        if (!continues && above !== undefined) check(above.comment, above.text)
        above = { comment: continues ? above.comment : comment, text: before + text, line: comment.loc.start.line }
      }
      if (above !== undefined) check(above.comment, above.text)
    },
    // One word is a name.
    Literal: (node) => typeof node.value === "string" && node.value.includes(" ") && check(node, node.value),
    TemplateElement: (node) => check(node, node.value.raw)
  }
})

export default {
  meta: { name: "project" },
  rules: {
    "direction": direction,
    "pure-services": pureServices,
    "sql-place": sqlPlace,
    "detached-fibers": detachedFibers,
    "no-skipped-tests": noSkippedTests,
    "words": words
  }
}
