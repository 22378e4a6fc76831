/**
 * Tests that the package contains every file to which its texts refer.
 */
import { assert, describe, it } from "@effect/vitest"
import * as ChildProcess from "node:child_process"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import * as Markdown from "../../scripts/Markdown.ts"

const root = fileURLToPath(new URL("../..", import.meta.url))
const read = (path: string): string => Fs.readFileSync(Path.join(root, path), "utf8")

/** The paths of the tarball's files; includes build output only after a build. */
const packed = ((): ReadonlySet<string> => {
  const output = ChildProcess.execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], {
    cwd: root,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "ignore"]
  })
  const [tarball] = JSON.parse(output) as ReadonlyArray<{ readonly files: ReadonlyArray<{ readonly path: string }> }>
  return new Set(tarball?.files.map(({ path }) => path))
})()

const withExtension = (...extensions: ReadonlyArray<string>) =>
  [...packed].filter((path) => !path.startsWith("dist/") && extensions.some((extension) => path.endsWith(extension)))

const assertPacked = (pointer: string, from: string) => {
  const [path = "", anchor] = pointer.split("#")
  assert.isTrue(packed.has(path), `${from} points to ${path}, which is not in the package`)
  if (anchor !== undefined) assert.isTrue(Markdown.anchors(read(path)).has(anchor), `${from} points to ${pointer}`)
}

describe("the package", () => {
  it("contains the documents that errors, logs and comments name", () => {
    let found = 0
    for (const file of withExtension(".ts", ".sql")) {
      for (
        const [pointer] of read(file).matchAll(
          /(?<![\w./])(?:docs|examples|migrations)\/[\w./-]+\.(?:md|ts|sql)(?:#[\w-]+)?/g
        )
      ) {
        found++
        assertPacked(pointer, file)
      }
    }
    assert.isAbove(found, 2)
  })

  it("contains the targets of its documents' links", () => {
    let found = 0
    for (const file of withExtension(".md")) {
      const prose = read(file).replace(/^```[\s\S]*?^```$/gm, "")
      for (const [, target] of prose.matchAll(/\]\(([^)\s]+)\)/g)) {
        if (/^[a-z]+:/.test(target!)) continue
        found++
        assertPacked(target!.startsWith("#") ? `${file}${target}` : Path.join(Path.dirname(file), target!), file)
      }
    }
    assert.isAbove(found, 10)
  })

  it("links to its sources and issues", () => {
    const { bugs, homepage, name, repository } = JSON.parse(read("package.json"))
    const url = /^git\+(https:\/\/\S+)\.git$/.exec(repository.url)?.[1]
    assert.isDefined(url)
    assert.include(url, name)
    assert.strictEqual(bugs, `${url}/issues`)
    assert.strictEqual(homepage, `${url}#readme`)
  })
})
