/** Tests the manifests, the lag query and the Dockerfile of `examples/kubernetes`. */
import { assert, describe, it } from "@effect/vitest"
import { validate } from "dockerfile-utils"
import { ConfigProvider, Duration, Effect } from "effect"
import { SqlClient } from "effect/sql"
import * as Fs from "node:fs"
import { parseAllDocuments } from "yaml"
import * as Manifests from "../../examples/kubernetes/manifests.ts"
import * as Dockerfile from "../../scripts/Dockerfile.ts"
import * as Http from "../../src/layers/http/Http.ts"
import * as Settings from "../../src/services/Settings.ts"
import * as EventStores from "../support/EventStores.ts"
import * as Roles from "../support/Roles.ts"

const folder = new URL("../../examples/kubernetes/", import.meta.url)
const read = (file: string): string => Fs.readFileSync(new URL(file, folder), "utf8")

const guide = Fs.readFileSync(new URL("../../docs/kubernetes.md", import.meta.url), "utf8")

interface Container {
  readonly env: ReadonlyArray<{ readonly name: string; readonly value?: string }>
  readonly ports: ReadonlyArray<{ readonly name: string; readonly containerPort: number }>
  readonly lifecycle?: { readonly preStop?: { readonly sleep?: { readonly seconds: number } } }
  readonly [probe: `${string}Probe`]: { readonly httpGet: { readonly path: string; readonly port: string } }
}
interface Resource {
  readonly kind: string
  readonly spec: {
    readonly template: {
      readonly spec: { readonly terminationGracePeriodSeconds: number; readonly containers: ReadonlyArray<Container> }
    }
    readonly podMetricsEndpoints: ReadonlyArray<{ readonly path: string; readonly port: string }>
  }
}

const resources = (file: string) => parseAllDocuments(read(file)).map((document) => document.toJS() as Resource)
const pod = resources("worker.yaml").find(({ kind }) => kind === "Deployment")!.spec.template.spec
const worker = pod.containers[0]!

describe("examples/kubernetes/*.yaml", () => {
  it("are those of manifests.ts; run npm run generate", () => {
    const files = Fs.readdirSync(folder).filter((file) => file.endsWith(".yaml"))
    assert.deepStrictEqual(Object.fromEntries(files.map((file) => [file, read(file)])), Manifests.render())
  })

  it("use endpoints and ports that exist", () => {
    const paths = Object.values(Http.Api.groups).flatMap(({ endpoints }) =>
      Object.values(endpoints).map(({ path }) => path as string)
    )
    const monitored = resources("monitoring.yaml")[0]!.spec.podMetricsEndpoints[0]!
    const probes = ["startupProbe", "livenessProbe", "readinessProbe"] as const
    for (const { path, port } of [monitored, ...probes.map((probe) => worker[probe]!.httpGet)]) {
      assert.include(paths, path)
      assert.include(worker.ports.map(({ name }) => name), port)
    }
    assert.strictEqual(worker.livenessProbe!.httpGet.path, "/healthz")
    assert.strictEqual(worker.readinessProbe!.httpGet.path, "/readyz")
  })

  it.effect("leave a worker the time to drain and to leave", () =>
    Effect.gen(function*() {
      const env = Object.fromEntries(worker.env.map(({ name, value }) => [name, value ?? "from elsewhere"]))
      const settings = yield* Effect.provideService(
        Settings.config,
        ConfigProvider.ConfigProvider,
        ConfigProvider.fromEnv({ env })
      )
      assert.strictEqual(settings.replicaSet, "orders")
      assert.strictEqual(settings.workerId, "from elsewhere")
      const drain = Duration.toSeconds(Duration.fromInputUnsafe(settings.drainTimeout!))
      assert.strictEqual(drain, Manifests.ending.drain)
      const preStop = worker.lifecycle?.preStop?.sleep?.seconds ?? 0
      assert.isAbove(pod.terminationGracePeriodSeconds, preStop + drain + Manifests.ending.leave)
    }))
})

describe("the query of keda.yaml", () => {
  /** Events, and the progress of two projections and another replica set. */
  const lag = Effect.fnUntraced(function*(events: number, rows: ReadonlyArray<ReadonlyArray<unknown>>) {
    const sql = yield* SqlClient.SqlClient
    yield* sql`
      INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
      SELECT 'shop', 'Order', i::text, 1, gen_random_uuid(), 'OrderPlaced', '' FROM generate_series(1, ${events}::int) AS i`
    for (const [projection, start, end, position, replicaSet, haltedSince] of rows) {
      yield* sql`
        INSERT INTO orchestrator_checkpoints (projection_name, range_start, range_end, position, replica_set, filter,
          halted_since)
        VALUES (${projection}, ${start}::bigint, ${end}::bigint, ${position}::bigint, ${replicaSet}, '[null,null,null]',
          ${haltedSince ?? null}::timestamptz)`
    }
    const { name } = yield* Roles.make
    yield* sql`GRANT SELECT ON events, orchestrator_checkpoints TO ${sql(name)}`
    return yield* sql.withTransaction(
      Effect.andThen(
        sql`SET LOCAL ROLE ${sql(name)}`,
        sql.unsafe<{ readonly coalesce: bigint }>(Manifests.lagQuery)
      )
    ).pipe(Effect.map((rows) => rows.map(({ coalesce }) => coalesce)))
  }, Effect.scoped)

  const end = 2 ** 32
  const half = 2 ** 31
  const quarter = 2 ** 30

  it.live("counts the events that the replica set has not handled, as a role that may only read two tables", () =>
    Effect.gen(function*() {
      const result = yield* lag(1000, [
        // 300 and 500 events behind, in halves: 400.
        ["a", 0, half, 700, "orders"],
        ["a", half, end, 500, "orders"],
        // 100 behind in a quarter: 25. The rest is caught up.
        ["b", 0, quarter, 900, "orders"],
        ["b", quarter, end, 1000, "orders"],
        // Halted, and of another replica set.
        ["c", 0, end, 0, "orders", "2026-01-01"],
        ["d", 0, end, 0, "others"]
      ])
      assert.deepStrictEqual(result, [425n])
    }).pipe(Effect.provide(EventStores.database())))

  it.live("is 0 without progress", () =>
    Effect.gen(function*() {
      assert.deepStrictEqual(yield* lag(10, []), [0n])
    }).pipe(Effect.provide(EventStores.database())))

  it("is the one that is tested, in the manifest and in docs/kubernetes.md", () => {
    const query = parseAllDocuments(read("keda.yaml")).map((document) =>
      document.getIn(["spec", "triggers", 0, "metadata", "query"])
    )
    assert.include(query, Manifests.lagQuery)
    assert.include(guide, `\`\`\`sql\n${Manifests.lagQuery}\n\`\`\``)
  })
})

describe("examples/kubernetes/Dockerfile", () => {
  it("has no problem that dockerfile-utils finds", () => {
    assert.deepStrictEqual(validate(read("Dockerfile")), [])
    assert.isNotEmpty(validate(read("Dockerfile").replace("WORKDIR", "WORKDRI")))
  })

  it("is quoted in docs/kubernetes.md without its comments", () => {
    const text = read("Dockerfile").replaceAll(/^#.*\n/gm, "").trim()
    assert.include(guide, `\`\`\`dockerfile\n${text}\n\`\`\``)
  })

  it("runs the worker without a shell, as a user other than root, from two stages", () => {
    const instructions = Dockerfile.parse(read("Dockerfile"))
    const texts = (name: string) => instructions.filter((one) => one.name === name).map(({ text }) => text)
    assert.lengthOf(texts("FROM"), 2)
    assert.deepStrictEqual(texts("CMD").map((text) => JSON.parse(text)), [["node", "main.ts"]])
    assert.deepStrictEqual(texts("USER"), ["1000"])
    assert.deepStrictEqual(texts("EXPOSE"), worker.ports.map(({ containerPort }) => String(containerPort)))
  })
})
