// The API reference: one module for each subpath of package.json `exports`, under the name by which it is imported.
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { Comment, Converter, MinimalSourceFile, ReflectionKind } from "typedoc"

const root = fileURLToPath(new URL("../..", import.meta.url))
const manifest = JSON.parse(readFileSync(join(root, "package.json"), "utf8"))

const subpaths = Object.entries(manifest.exports).flatMap(([subpath, targets]) =>
  subpath === "." || typeof targets === "string"
    ? []
    : [{ name: subpath.slice("./".length), file: join(root, targets["pupsourcing-orchestrator-source"]) }]
)

/** The docstring at the top of a file, without its asterisks. TypeDoc itself reads it only where it has the tag `@module`. */
const headerOf = (text) => /^\/\*\*([\s\S]*?)\*\//.exec(text)?.[1]?.replaceAll(/^ *\* ?(?:@.*)?/gm, "") ?? ""

const describeModules = (app) => {
  app.converter.on(Converter.EVENT_CREATE_DECLARATION, (context, reflection) => {
    if (!reflection.kindOf(ReflectionKind.Module)) return
    const { fileName, text } = context.getSymbolFromReflection(reflection).declarations[0].getSourceFile()
    reflection.name = subpaths.find(({ file }) => file === fileName).name
    const source = new MinimalSourceFile(headerOf(text), fileName)
    reflection.comment = new Comment(context.converter.parseRawComment(source, context.project.files).content)
  })
}

/** `MemoryStores.MemoryWorld` is opaque: its members are internal. */
const hideMembers = (app) => {
  app.converter.on(Converter.EVENT_RESOLVE_BEGIN, ({ project }) => {
    const world = project.getReflectionsByKind(ReflectionKind.Interface).find(({ name }) => name === "MemoryWorld")
    // Removing a member changes the list.
    for (const member of world.children.slice()) project.removeReflection(member)
  })
}

export default {
  name: `${manifest.name} ${manifest.version}`,
  entryPoints: subpaths.map(({ file }) => file),
  tsconfig: join(root, "scripts/api/tsconfig.json"),
  plugin: [describeModules, hideMembers],
  readme: "none",
  out: join(root, "docs/api"),
  excludeExternals: true,
  excludeInternal: true,
  // Parts of exported types that only the compiler evaluates.
  intentionallyNotExported: [
    "Below",
    "NoUpcasts",
    "OnlyBelow",
    "TagOf",
    "TypedCommonOptions",
    `${manifest.name}/src/schema/FailurePolicy.ts:Any`
  ],
  treatWarningsAsErrors: true,
  treatValidationWarningsAsErrors: true,
  disableGit: true,
  disableSources: true
}
