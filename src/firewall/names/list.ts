import { createHash } from 'node:crypto'
import { isPrivateName } from '../../config/egress.ts'
import type { Egress } from '../../config/egress.ts'
import { peerTargets } from '../../config/peers.ts'

/** An entry of the list that is a name, for the resolver: names.json in the firewall's directory. */
export interface NamedEntry {
  /** As the person wrote it. */
  text: string
  /** `broker.example.org`, `*.example.org`, or `*` for every name (`internet:443`). */
  pattern: string
  /** First part of the names of its sets of addresses; none where the rule needs none. */
  set?: string
  /** Whether an answer may be an address of a local network. */
  local: boolean
  /** The answer, of a device of the tailnet: the address that stands for it. Nobody is asked. */
  standIn?: string
}

/** For names of sets and marks of connections: the same for the same entry, whatever else is listed. */
export function hash(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 8)
}

/** The set that an entry's answers go into; the kernel's is this with `-4` or `-6`. */
export function setName(text: string): string {
  return `name-${hash(text)}`
}

/**
 * The mark on connections that an entry has allowed, so that they outlive the answer and end with
 * the entry. Bit 30 is set, and the bits below 29 are the entry's.
 */
export function mark(text: string): string {
  return `0x${((Number.parseInt(hash(text), 16) % 2 ** 29) + 2 ** 30).toString(16)}`
}

/** What the resolver has to know of a list. */
export function namedEntries(list: readonly Egress[]): NamedEntry[] {
  const peers = peerTargets(list).map(({ text, name, address }): NamedEntry => ({
    text,
    pattern: name,
    local: false,
    standIn: address,
  }))
  const named = list.flatMap(({ text, host }): NamedEntry[] => {
    if ('name' in host)
      // What a person names, they mean, wherever it is. What a preset names is in the internet.
      return [{ text, pattern: host.name, set: setName(text), local: !text.includes(': ') }]
    if ('wildcard' in host)
      return [
        {
          text,
          pattern: `*.${host.wildcard}`,
          set: setName(text),
          local: isPrivateName(host.wildcard),
        },
      ]
    return 'zone' in host && host.zone === 'internet' ? [{ text, pattern: '*', local: false }] : []
  })
  return [...named, ...peers]
}

/** The entries that a name is on. */
export function matching(entries: readonly NamedEntry[], name: string): NamedEntry[] {
  // Names of the tailnet are for its own devices alone, not for a wildcard: no question leaves.
  if (/(?:^|\.)ts\.net$/.test(name))
    return entries.filter(({ pattern, standIn }) => {
      if (standIn === undefined) return false
      const [first, middle, ...rest] = pattern.split('.')
      if (middle !== '*') return name === pattern
      const parts = name.split('.')
      return parts.length === 4 && parts[0] === first && parts.slice(2).join() === rest.join()
    })
  // Labels that no host has could carry bytes past whoever reads the list.
  if (
    name.length > 253 ||
    !name.split('.').every((label) => /^[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?$/.test(label)) ||
    /(?:^|\.)(?:local|localhost|onion)$/.test(name)
  )
    return []
  return entries.filter(({ pattern }) => {
    if (pattern === '*') return name.includes('.')
    if (pattern.startsWith('*.')) return name.endsWith(pattern.slice(1)) && name[0] !== '.'
    return name === pattern
  })
}
