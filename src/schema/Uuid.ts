/** UUIDs as text: validation, and generation from a time and random numbers. */

const pattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i

/** Whether the text is a UUID of any version, in its hyphenated form. */
export const isUuid = (text: string): boolean => pattern.test(text)

/**
 * Returns a UUID of version 7 (RFC 9562). It begins with the time, so that ids generated one after another are close
 * together in an index. `millis` is the time since 1970; `random` contains three numbers of at least 0 and below 1.
 */
export const v7 = (millis: number, random: readonly [number, number, number]): string => {
  const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, "0")
  const time = hex(Math.max(0, Math.min(millis, 2 ** 48 - 1)), 12)
  const version = hex(0x7000 + Math.floor(random[0] * 0x1000), 4)
  const variant = hex(0x8000 + Math.floor(random[1] * 0x4000), 4)
  const node = hex(Math.floor(random[2] * 2 ** 48), 12)
  return `${time.slice(0, 8)}-${time.slice(8)}-${version}-${variant}-${node}`
}
