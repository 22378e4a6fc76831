/** Identifiers of error classes. */

export const id = (tag: string): string => `pupsourcing-orchestrator/${tag}`
