/**
 * Words that the project's prose does without, and what to write instead. `npm run lint` searches the comments and strings of
 * src, test, examples, scripts and bench (the rule project/words) and the Markdown files for them. Names in backticks are not prose.
 */

/** Persons may be *who*; workers, sessions and statements may not. */
const persons =
  "people|persons?|users?|operators?|readers?|developers?|maintainers?|administrators?|engineers?|contributors?|authors?|those"

const words = ([
  [`(?<!\\b(?:${persons}),? )(?:who|whom|whoever|whomever)`, "the name of the thing, or a clause with that"],
  [
    "somebody|someone|anybody|anyone|nobody|everybody|everyone",
    "the name of the thing: a worker, a session, no reader"
  ],
  ["hears?|heard|hearing", "receives or detects"],
  ["sees|saw|seen|seeing", "reads, observes or detects"],
  ["says?|said|saying", "states, returns or contains"],
  ["tells?|told|telling", "reports; distinguishes"],
  ["believes?|believed|thinks|thought|knows|knew", "assumes, has read or records"],
  ["wants|dares?|remembers?|remembered", "requires, may or keeps"],
  ["anew", "again or from scratch"],
  ["mend(?:s|ed|ing)?", "fix"],
  ["(?:go|goes|going|went|gone) on", "continue"],
  ["(?:stand|stands|standing|stood) still", "is halted"],
  ["in vain", "without effect"],
  ["by then", "before that"],
  ["(?:come|comes|coming|came) past", "gets through or finishes before"],
  ["(?<!regardless )of which", "whose"],
  ["what passes", "the name of the thing"],
  ["(?:is|are|was|were) away", "is unreachable"],
  ["(?:is|are|was|were) over", "has ended"],
  ["(?:take|takes|taken|took) for", "mistake for"],
  ["(?:give|gives|giving|gave|given) out", "issue"],
  ["(?<!\\bthere )(?:is|are|was|were) no(?! (?:longer|more))", "is not a"],
  ["strikes?", "fires or applies"],
  ["shall|lest|ought to", "must, should, or so that … not"],
  ["(?:there|where|here)(?:upon|of|in)|hitherto|henceforth", "then, its, until now or from now on"]
] as const).map(([pattern, instead]) => ({ pattern: new RegExp(`\\b(?:${pattern})\\b`, "gi"), instead }))

/** A word on the list, where it begins in the text, and what to write instead. */
export interface Found {
  readonly index: number
  readonly word: string
  readonly instead: string
}

export const find = (text: string): ReadonlyArray<Found> => {
  const prose = text.replaceAll(/`[^`\n]*`/g, (code) => "`".repeat(code.length))
  return words.flatMap(({ instead, pattern }) =>
    Array.from(prose.matchAll(pattern), (match) => ({ index: match.index, word: match[0], instead }))
  )
}
