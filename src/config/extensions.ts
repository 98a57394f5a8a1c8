import { readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { Paths } from '../base/paths.ts'
import { parseIngress } from './ingress.ts'
import type { Ingress } from './ingress.ts'

/**
 * Users that extensions run as, one each (overlays/usr/lib/sysusers.d/gatehouse.conf). Fixed: the
 * firewall names them, and what an extension has stored is owned by number.
 */
export const extensionUsers = [
  { name: 'gatehouse-extension-a', id: 621 },
  { name: 'gatehouse-extension-b', id: 622 },
  { name: 'gatehouse-extension-c', id: 623 },
  { name: 'gatehouse-extension-d', id: 624 },
] as const

/** What an extension may be called: it becomes part of file and unit names. */
export const extensionName = /^[a-z][a-z0-9-]{0,30}$/

/** A port that an extension listens on: `1883/tcp`. */
export interface ExtensionPort {
  port: number
  protocol: 'tcp' | 'udp'
}

/**
 * Reads `port/tcp` or `port/udp`.
 *
 * @returns undefined for what is not one, or is a port that no extension may have: those below 1024
 *   and the gateway's
 */
export function parseExtensionPort(text: string): ExtensionPort | undefined {
  // What the local network may be given is what may be listened on.
  const entry = parseIngress(`${text} from lan`)
  if ('wrong' in entry || entry.ingress.ports[0] !== entry.ingress.ports[1]) return undefined
  return { port: entry.ingress.ports[0], protocol: entry.ingress.protocol }
}

/** An extension that is attached, as the firewall and people are told of it. */
export interface AttachedExtension {
  name: string
  /** What it is, for people. */
  title: string
  version: string
  /** The user it runs as: of {@link extensionUsers}. */
  user: string
  /** Where it listens: `1883/tcp`. */
  ports: string[]
  /** Entries of its `listen` in gatehouse.toml. */
  listen: string[]
}

/**
 * Where gatehouse-provision says which are attached; absent when there is none. In /run, like what
 * else it says.
 */
export function extensionsFile({ problem }: Pick<Paths, 'problem'>): string {
  return join(dirname(problem), 'extensions.json')
}

/** The extensions that are attached now; none where there is no such file. */
export async function readExtensions(paths: Pick<Paths, 'problem'>): Promise<AttachedExtension[]> {
  try {
    return JSON.parse(await readFile(extensionsFile(paths), 'utf8')) as AttachedExtension[]
  } catch {
    return []
  }
}

/** The entries of an extension's `listen`, which were validated before. */
export function extensionIngresses({ listen }: Pick<AttachedExtension, 'listen'>): Ingress[] {
  return listen.flatMap((text) => {
    const entry = parseIngress(text)
    return 'wrong' in entry ? [] : [entry.ingress]
  })
}
