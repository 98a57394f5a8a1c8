import { readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { writeFileAtomic } from '../base/files.ts'
import type { Paths } from '../base/paths.ts'
import { apply } from './apply.ts'
import { matching } from './names/list.ts'
import type { NamedEntry } from './names/list.ts'
import { namesFile, readTold } from './names/serve.ts'
import { askedFile, learnFile } from './names/stand-ins.ts'
import type { Asked } from './names/stand-ins.ts'
import type { Told } from './names/resolver.ts'
import { nft } from './nft.ts'

/** In the firewall's directory: what Node-RED wanted and may not, for the console. */
export const refusedFile = 'refused.json'

/** What Node-RED wanted and may not. */
export interface Refused {
  /** The name that a flow asked for, where it is known. */
  name?: string
  /** Where it leads; absent where the name alone is known. */
  address?: string
  /**
   * Absent of a ping, which has none, and where the name was refused, so that the flow tried no
   * port: learning finds it.
   */
  port?: number
  /** Absent where the name was refused. `icmp` is a ping. */
  protocol?: 'tcp' | 'udp' | 'icmp'
  /** Packets, or questions for a name. */
  times: number
  /** ISO 8601. */
  last: string
}

/** refused.json. */
export interface RefusedRecord {
  /** When it was collected, ISO 8601. */
  at: string
  /** Until when the device learns, ISO 8601; absent when it does not. */
  learning?: string
  /** The latest first. */
  refused: Refused[]
}

/** A set of `nft -j list sets` (libnftables-json(5)), as far as it is read here. */
interface NftSet {
  set?: {
    name: string
    timeout?: number
    elem?: Array<{
      elem: {
        /** The latter in sets of pings. */
        val: { concat: [address: string, protocol: string | number, port: number] } | string
        timeout?: number
        expires?: number
        counter?: { packets: number }
      }
    }>
  }
}

/** nft has the names from /etc/protocols, which the image is without: there it gives IANA's numbers. */
const protocols: Record<string | number, 'tcp' | 'udp' | undefined> = {
  ...{ tcp: 'tcp', udp: 'udp' },
  ...{ 6: 'tcp', 17: 'udp' },
}

/**
 * What the firewall has dropped of Node-RED's, by the kernel's sets `refused-4` and `refused-6`, and
 * `refused-ping-4` and `refused-ping-6`, with the names that lead there.
 *
 * @param objects of `nft -j list sets table inet gatehouse`
 * @param now milliseconds since the epoch
 */
export function refusals(
  objects: readonly NftSet[],
  asked: Record<string, Asked>,
  told: Record<string, Told>,
  entries: readonly NamedEntry[],
  now: number,
): Refused[] {
  const names = new Map<string, string>()
  for (const [name, { addresses }] of Object.entries(told))
    for (const address of addresses) names.set(address, name)
  for (const [name, { address }] of Object.entries(asked))
    if (address !== undefined) names.set(address, name)
  const dropped = objects.flatMap(({ set }): Refused[] => {
    if (set === undefined || !/^refused-(?:ping-)?[46]$/.test(set.name)) return []
    return (set.elem ?? []).flatMap(({ elem }): Refused[] => {
      const { val } = elem
      const [address, named, port] = typeof val === 'string' ? [val, 'ping'] : val.concat
      const protocol = typeof val === 'string' ? 'icmp' : protocols[named]
      if (protocol === undefined) return []
      const timeout = elem.timeout ?? set.timeout ?? 0
      const name = names.get(address)
      const standIn = address.startsWith('240.')
      // A stand-in of a resolver that is gone says nothing to anybody.
      if (standIn && name === undefined) return []
      return [
        {
          ...(name === undefined ? {} : { name }),
          ...(standIn ? {} : { address }),
          ...(port === undefined ? {} : { port }),
          protocol,
          times: elem.counter?.packets ?? 1,
          last: new Date(now - (timeout - (elem.expires ?? timeout)) * 1000).toISOString(),
        },
      ]
    })
  })
  const tried = new Set(dropped.map(({ name }) => name))
  const byName = Object.entries(asked).flatMap(([name, { times, last }]): Refused[] =>
    tried.has(name) ? [] : [{ name, times, last }],
  )
  return [...dropped, ...byName]
    .filter(({ name, address }) => address !== undefined || matching(entries, name!).length === 0)
    .toSorted((a, b) => (a.last < b.last ? 1 : -1))
}

/** What was written down last; nothing where there is no such file, or it cannot be read. */
export async function readRefused(
  directory: string,
): Promise<Partial<RefusedRecord> & { refused: Refused[] }> {
  try {
    return JSON.parse(await readFile(join(directory, refusedFile), 'utf8')) as RefusedRecord
  } catch {
    return { refused: [] }
  }
}

/** Collects it and writes it down. */
export async function collectRefused(paths: Pick<Paths, 'firewall'>): Promise<RefusedRecord> {
  const read = async <T>(file: string, otherwise: T): Promise<T> => {
    try {
      return JSON.parse(await readFile(join(paths.firewall, file), 'utf8')) as T
    } catch {
      return otherwise
    }
  }
  // Names first: a flow asks for one before it tries the port, and a name that is newer than what
  // was dropped would be shown without one.
  const asked = await read<Record<string, Asked>>(askedFile, {})
  const { nftables } = JSON.parse(
    await nft('', ['-j', 'list', 'sets', 'table', 'inet', 'gatehouse']),
  ) as { nftables: NftSet[] }
  const { until } = await read(learnFile, { until: 0 })
  const now = Date.now()
  const record: RefusedRecord = {
    at: new Date(now).toISOString(),
    ...(until > now ? { learning: new Date(until).toISOString() } : {}),
    refused: refusals(
      nftables,
      asked,
      await readTold(paths.firewall),
      await read<NamedEntry[]>(namesFile, []),
      now,
    ),
  }
  await writeFileAtomic(
    join(paths.firewall, refusedFile),
    `${JSON.stringify(record, undefined, 2)}\n`,
    0o644,
  )
  return record
}

/**
 * `gatehouse firewall learn` (gatehouse-learn.service): for ten minutes, or until it is told to end,
 * what Node-RED wants and may not is written down every other second. The firewall stays as it is.
 *
 * @param minutes how long
 * @param signal ends it earlier
 */
export async function learn(
  paths: Pick<Paths, 'config' | 'firewall' | 'problem'>,
  minutes: number,
  signal: AbortSignal,
): Promise<number> {
  const until = Date.now() + minutes * 60_000
  const file = join(paths.firewall, learnFile)
  await writeFileAtomic(file, `${JSON.stringify({ until })}\n`, 0o644)
  try {
    // With it names that are on no list may be asked for.
    await apply(paths)
    while (Date.now() < until && !signal.aborted) {
      await collectRefused(paths)
      await sleep(2_000, undefined, { signal }).catch(() => {})
    }
  } finally {
    await rm(file, { force: true })
    await apply(paths)
    await collectRefused(paths)
  }
  return 0
}

/** The same until systemd wants it to end. */
export async function runLearn(paths: Paths): Promise<number> {
  const stop = new AbortController()
  for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => stop.abort())
  return await learn(paths, 10, stop.signal)
}

/** `gatehouse firewall refused`: what is written down, collected now, as JSON. */
export async function runRefused(paths: Paths): Promise<number> {
  process.stdout.write(`${JSON.stringify(await collectRefused(paths), undefined, 2)}\n`)
  return 0
}
