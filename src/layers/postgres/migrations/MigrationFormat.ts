/** Renders the migrations as files for common migration tools. */
import type { Migration } from "./Migration.ts"

export const formats = ["golang-migrate", "dbmate", "flyway", "liquibase"] as const

export type MigrationFormat = (typeof formats)[number]

export interface MigrationFile {
  readonly name: string
  readonly content: string
}

const script = (statements: ReadonlyArray<string>): string =>
  statements.map((statement) => `${statement};\n`).join("\n")

const header = (migration: Migration): string => `-- ${migration.title}\n\n`

const padded = (migration: Migration): string => String(migration.number).padStart(3, "0")

// dbmate's own versions are timestamps; these sort before those of any user's migrations.
const dbmateVersion = (migration: Migration): string => `2020010100${String(migration.number).padStart(4, "0")}`

/** Returns the files that the tool reads, in the order in which they are applied. */
export const render = (migrations: ReadonlyArray<Migration>, format: MigrationFormat): ReadonlyArray<MigrationFile> =>
  migrations.flatMap((migration): ReadonlyArray<MigrationFile> => {
    const up = script(migration.up)
    const down = script(migration.down)
    switch (format) {
      case "golang-migrate":
        return [
          { name: `${padded(migration)}_${migration.name}.up.sql`, content: header(migration) + up },
          { name: `${padded(migration)}_${migration.name}.down.sql`, content: header(migration) + down }
        ]
      case "dbmate":
        return [{
          name: `${dbmateVersion(migration)}_${migration.name}.sql`,
          content: `-- migrate:up\n\n${header(migration)}${up}\n-- migrate:down\n\n${down}`
        }]
      case "flyway":
        return [
          { name: `V${migration.number}__${migration.name}.sql`, content: header(migration) + up },
          { name: `U${migration.number}__${migration.name}.sql`, content: header(migration) + down }
        ]
      case "liquibase":
        return [{
          name: `${padded(migration)}_${migration.name}.sql`,
          content: [
            "--liquibase formatted sql",
            "",
            // Blocks in dollar quotes contain semicolons, so the server has to split the statements, not the tool.
            `--changeset pupsourcing-orchestrator:${
              padded(migration)
            }-${migration.name} splitStatements:false rollbackSplitStatements:false stripComments:false`,
            `--comment: ${migration.title}`,
            "",
            up,
            ...down.trimEnd().split("\n").map((line) => `--rollback ${line}`),
            ""
          ].join("\n")
        }]
    }
  })
