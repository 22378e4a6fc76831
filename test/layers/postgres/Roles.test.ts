/**
 * Tests that each file of migrations/roles suffices for a role that has nothing else, and that each privilege in them is
 * needed: without it, an error names the privilege and the file.
 *
 * @module-tag long
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Duration, Effect, Fiber, Layer, Logger, Stream } from "effect"
import { SqlClient, type SqlError } from "effect/sql"
import * as ChildProcess from "node:child_process"
import * as Fs from "node:fs"
import { fileURLToPath } from "node:url"
import { EventStore, Migrations, Orchestrator, PostgresStores, Projection, Projections } from "pupsourcing-orchestrator"
import * as SqlErrors from "../../../src/layers/postgres/connection/SqlErrors.ts"
import * as MigrationRoles from "../../../src/layers/postgres/migrations/Roles.ts"
import * as PostgresTest from "../../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../../src/testing/TimeLimits.ts"
import * as Commands from "../../support/Commands.ts"
import * as Roles from "../../support/Roles.ts"
import { postgres14 } from "../../support/Servers.ts"
import * as Tests from "../../support/Tests.ts"

type Role = Effect.Success<typeof Roles.make>

/** Runs an effect with the client of a role and stores on it. */
const as = ({ client }: Role) => <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.provide(self, PostgresStores.layerWith({}).pipe(Layer.provideMerge(Layer.fresh(client))))

const stream = { boundedContext: "app", aggregateType: "User", aggregateId: "a" }
const event = { ...stream, eventType: "UserCreated", payload: {} }

/** Everything that an append-only process does. */
const append = Effect.gen(function*() {
  const events = yield* EventStore.EventStore
  yield* events.settledPosition
  const { lastVersion, positions } = yield* events.append([event])
  yield* events.append([event], { expectedVersion: lastVersion })
  assert.strictEqual((yield* events.readStream(stream)).length, Number(lastVersion) + 1)
  yield* events.settledBeyond(positions[0]!, Duration.millis(50))
  yield* events.openWriters
})

/** What an import may leave behind: a sequence that has not issued a position. Its last value is read from the sequence. */
const unusedSequence = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) =>
    sql`SELECT setval('events_global_position_seq', (SELECT coalesce(max(global_position), 0) + 1 FROM events), false)`
)

const projectionOf = (name: string) =>
  Projection.make(name, {
    handle: Effect.fnUntraced(function*({ eventId }) {
      yield* (yield* SqlClient.SqlClient)`INSERT INTO read_model (name, id) VALUES (${name}, ${eventId})`
    })
  })

const orchestrator = (name: string, replicaSet = name) =>
  Orchestrator.make({
    replicaSet,
    projections: [projectionOf(name), projectionOf(`${name}-new`)],
    pollInterval: "50 millis"
  })

/** The table that the handlers of `role` write to. */
const readModel = Effect.fnUntraced(function*(...roles: ReadonlyArray<Role>) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`CREATE TABLE read_model (name text, id text, PRIMARY KEY (name, id))`
  for (const { name } of roles) yield* sql`GRANT INSERT ON read_model TO ${sql(name)}`
})

/** Runs a worker beside `self`, which starts when the worker has reached its assignment. */
const beside = Effect.fnUntraced(function*<A, E, R>(name: string, self: Effect.Effect<A, E, R>) {
  const worker = yield* orchestrator(name)
  const reached = yield* Deferred.make<void>()
  yield* worker.activity.pipe(
    Stream.runForEach(({ _tag }) => _tag === "AssignmentReached" ? Deferred.succeed(reached, undefined) : Effect.void),
    Effect.forkChild({ startImmediately: true })
  )
  const running = yield* Effect.forkChild(worker.run)
  yield* Effect.raceFirst(Deferred.await(reached), Fiber.join(running))
  const result = yield* self
  yield* Fiber.interrupt(running)
  return result
})

/** Makes two free ranges, which a worker claims and merges. */
const divided = Effect.fnUntraced(function*(name: string) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`INSERT INTO orchestrator_checkpoints (projection_name, range_start, range_end, replica_set, filter)
    SELECT ${name}, half, half + 2147483648, ${name}, '[null,null,null]' FROM unnest('{0,2147483648}'::int8[]) AS half`
})

/** Runs a worker until it has merged its ranges and handled all events. */
const workUntilMerged = Effect.fnUntraced(function*(name: string, admin: SqlClient.SqlClient) {
  const worker = yield* orchestrator(name)
  const isDone = Effect.map(
    admin<{ readonly done: boolean }>`SELECT count(*) = 1 AND min(position) = (SELECT max(global_position) FROM events)
      AS done FROM orchestrator_checkpoints WHERE projection_name = ${name}`,
    ([row]) => row?.done === true
  )
  yield* Effect.raceFirst(worker.run, TimeLimits.waitUntil("the ranges are merged", isDone, (done) => done))
})

/** Parks an event, whose retry fails and then succeeds, and one that is dropped. `admin` plays the operator. */
const workOnParked = Effect.fnUntraced(function*(name: string, admin: SqlClient.SqlClient) {
  let isBroken = true
  const projection = Projection.make(name, {
    onFailure: "park",
    handle: () => Effect.suspend(() => isBroken ? Effect.fail("broken") : Effect.void)
  })
  const worker = yield* Orchestrator.make({ replicaSet: name, projections: [projection], pollInterval: "50 millis" })
  const parked = (what: string, condition: string) =>
    TimeLimits.waitUntil(
      what,
      admin.unsafe<{ readonly is: boolean }>(
        `SELECT coalesce(bool_and(${condition}), false) AS is FROM orchestrator_parked_events WHERE projection_name = '${name}'`
      ),
      ([row]) => row?.is === true
    )
  const request = (request: string) =>
    admin`UPDATE orchestrator_parked_events SET request = ${request} WHERE projection_name = ${name}`
  const steps = Effect.gen(function*() {
    yield* parked("the events are parked", "attempts <= 1")
    yield* request("retry")
    yield* parked("the retry has failed", "request IS NULL")
    isBroken = false
    yield* admin`UPDATE orchestrator_parked_events AS p SET request = CASE position % 2 WHEN 0 THEN 'drop' ELSE 'retry' END
      WHERE projection_name = ${name}`
    yield* TimeLimits.waitUntil(
      "no event is parked",
      admin`SELECT FROM orchestrator_parked_events WHERE projection_name = ${name}`,
      (rows) => rows.length === 0
    )
  })
  yield* Effect.raceFirst(worker.run, steps)
})

/** What an operator does with a projection that has nothing parked and is not halted. */
const request = Effect.fnUntraced(function*(projection: string) {
  const projections = yield* Projections.Projections
  yield* projections.retryParked(projection, "all")
  yield* Effect.catchTag(projections.skipHalted(projection, "none"), "EventNotHalted", () => Effect.void)
})

const readStatus = Effect.flatMap(Projections.Projections, ({ status }) => status)

/** The first error that names a missing privilege: the one with which `self` fails, or one that a worker logs and retries. */
const denial = <A, E extends { readonly message: string }, R>(self: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const logged = yield* Deferred.make<string>()
    const logger = Logger.make(({ message }) => {
      const text = String(message)
      if (text.includes("lacks")) Deferred.doneUnsafe(logged, Effect.succeed(text))
    })
    return yield* Effect.raceFirst(
      Effect.map(Effect.flip(self), ({ message }) => message),
      Deferred.await(logged)
    ).pipe(Effect.provide(Logger.layer([logger])), TimeLimits.within("60 seconds"))
  })

/** Revokes the privileges of a file one at a time, and returns those whose absence `exercise` does not report. */
const unreported = Effect.fnUntraced(function*<E extends { readonly message: string }, R>(
  file: Roles.File,
  role: Role,
  exercise: (place: number) => Effect.Effect<unknown, E, R>
) {
  const sql = yield* SqlClient.SqlClient
  const found: Array<string> = []
  for (const [place, { grant, on, privilege, revoke }] of Roles.privileges(file, role.name).entries()) {
    yield* sql.unsafe(revoke)
    // Without a denial, the text cannot match, and the privilege is reported as superfluous.
    const text = yield* Effect.catchCause(denial(exercise(place)), () => Effect.succeed("nothing"))
    const object = on.startsWith("SCHEMA") ? "schema public" : `public.${on.replace("SEQUENCE ", "")}`
    if (
      !new RegExp(`lacks .*\\b${privilege} on (table |sequence )?${object}[,.]`).test(text) ||
      !text.includes(`migrations/roles/${file}.sql`)
    ) found.push(`${privilege} on ${on}: ${text}`)
    yield* sql.unsafe(grant)
  }
  return found.join("\n")
})

const test = Tests.live(
  Layer.effectDiscard(Migrations.up).pipe(Layer.provideMerge(PostgresTest.layer)),
  Effect.all({ sql: SqlClient.SqlClient, url: Tests.url })
)

describe("the files in migrations/roles", () => {
  it("equal what the source renders (scripts/generate.ts writes them)", () => {
    assert.deepStrictEqual(
      MigrationRoles.files.map(({ content }) => content),
      (["admin", "appender", "status", "worker"] as const).map((file) => Fs.readFileSync(Roles.path(file), "utf8"))
    )
  })

  // A user's own machine may lack psql; the project's CI installs it.
  const options = { skip: ChildProcess.spawnSync("psql", ["--version"]).status !== 0 }
  test("run in psql with the role as a variable", options, function*({ sql, url }) {
    const role = yield* Roles.makeBare
    for (const file of ["admin", "appender", "status", "worker"] as const) {
      const args = ["-v", "ON_ERROR_STOP=1", "-v", `role=${role.name}`, "-f", fileURLToPath(Roles.path(file)), url]
      const { status, stderr } = ChildProcess.spawnSync("psql", args, { encoding: "utf8" })
      assert.deepStrictEqual([status, stderr], [0, ""])
    }
    assert.deepStrictEqual(
      yield* sql`SELECT has_schema_privilege(${role.name}::text, 'public', 'CREATE') AS admin,
        has_table_privilege(${role.name}::text, 'aggregate_heads', 'UPDATE') AS appender,
        has_table_privilege(${role.name}::text, 'orchestrator_checkpoints', 'DELETE') AS worker`,
      [{ admin: true, appender: true, worker: true }]
    )
  })
})

describe.each([
  ["the current PostgreSQL", Effect.undefined as Effect.Effect<string | undefined>],
  ["PostgreSQL 14", postgres14()]
])("on %s", (_, server) => {
  const database = (
    layer: (
      serverUrl: string | undefined
    ) => Layer.Layer<PostgresTest.TestDatabase | PgClient.PgClient | SqlClient.SqlClient, unknown>
  ) => Tests.live(Layer.unwrap(Effect.map(server, layer)), Effect.all({ sql: SqlClient.SqlClient, url: Tests.url }))
  const empty = database((serverUrl) => PostgresTest.layerWith({ serverUrl }))
  const test = database((serverUrl) =>
    Layer.effectDiscard(Migrations.up).pipe(Layer.provideMerge(PostgresTest.layerWith({ serverUrl })))
  )

  test("appender.sql suffices to append and to read streams, and for nothing else", function*({ sql }) {
    const role = yield* Roles.makeBare
    yield* Roles.grant("appender", role.name)
    yield* as(role)(append)
    yield* unusedSequence
    yield* as(role)(append)
    assert.include(yield* denial(as(role)(Effect.flatMap(orchestrator("other"), ({ run }) => run))), "worker.sql")
    assert.include(yield* denial(as(role)(readStatus)), "status.sql")
    for (const statement of ["UPDATE events SET payload = ''", "DELETE FROM events", "CREATE TABLE mine (id int)"]) {
      const error = yield* Effect.flip(as(role)(Effect.flatMap(SqlClient.SqlClient, (sql) => sql.unsafe(statement))))
      assert.strictEqual(SqlErrors.codeOf(error as SqlError.SqlError), "42501")
    }
    assert.strictEqual((yield* sql`SELECT FROM events`).length, 4)
  })

  test("worker.sql suffices to register, hand over, catch up and leave, and not to append", function*({ sql }) {
    const role = yield* Roles.makeBare
    yield* Roles.grant("worker", role.name)
    yield* readModel(role)
    yield* Effect.gen(function*() {
      const events = yield* EventStore.EventStore
      yield* events.append([event, event])
    }).pipe(Effect.provide(PostgresStores.layerWith({})))
    yield* divided("users")
    yield* as(role)(workUntilMerged("users", sql))
    const handOver = Effect.gen(function*() {
      yield* beside("users", beside("users", Effect.void))
      yield* (yield* orchestrator("users")).catchUp
    })
    yield* as(role)(handOver)
    yield* as(role)(request("users"))
    yield* as(role)(workOnParked("parking", sql))
    assert.deepStrictEqual(
      yield* sql`SELECT count(*)::int AS handled, (SELECT count(*)::int FROM orchestrator_workers WHERE state <> 'stopped')
        AS registered FROM read_model`,
      [{ handled: 4, registered: 0 }]
    )
    assert.include(yield* denial(as(role)(append)), "appender.sql")
  })

  test("status.sql suffices for the status and the command, and for nothing else", function*({ sql, url }) {
    const role = yield* Roles.makeBare
    yield* Roles.grant("status", role.name)
    yield* divided("users")
    const writing = PostgresTest.withConnection(
      url,
      Effect.gen(function*() {
        const writer = yield* SqlClient.SqlClient
        yield* Effect.andThen(
          writer`SELECT nextval('events_global_position_seq')`,
          Effect.andThen(Deferred.succeed(isOpen, undefined), Deferred.await(hasRead))
        ).pipe(writer.withTransaction)
      })
    )
    const [isOpen, hasRead] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
    const writer = yield* Effect.forkChild(writing)
    yield* Deferred.await(isOpen)
    const limited = yield* as(role)(readStatus)
    assert.deepStrictEqual(
      limited.replicaSets[0]?.projections[0]?.ranges.map(({ position }) => position),
      [0n, 0n]
    )
    assert.deepStrictEqual((limited.openWriters ?? []).map((writer) => Object.keys(writer)), [["pid", "application"]])
    const parked = yield* as(role)(Effect.flatMap(Projections.Projections, ({ parked }) => parked("users")))
    assert.deepStrictEqual(parked, [])
    const list = yield* Commands.run(["parked", "list", "users", "--error", "Timeout"], role.url.href)
    assert.deepStrictEqual([list.code, list.err], [0, ""])
    assert.include(yield* denial(as(role)(request("users"))), "worker.sql")
    const run = yield* Commands.run(["status"], role.url.href)
    assert.deepStrictEqual([run.code, run.err], [2, ""])
    assert.match(run.out, /Readers wait for a transaction of test-database \(pid \d+\)$/m)

    yield* sql`GRANT pg_read_all_stats TO ${sql(role.name)}`
    const [open] = (yield* as(role)(readStatus)).openWriters ?? []
    assert.instanceOf(open?.since, Date)
    yield* Deferred.succeed(hasRead, undefined)
    yield* Fiber.join(writer)
    assert.include(yield* denial(as(role)(append)), "appender.sql")
    assert.include(yield* denial(as(role)(Effect.flatMap(orchestrator("users"), ({ run }) => run))), "worker.sql")
  })

  empty("admin.sql suffices for the migrations, and for everything that the other roles do", function*({ sql }) {
    const role = yield* Roles.makeBare
    yield* Roles.grant("admin", role.name)
    const command = Effect.fnUntraced(function*(...args: ReadonlyArray<string>) {
      const { code, err } = yield* Commands.run(["migrate", ...args], role.url.href)
      assert.deepStrictEqual([code, err], [0, ""])
    })
    yield* command("up")
    yield* command("status")
    yield* as(role)(Effect.gen(function*() {
      yield* readModel()
      yield* append
      yield* beside("users", Effect.void)
      assert.strictEqual((yield* readStatus).replicaSets.length, 1)
    }))
    yield* command("down")
    yield* sql`SET ROLE ${sql(role.name)}`.pipe(Effect.andThen(sql`TRUNCATE events`), Effect.andThen(sql`RESET ROLE`))
    yield* command("down", "--event-store")
  })
})

describe("without one of the privileges in", () => {
  test("appender.sql, an append fails with its name", function*() {
    const role = yield* Roles.makeBare
    yield* Roles.grant("appender", role.name)
    yield* as(role)(append)
    const found = yield* unreported("appender", role, () => Effect.andThen(unusedSequence, as(role)(append)))
    assert.strictEqual(found, "")
  })

  test("status.sql, the status fails with its name", function*() {
    const role = yield* Roles.makeBare
    yield* Roles.grant("status", role.name)
    assert.strictEqual(yield* unreported("status", role, () => as(role)(readStatus)), "")
  })

  test("worker.sql, the worker fails or warns with its name", function*({ sql }) {
    const role = yield* Roles.makeBare
    yield* Roles.grant("worker", role.name)
    yield* readModel(role)
    yield* Effect.provide(append, PostgresStores.layerWith({}))
    const found = yield* unreported(
      "worker",
      role,
      (place) =>
        Effect.andThen(
          divided(`p${place}`),
          as(role)(Effect.gen(function*() {
            yield* workUntilMerged(`p${place}`, sql)
            yield* workOnParked(`parking${place}`, sql)
            yield* request(`p${place}`)
          }))
        )
    )
    assert.strictEqual(found, "SELECT on SEQUENCE events_global_position_seq: nothing")
    // What that privilege is for: a sequence that was set back is detected.
    yield* sql`SELECT setval('events_global_position_seq', 1)`
    const detected = yield* Effect.flip(as(role)(Effect.flatMap(orchestrator("reset"), ({ run }) => run)))
    assert.include(detected.message, "its sequence has only issued positions up to 1")
  })
})
