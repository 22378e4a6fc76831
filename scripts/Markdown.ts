/** What the checks of the documentation read from a Markdown page. */

/** A fenced block. */
export interface Block {
  readonly language: string
  /** What follows the language, such as the name of the file that the block is. */
  readonly label: string
  /** The number of the line of the fence that opens it, from 1. */
  readonly line: number
  readonly text: string
}

const fence = /^\s*```(.*)$/

/** The fenced blocks of a page, in order. Throws if one is not closed. */
export const blocks = (page: string, text: string): ReadonlyArray<Block> => {
  const found: Array<Block> = []
  let open: { readonly info: string; readonly line: number; readonly lines: Array<string> } | undefined
  for (const [index, line] of text.split("\n").entries()) {
    const info = fence.exec(line)?.[1]?.trim()
    if (open === undefined) {
      if (info !== undefined) open = { info, line: index + 1, lines: [] }
    } else if (info === "") {
      const [language = "", label = ""] = open.info.split(" ")
      found.push({ language, label, line: open.line, text: open.lines.join("\n") })
      open = undefined
    } else {
      open.lines.push(line)
    }
  }
  if (open !== undefined) throw new Error(`${page}:${open.line}: the block is not closed`)
  return found
}

/** The page without its fenced blocks; every other line keeps its number. */
const prose = (text: string): ReadonlyArray<string> => {
  let inBlock = false
  return text.split("\n").map((line) => {
    const isFence = fence.test(line)
    if (isFence) inBlock = !inBlock
    return isFence || inBlock ? "" : line
  })
}

/** The anchors that GitHub generates for the headings. A repeated heading gets a number. */
export const anchors = (text: string): ReadonlySet<string> => {
  const found = new Set<string>()
  for (const line of prose(text)) {
    const heading = /^#+ (.+)$/.exec(line)?.[1]
    if (heading === undefined) continue
    const anchor = heading.trim().toLowerCase().replaceAll(/[^\p{L}\p{N} _-]/gu, "").replaceAll(" ", "-")
    let name = anchor
    for (let number = 1; found.has(name); number++) name = `${anchor}-${number}`
    found.add(name)
  }
  return found
}

/** A link to a file or a heading; links to other sites are left out. */
export interface Link {
  readonly line: number
  readonly path: string
  readonly anchor: string | undefined
}

export const links = (text: string): ReadonlyArray<Link> =>
  prose(text).flatMap((line, index) =>
    Array.from(line.replaceAll(/`[^`]*`/g, "").matchAll(/\]\(([^)\s]+)\)/g), (match) => match[1]!)
      .filter((target) => !/^[a-z]+:/.test(target))
      .map((target) => {
        const [path = "", anchor] = target.split("#")
        return { line: index + 1, path, anchor }
      })
  )
