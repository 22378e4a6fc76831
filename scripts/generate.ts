// Writes migrations/*.sql, the files that users apply, from their one source in src/layers/postgres/migrations.
import { mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs"
import * as Migration from "../src/layers/postgres/migrations/Migration.ts"
import * as MigrationFormat from "../src/layers/postgres/migrations/MigrationFormat.ts"
import * as TableNames from "../src/schema/TableNames.ts"

const directory = new URL("../migrations/", import.meta.url)
const files = MigrationFormat.render(Migration.all(TableNames.defaults), "golang-migrate")

mkdirSync(directory, { recursive: true })
for (const name of readdirSync(directory)) {
  if (name.endsWith(".sql")) rmSync(new URL(name, directory))
}
for (const file of files) {
  writeFileSync(new URL(file.name, directory), file.content)
  console.log(`migrations/${file.name}`)
}
