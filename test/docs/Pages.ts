/**
 * The named blocks of the documentation: the word after the language in the first line of a fenced block (```sql retry) is its name.
 * Tests run them as they are, so that a page and its test cannot differ.
 */
import * as Effect from "effect/Effect"
import type * as SqlClient from "effect/sql/SqlClient"
import * as Crypto from "node:crypto"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { pathToFileURL } from "node:url"

const root = Path.resolve(import.meta.dirname, "../..")

/** The text of a page below docs. */
export const read = (page: string): string => Fs.readFileSync(Path.join(root, "docs", `${page}.md`), "utf8")

/** Returns the block of that name. */
export const block = (page: string, name: string): string => {
  const found = [...read(page).matchAll(/^( *)```[a-z]+ (\S+)\n([\s\S]*?)^ *```$/gm)].filter((match) =>
    match[2] === name
  )
  if (found.length !== 1) throw new Error(`docs/${page}.md has ${found.length} blocks named ${name}`)
  const [, indent, , text] = found[0]!
  return text!.replaceAll(new RegExp(`^${indent}`, "gm"), "")
}

/** Replaces a value of the page by one of the test; the page must contain it. */
export const substitute = (text: string, values: Readonly<Record<string, string>>): string =>
  Object.entries(values).reduce((text, [from, to]) => {
    if (!text.includes(from)) throw new Error(`the block does not contain ${from}:\n${text}`)
    return text.replaceAll(from, to)
  }, text)

/** The statements of a block. In the pages, a statement ends at the end of a line. */
const statements = (text: string): ReadonlyArray<string> =>
  text.replaceAll(/--.*$/gm, "").split(/;\s*$/m).map((statement) => statement.trim()).filter((text) => text !== "")

/** Runs the statements on one connection, as psql does. Returns the rows of each. */
export const runSql = (sql: SqlClient.SqlClient, text: string) =>
  Effect.scoped(
    Effect.flatMap(sql.reserve, (connection) =>
      Effect.forEach(statements(text), (statement) =>
        connection.executeUnprepared(statement, [], undefined) as Effect.Effect<
          ReadonlyArray<Record<string, unknown>>
        >).pipe(
          // A statement that failed inside a transaction would leave the connection unusable for the pool. Only that
          // statement's error is of interest.
          Effect.tapCause(() =>
            Effect.ignore(connection.executeUnprepared("ROLLBACK", [], undefined))
          )
        ))
  )

/** Where blocks become files: inside of the checkout, so that they find the library, and ignored by Git. */
const files = Path.join(root, ".page-blocks")

/** Writes a text as a file that lives as long as the scope, and returns its path. */
export const file = (name: string, text: string) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const folder = Path.join(files, Crypto.randomUUID())
      Fs.mkdirSync(folder, { recursive: true })
      const path = Path.join(folder, name)
      Fs.writeFileSync(path, text)
      return path
    }),
    (path) => Effect.sync(() => Fs.rmSync(Path.dirname(path), { recursive: true, force: true }))
  )

/** Imports a block as a module. `Exports` is what the block exports. */
export const importBlock = <Exports>(page: string, name: string): Effect.Effect<Exports> =>
  Effect.scoped(
    Effect.flatMap(
      file(`${name}.ts`, block(page, name)),
      (path) => Effect.promise(() => import(pathToFileURL(path).href) as Promise<Exports>)
    )
  )
