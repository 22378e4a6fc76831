/** Checks the links between the project's Markdown pages. */
import { existsSync, readFileSync } from "node:fs"
import { dirname, join, normalize } from "node:path"
import * as Markdown from "./Markdown.ts"

/** The number of links of these pages, and those whose file or heading does not exist. */
export const check = (root: string, pages: ReadonlyArray<string>) => {
  const problems: Array<string> = []
  let count = 0
  for (const page of pages) {
    for (const { anchor, line, path } of Markdown.links(readFileSync(join(root, page), "utf8"))) {
      count++
      const target = path === "" ? page : normalize(join(dirname(page), path))
      const where = `${page}:${line} links to ${target}`
      if (target.startsWith("..")) problems.push(`${where}, which is outside of the repository`)
      else if (!existsSync(join(root, target))) problems.push(`${where}, which does not exist`)
      else if (anchor !== undefined && !Markdown.anchors(readFileSync(join(root, target), "utf8")).has(anchor)) {
        problems.push(`${where}, which has no heading #${anchor}`)
      }
    }
  }
  return { count, problems }
}
