// Writes what is generated from the source: migrations/*.sql, the files that users apply, docs/metrics.md, the dashboard, and the
// manifests of examples/kubernetes.
import { mkdirSync, readdirSync, rmSync, writeFileSync } from "node:fs"
import * as Manifests from "../examples/kubernetes/manifests.ts"
import { dashboard } from "../examples/with-metrics/grafana/dashboard.ts"
import * as Migration from "../src/layers/postgres/migrations/Migration.ts"
import * as MigrationFormat from "../src/layers/postgres/migrations/MigrationFormat.ts"
import * as Roles from "../src/layers/postgres/migrations/Roles.ts"
import * as TableNames from "../src/schema/TableNames.ts"
import * as MetricsPage from "./MetricsPage.ts"

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

mkdirSync(new URL("roles/", directory), { recursive: true })
for (const file of Roles.files) {
  writeFileSync(new URL(`roles/${file.name}`, directory), file.content)
  console.log(`migrations/roles/${file.name}`)
}

writeFileSync(new URL("../docs/metrics.md", import.meta.url), MetricsPage.render())
console.log("docs/metrics.md")

writeFileSync(
  new URL("../examples/with-metrics/grafana/dashboard.json", import.meta.url),
  `${JSON.stringify(dashboard, null, 2)}\n`
)
console.log("examples/with-metrics/grafana/dashboard.json")

for (const [name, text] of Object.entries(Manifests.render())) {
  writeFileSync(new URL(`../examples/kubernetes/${name}`, import.meta.url), text)
  console.log(`examples/kubernetes/${name}`)
}
