/** Tests the checks of `npm run docs`. */
import { assert, describe, it } from "@effect/vitest"
import * as Fs from "node:fs"
import { tmpdir } from "node:os"
import * as Path from "node:path"
import * as Links from "../../scripts/Links.ts"
import * as Markdown from "../../scripts/Markdown.ts"
import * as Walkthrough from "../../scripts/Walkthrough.ts"

const withPages = (pages: Readonly<Record<string, string>>): ReadonlyArray<string> => {
  const folder = Fs.mkdtempSync(Path.join(tmpdir(), "docs-test-"))
  try {
    for (const [name, text] of Object.entries(pages)) Fs.writeFileSync(Path.join(folder, name), text)
    return Links.check(folder, Object.keys(pages)).problems
  } finally {
    Fs.rmSync(folder, { recursive: true })
  }
}

describe("links", () => {
  it("lead to files and headings that exist", () => {
    assert.deepStrictEqual(
      withPages({
        "a.md":
          "# A title: `x`, again\n[b](b.md) [b](b.md#two-1) [a](#a-title-x-again) [site](https://example.org/#x)\n",
        "b.md": "## Two\n## Two\n```text\n[not a link](nowhere.md)\n```\n`[nor](this.md)`\n"
      }),
      []
    )
  })

  it("are reported with their line if the file or the heading is missing", () => {
    assert.deepStrictEqual(withPages({ "a.md": "\n[b](b.md)\n[a](#nothing)\n[up](../x.md)\n" }), [
      "a.md:2 links to b.md, which does not exist",
      "a.md:3 links to a.md, which has no heading #nothing",
      "a.md:4 links to ../x.md, which is outside of the repository"
    ])
  })
})

const walk = (markdown: string) =>
  Walkthrough.run({
    page: "page.md",
    blocks: Markdown.blocks("page.md", markdown),
    cwd: tmpdir(),
    environment: process.env,
    sqlCommand: "test \"$STATEMENT\" = 'SELECT 1'"
  })

const worker =
  "bash -c 'trap \"echo Shutdown complete; exit 0\" INT; echo \"[10:00:00.000] INFO (#7): Processing events... { a: 1 }\"; " +
  "while :; do sleep 0.05; done'"

describe("a page", () => {
  it("is run from top to bottom", async () => {
    const page = [
      "```sh",
      "true",
      `${worker}   # terminal 1`,
      "```",
      "```text",
      "# terminal 1",
      "[03:04:05.678] INFO (#59): Processing events...",
      "```",
      "```sql",
      "SELECT 1;",
      "SELECT 1;",
      "```",
      "```sh",
      "# press Ctrl+C in terminal 1",
      "```"
    ].join("\n")
    assert.deepStrictEqual(await walk(page), { commands: 1, terminals: 1, statements: 2, lines: 1 })
  })

  it("fails with the line of the block whose command fails", async () => {
    const error = await walk("\n```sh\ntrue\necho broken && exit 3\n```\n").catch((error: Error) => error)
    assert.instanceOf(error, Error)
    assert.match((error as Error).message, /^page\.md:2: echo broken && exit 3\nended with 3:\nbroken/)
  })

  it("fails if a terminal ends before it processes events", async () => {
    const error = await walk("```sh\necho bye   # terminal 1\n```\n").catch((error: Error) => error)
    assert.match((error as Error).message, /did not process events:\nbye/)
  })
})

describe("the output of a terminal", () => {
  const output =
    "[10:00:00.000] INFO (#1): Worker registered: worker-01a2 {\n  worker: 'x'\n}\n[10:00:01.000] INFO (#9): Done\n"

  it("is compared without times, ids and annotations", () => {
    assert.isTrue(
      Walkthrough.containsLines(
        output,
        "[03:00:00.111] INFO (#5): Worker registered: worker-99ff\n[03:00:00.112] INFO (#5): Done"
      )
    )
  })

  it("is compared in order, with levels and texts", () => {
    assert.isFalse(
      Walkthrough.containsLines(output, "[1:0] INFO (#1): Done\n[1:0] INFO (#1): Worker registered: worker-1")
    )
    assert.isFalse(Walkthrough.containsLines(output, "[1:0] WARN (#1): Done"))
    assert.isFalse(Walkthrough.containsLines(output, "[1:0] INFO (#1): Gone"))
  })
})
