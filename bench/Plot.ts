/** Plots as SVG: grouped bars, or lines over a numeric axis. Colors are readable on light and on dark backgrounds. */

export interface Series {
  readonly name: string
  /** One value for each label of the plot. */
  readonly values: ReadonlyArray<number>
}

export interface Plot {
  readonly kind: "bars" | "lines"
  readonly title: string
  /** What the values are, with their unit. */
  readonly unit: string
  /** The groups of bars, or the points of the x axis, evenly spaced. */
  readonly labels: ReadonlyArray<string>
  /** What the labels are. */
  readonly axis?: string | undefined
  readonly series: ReadonlyArray<Series>
}

const width = 720
const height = 360
const area = { left: 64, right: width - 16, top: 64, bottom: height - 52 }
const colors = ["#2f7ed8", "#e0812b", "#3d9a5f", "#c2478f", "#8a6fd1", "#8a8a8a"]

const escape = (text: string): string =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll("\"", "&quot;")

/** The distance of the grid lines: the smallest of 1, 2, 5 times a power of ten with at most six lines. */
export const gridStep = (max: number): number => {
  if (!(max > 0)) return 1
  const power = 10 ** Math.floor(Math.log10(max / 6))
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => max / step <= 6) ?? 10 * power
}

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 })

const text = (x: number, y: number, content: string, attributes = ""): string =>
  `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${attributes}>${escape(content)}</text>`

/** Returns the plot as the text of an SVG file. */
export const svg = (plot: Plot): string => {
  const max = Math.max(0, ...plot.series.flatMap(({ values }) => values).filter(Number.isFinite))
  const step = gridStep(max)
  const top = Math.max(step, Math.ceil(max / step) * step)
  const y = (value: number) => area.bottom - (area.bottom - area.top) * value / top
  const slot = (area.right - area.left) / Math.max(1, plot.labels.length)
  const middle = (index: number) => area.left + slot * (index + 0.5)
  const draw = plot.kind === "bars" ? bars : line
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img">`,
    `<title>${escape(plot.title)}</title>`,
    "<style>",
    "  text { font: 12px system-ui, sans-serif; fill: #3b4252 } .title { font-size: 15px; font-weight: 600 }",
    "  .grid { stroke: #8a8a8a; stroke-opacity: 0.3 }",
    "  @media (prefers-color-scheme: dark) { text { fill: #d8dee9 } }",
    "</style>",
    text(16, 24, plot.title, "class=\"title\""),
    text(16, 46, plot.unit),
    ...legend(plot),
    ...Array.from({ length: Math.round(top / step) + 1 }, (_, index) => grid(y(index * step), index * step)),
    ...plot.series.flatMap((series, index) => draw({ series, index, count: plot.series.length, slot, middle, y })),
    ...plot.labels.map((label, index) => text(middle(index), area.bottom + 18, label, "text-anchor=\"middle\"")),
    text((area.left + area.right) / 2, height - 12, plot.axis ?? "", "text-anchor=\"middle\""),
    "</svg>",
    ""
  ].join("\n")
}

const grid = (y: number, value: number): string =>
  `<line class="grid" x1="${area.left}" x2="${area.right}" y1="${y.toFixed(1)}" y2="${y.toFixed(1)}"/>` +
  text(area.left - 8, y + 4, compact.format(value), "text-anchor=\"end\"")

/** From right to left, above the area. A plot with one series needs none: its title names it. */
const legend = ({ series }: Plot): ReadonlyArray<string> => {
  if (series.length < 2) return []
  let x = area.right
  return series.map(({ name }, index) => ({ name, color: colors[index % colors.length]! })).reverse().flatMap(
    ({ color, name }) => {
      x -= name.length * 7 + 26
      return [`<rect x="${x}" y="36" width="12" height="12" fill="${color}"/>`, text(x + 17, 46, name)]
    }
  )
}

interface Drawing {
  readonly series: Series
  readonly index: number
  readonly count: number
  readonly slot: number
  readonly middle: (index: number) => number
  readonly y: (value: number) => number
}

const bars = ({ count, index, middle, series, slot, y }: Drawing): ReadonlyArray<string> => {
  const bar = slot * 0.7 / count
  return series.values.flatMap((value, label) => {
    if (!Number.isFinite(value)) return []
    const x = middle(label) - slot * 0.35 + bar * index
    return [
      `<rect x="${x.toFixed(1)}" y="${y(value).toFixed(1)}" width="${(bar * 0.92).toFixed(1)}" height="${
        (area.bottom - y(value)).toFixed(1)
      }" fill="${colors[index % colors.length]}"/>`,
      text(x + bar * 0.46, y(value) - 4, compact.format(value), "text-anchor=\"middle\"")
    ]
  })
}

const line = ({ index, middle, series, y }: Drawing): ReadonlyArray<string> => {
  const color = colors[index % colors.length]
  const points = series.values.flatMap((value, label) =>
    Number.isFinite(value) ? [[middle(label), y(value)] as const] : []
  )
  return [
    `<polyline fill="none" stroke="${color}" stroke-width="2" points="${
      points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ")
    }"/>`,
    ...points.map(([x, y]) => `<circle cx="${x.toFixed(1)}" cy="${y.toFixed(1)}" r="3.5" fill="${color}"/>`)
  ]
}
