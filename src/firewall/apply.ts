import { spawn } from 'node:child_process'
import { open, readFile, rm } from 'node:fs/promises'
import { networkInterfaces, uptime } from 'node:os'
import { join } from 'node:path'
import { writeFileAtomic } from '../base/files.ts'
import { restartDevice } from '../base/cures.ts'
import { GatehouseError, oneLine } from '../base/errors.ts'
import { loadConfig } from '../config/load.ts'
import type { Paths } from '../base/paths.ts'
import { forbidden } from '../config/addresses.ts'
import { parseEgress } from '../config/egress.ts'
import type { Egress } from '../config/egress.ts'
import { alertTargets } from './alert-targets.ts'
import { certsTargets } from './certs-targets.ts'
import { gatewayTargets, unreachable } from './gateway-targets.ts'
import { ports } from '../config/ports.ts'
import { localPorts } from './local-ports.ts'
import { expandPreset } from '../config/presets.ts'
import { dnsLookup, resolveNames } from './resolve.ts'
import type { Known, Lookup } from './resolve.ts'

/**
 * What is in force: state.json in the firewall's directory, kept for the next run and for
 * `gatehouse firewall`.
 */
export interface Applied {
  /** When, ISO 8601. */
  at: string
  /** Whether ports 80 and 443 of the local network lead to the gateway. */
  localNetwork?: boolean
  /** Node-RED's list. */
  entries: Entry[]
  /** Where the gateway may connect to for [[app]] and [[forward]]. */
  gateway?: Entry[]
  /** Where the certificates' agent may connect to, beside the ACME authority on 443. */
  certs?: Entry[]
  /** Where alerts are sent, and nobody else may connect. */
  alerts?: Entry[]
  names: Record<string, Known>
}

/** One target, and the addresses it stands for. */
export interface Entry {
  text: string
  addresses: string[]
  refused: Record<string, string>
  problem?: string
}

/** The targets of a list that was validated before, presets replaced by what they stand for. */
export function targets(allow: readonly string[], registry?: string): Egress[] {
  return allow.flatMap((text) => {
    const entry = parseEgress(text)
    if ('wrong' in entry)
      throw new GatehouseError('GH_FIREWALL_LIST', entry.wrong.message, entry.wrong.cure)
    return 'preset' in entry ? expandPreset(entry.preset, { registry }) : [entry.egress]
  })
}

/** The users whose targets gatehouse.toml decides, each with a chain of its own. */
export type Caller = 'node-red' | 'gatehouse' | 'gatehouse-certs' | 'gatehouse-alerts'

/**
 * The nftables script that puts a list in force. nft carries a script out as one transaction: the
 * old list holds until the new one does, and if anything in it is refused, the old one stays.
 */
export function script(
  caller: Caller,
  entries: ReadonlyArray<{ egress: Egress; addresses: readonly string[] }>,
): string {
  const chain = `inet gatehouse ${caller}-allow`
  const lines = entries.flatMap(({ egress, addresses }) =>
    (['ip', 'ip6'] as const).flatMap((family) => {
      const of = addresses.filter((address) => address.includes(':') === (family === 'ip6'))
      const [first, last] = egress.ports
      return of.length === 0
        ? []
        : [
            `add rule ${chain} ${family} daddr { ${of.join(', ')} } ${egress.protocol} dport ${first === last ? first : `${first}-${last}`} accept comment "${`${caller}: ${egress.text}`.slice(0, 120)}"`,
          ]
    }),
  )
  return [`flush chain ${chain}`, ...lines, ''].join('\n')
}

const redirect = 'inet gatehouse redirect-local-network'

/**
 * The lines that lead ports 80, 443 and 8443 of the local network to the gateway, or no longer. The
 * chain exists only while it is wanted: without one the kernel translates no addresses at all.
 *
 * @param before whether they are in force
 */
export function redirection(listen: boolean, before: boolean): string {
  if (!listen && !before) return ''
  // Added first in any case: nft cannot be told to delete what may not be there.
  const lines = [
    `add chain ${redirect} { type nat hook prerouting priority dstnat; policy accept; }`,
    `flush chain ${redirect}`,
  ]
  if (!listen) lines.push(`delete chain ${redirect}`)
  else
    for (const [from, to] of [
      [80, localPorts.http],
      [ports.editor, localPorts.https],
      [ports.flows, localPorts.flows],
    ] as const)
      lines.push(
        `add rule ${redirect} fib daddr type local tcp dport ${from} redirect to :${to} comment "local network: TCP ${from}, from everybody there ([local_network] listen)"`,
      )
  return `${lines.join('\n')}\n`
}

/**
 * /etc/hosts as Node-RED sees it: the names on its list and nothing else. It has no resolver,
 * through which data could get out.
 */
export function hosts(names: Record<string, Known>, withIPv6: boolean): string {
  const lines = Object.entries(names).flatMap(([name, { addresses }]) => {
    // Of the last answer alone, not those in grace: new connections go where the name points now.
    const latest = Math.max(...Object.values(addresses))
    return Object.entries(addresses)
      .filter(([address, seen]) => seen === latest && (withIPv6 || !address.includes(':')))
      .map(([address]) => `${address} ${name}`)
  })
  return ['127.0.0.1 localhost', '::1 localhost', ...lines, ''].join('\n')
}

/**
 * Reads what gatehouse.toml allows, resolves the names in it, and puts it in force, all at once.
 * Returns what is in force now.
 */
export async function apply(
  paths: Pick<Paths, 'config' | 'firewall' | 'problem'>,
  lookup: Lookup = dnsLookup(),
): Promise<Applied> {
  const config = await loadConfig(paths.config)
  const {
    node_red: { allow, registry },
    local_network: { listen },
  } = config
  const egress = targets(allow, registry)
  const [gateway, certs] = [gatewayTargets(config), certsTargets(config)]
  const alerts = await alertTargets(paths)
  const before = await readApplied(paths.firewall)
  const now = Math.round(uptime() * 1000)
  const interfaces = Object.values(networkInterfaces()).flatMap((list) => list ?? [])
  const own = interfaces.map(({ address }) => address)
  const named = (list: Egress[]): string[] =>
    list.flatMap(({ host }) => ('name' in host ? [host.name] : []))
  const names = await resolveNames(
    [...named(egress), ...named(gateway), ...named(certs), ...named(alerts)],
    before?.names ?? {},
    lookup,
    now,
    own,
  )

  // Addresses that are written out: what Node-RED may not have is refused when the list is read.
  const resolved =
    (refusal: (address: string) => string | undefined) =>
    (entry: Egress): Entry & { egress: Egress } => {
      const { text, host } = entry
      if ('address' in host) {
        const why = refusal(host.address)
        return {
          egress: entry,
          text,
          ...(why === undefined
            ? { addresses: [host.address], refused: {} }
            : { addresses: [], refused: { [host.address]: why } }),
        }
      }
      const { addresses, refused, problem } = names[host.name]!
      return {
        egress: entry,
        text,
        addresses: Object.keys(addresses),
        refused,
        ...(problem === undefined ? {} : { problem }),
      }
    }
  const [forNodeRed, forGateway, forCerts, forAlerts] = [
    egress.map(resolved(() => undefined)),
    gateway.map(resolved(unreachable)),
    certs.map(resolved(unreachable)),
    alerts.map(resolved(forbidden)),
  ]
  await nft(
    script('node-red', forNodeRed) +
      script('gatehouse', forGateway) +
      script('gatehouse-certs', forCerts) +
      script('gatehouse-alerts', forAlerts) +
      redirection(listen, before?.localNetwork === true),
  )
  const withIPv6 = interfaces.some(
    ({ family, address, internal }) =>
      family === 'IPv6' && !internal && !address.startsWith('fe80:'),
  )
  await rewrite(
    join(paths.firewall, 'hosts'),
    hosts(Object.fromEntries(named(egress).map((name) => [name, names[name]!])), withIPv6),
  )
  const kept = (entries: Array<Entry & { egress: Egress }>): Entry[] =>
    entries.map(({ egress: _egress, ...rest }) => rest)
  const applied: Applied = {
    at: new Date().toISOString(),
    entries: kept(forNodeRed),
    ...(gateway.length === 0 ? {} : { gateway: kept(forGateway) }),
    ...(certs.length === 0 ? {} : { certs: kept(forCerts) }),
    ...(alerts.length === 0 ? {} : { alerts: kept(forAlerts) }),
    names,
    ...(listen ? { localNetwork: true } : {}),
  }
  // Without any there is nothing to look after: gatehouse-firewall.service then is not started
  // again.
  if (egress.length + gateway.length + certs.length + alerts.length === 0 && !listen)
    await rm(join(paths.firewall, 'state.json'), { force: true })
  else
    await writeFileAtomic(
      join(paths.firewall, 'state.json'),
      `${JSON.stringify(applied, undefined, 2)}\n`,
      0o644,
    )
  return applied
}

/**
 * What the last run left; undefined when there was none, or what is there cannot be read: then it
 * is made anew.
 */
export async function readApplied(directory: string): Promise<Applied | undefined> {
  try {
    return JSON.parse(await readFile(join(directory, 'state.json'), 'utf8')) as Applied
  } catch {
    return undefined
  }
}

/**
 * Writes over a file in place: Node-RED has this very file mounted as its /etc/hosts, and a new one
 * of the same name would not be seen there. One write of a padded text, then the padding is cut
 * off: no reader sees half a line.
 */
async function rewrite(path: string, text: string): Promise<void> {
  const file = await open(path, 'r+')
  try {
    const { size } = await file.stat()
    const data = Buffer.from(text.padEnd(size, '\n'))
    await file.write(data, 0, data.length, 0)
    await file.truncate(Buffer.byteLength(text))
  } finally {
    await file.close()
  }
}

/** Runs nft with a script on its standard input. */
async function nft(input: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const child = spawn('nft', ['-f', '-'], { stdio: ['pipe', 'ignore', 'pipe'] })
    let said = ''
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      said += text
    })
    child.on('error', reject)
    child.on('close', (code) => {
      if (code === 0) resolve()
      else
        reject(
          new GatehouseError(
            'GH_FIREWALL_LOAD',
            `nft refused the lists of gatehouse.toml, those before them stay in force: ${oneLine(said).slice(0, 400)}`,
            `${restartDevice}; if it stays so, take the entry that the message names out of gatehouse.toml`,
          ),
        )
    })
    child.stdin.on('error', () => {}) // nft ended early: its exit code says so
    child.stdin.end(input)
  })
}

/**
 * `gatehouse firewall apply`. Exit code 1 when a name could never be resolved yet: systemd tries
 * again.
 */
export async function runApply(paths: Paths): Promise<number> {
  const applied = await apply(paths)
  const all = [applied.entries, applied.gateway, applied.certs, applied.alerts].flatMap(
    (list) => list ?? [],
  )
  for (const { text, addresses, refused, problem } of all) {
    for (const [address, why] of Object.entries(refused))
      process.stderr.write(
        `gatehouse firewall: ${text} leads to ${address}, ${why}: not allowed. If that is not your doing, its DNS is not to be trusted. (GH_FIREWALL_REBINDING)\n`,
      )
    if (problem !== undefined)
      process.stderr.write(
        `gatehouse firewall: ${text}: ${problem}${addresses.length === 0 ? '' : '; what was known of it stays allowed'}. (GH_FIREWALL_NAME)\n`,
      )
  }
  const count = applied.entries.filter(({ addresses }) => addresses.length > 0).length
  process.stdout.write(
    `Node-RED may call ${applied.entries.length === 0 ? 'nobody' : `${count} of the ${applied.entries.length} on its list`}${applied.gateway === undefined ? '' : `; the gateway may connect to ${applied.gateway.filter(({ addresses }) => addresses.length > 0).length} of ${applied.gateway.length} targets of control server, apps and forwards`}\n`,
  )
  return all.some(({ addresses, problem }) => problem !== undefined && addresses.length === 0)
    ? 1
    : 0
}
