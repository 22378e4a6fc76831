/**
 * The hash that assigns an event to a range.
 */

/**
 * SQL: the hash of an aggregate id, from 0 to 2³² − 1. `hashtext` is stable across versions of PostgreSQL, because hash
 * partitioning relies on it, but depends on the collation. `DatabaseLive` checks known answers at start.
 */
export const hashOf = (aggregateId: string): string =>
  `(pg_catalog.hashtext(${aggregateId} COLLATE "C")::int8 & 4294967295)`
