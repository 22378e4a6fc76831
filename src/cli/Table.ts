/** Tables of plain text. */

/** Aligns the columns. A cell that is longer than its column's limit ends with an ellipsis. */
export const table = (rows: ReadonlyArray<ReadonlyArray<string>>, limits: ReadonlyArray<number> = []): string => {
  const cut = rows.map((row) => row.map((cell, column) => truncated(cell, limits[column] ?? Infinity)))
  const widths = (cut[0] ?? []).map((_, column) => Math.max(...cut.map((row) => (row[column] ?? "").length)))
  return cut.map((row) => row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join("  ").trimEnd()).join("\n")
}

/**
 * The text in one line, at most `limit` characters long. Control characters become spaces: a key may contain a line
 * break, and no event may control the terminal.
 */
export const truncated = (text: string, limit: number): string => {
  const line = text.replaceAll(/\p{Cc}+/gu, " ")
  return line.length <= limit ? line : `${line.slice(0, limit - 1)}…`
}
