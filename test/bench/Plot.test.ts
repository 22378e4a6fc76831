import { assert, describe, it } from "@effect/vitest"
import * as Plot from "../../bench/Plot.ts"

const plot: Plot.Plot = {
  kind: "bars",
  title: "Rows & <bytes>",
  unit: "events/s",
  labels: ["1", "2"],
  series: [{ name: "worker", values: [10, 20] }, { name: "floor", values: [40, Number.NaN] }]
}

/** The heights of the bars, without the squares of the legend. */
const heights = (svg: string) =>
  Array.from(svg.matchAll(/<rect [^>]*height="([\d.]+)" fill/g), (match) => Number(match[1])).filter((height) =>
    height !== 12
  )

describe("Plot", () => {
  it("draws bars in proportion to the values and leaves out what was not measured", () => {
    const [ten, twenty, forty, ...others] = heights(Plot.svg(plot))
    assert.deepStrictEqual(others, [])
    assert.closeTo(twenty! / ten!, 2, 0.01)
    assert.closeTo(forty! / ten!, 4, 0.01)
  })

  it("draws one point of a line for each value", () => {
    assert.lengthOf(Array.from(Plot.svg({ ...plot, kind: "lines" }).matchAll(/<circle /g)), 3)
  })

  it("escapes texts", () => {
    const svg = Plot.svg(plot)
    assert.include(svg, "<title>Rows &amp; &lt;bytes&gt;</title>")
    assert.notInclude(svg, "<bytes>")
  })

  it("draws a plot without values", () => {
    assert.notInclude(Plot.svg({ ...plot, series: [{ name: "worker", values: [0, 0] }] }), "NaN")
    assert.notInclude(Plot.svg({ ...plot, labels: [], series: [] }), "NaN")
  })

  it("places grid lines at 1, 2 or 5 times a power of ten", () => {
    assert.deepStrictEqual([0.9, 6, 7, 23, 950_000].map(Plot.gridStep), [0.2, 1, 2, 5, 200_000])
  })
})
