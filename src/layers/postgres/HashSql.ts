/**
 * The key of an event, and the hash that assigns the key to a range.
 */
import type { PartitionKey } from "../../schema/PartitionKey.ts"
import { literal } from "./migrations/Sql.ts"

/**
 * SQL: the text of the key of a row of the events table. `alias` is the name by which the statement calls the table,
 * which it may omit if the names of the columns are not ambiguous. `PartitionKey.of` returns the same text.
 */
export const keyOf = (partitionBy: PartitionKey, alias?: string): string => {
  const column = (name: string) => alias === undefined ? name : `${alias}.${name}`
  const aggregateId = column("aggregate_id")
  switch (partitionBy) {
    case "aggregateId":
      return aggregateId
    case "boundedContext":
      return column("bounded_context")
    case "correlationId":
      return `coalesce(${column("correlation_id")}, ${aggregateId})`
    default:
      return `coalesce(${column("metadata")} ->> ${literal(partitionBy.metadata)}::text, ${aggregateId})`
  }
}

/**
 * SQL: the text of the key of a row, if the partition key itself is read by the statement. `partitionBy` and `member`
 * are SQL for its name and for the member of the metadata; both are NULL for the default.
 */
export const recordedKeyOf = (
  { member, partitionBy }: { readonly partitionBy: string; readonly member: string },
  alias: string
): string =>
  `coalesce(CASE
    WHEN ${partitionBy} IS NULL THEN NULL
    WHEN ${partitionBy} = 'correlationId' THEN ${alias}.correlation_id
    WHEN ${partitionBy} = 'boundedContext' THEN ${alias}.bounded_context
    ELSE ${alias}.metadata ->> ${member}
  END, ${alias}.aggregate_id)`

/**
 * SQL: the hash of a text, from 0 to 2³² − 1. `hashtext` is stable across versions of PostgreSQL, because hash
 * partitioning relies on it, but depends on the collation. `DatabaseLive` checks known answers at start.
 */
export const hashOf = (text: string): string => `(pg_catalog.hashtext(${text} COLLATE "C")::int8 & 4294967295)`
