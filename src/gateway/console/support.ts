import { reason } from '../../base/errors.ts'

/** What a support bundle is made of: each part by its name, asked for in turn. */
export type Parts = Record<string, () => Promise<unknown>>

/** What stands in the place of what a stranger could use. */
const taken = '(taken out)'

/** Keys whose values are not passed on, wherever they are. */
const withheld = new Set(['loginURL'])

/**
 * A support bundle: how the device is and was, for somebody who helps. Settings come without their
 * secrets from the broker; what is left that could be used by who reads it is taken out here: login
 * URLs, and keys as Tailscale writes them. Names and addresses stay, for it could not be read
 * without. A part that cannot be had says why.
 */
export async function supportBundle(parts: Parts): Promise<Record<string, unknown>> {
  const bundle: Record<string, unknown> = { at: new Date().toISOString() }
  for (const [name, part] of Object.entries(parts))
    bundle[name] = cleaned(
      await part().catch((err: unknown) => ({ problem: `it could not be had: ${reason(err)}` })),
    )
  return bundle
}

/** The same without secrets. */
export function cleaned(value: unknown): unknown {
  if (typeof value === 'string')
    return value
      .replaceAll(/\b(?:tskey|hskey)-[\w-]+/g, taken)
      .replaceAll(/(https:\/\/[^\s"]+\/(?:a|register)\/)[\w:-]+/g, `$1${taken}`)
      .replaceAll(/\b((?:priv|node|machine|disco)key:)[0-9a-f]{16,}/g, `$1${taken}`)
  if (Array.isArray(value)) return value.map(cleaned)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(
    Object.entries(value).map(([key, one]) => [key, withheld.has(key) ? taken : cleaned(one)]),
  )
}
