import { readFile, rm } from 'node:fs/promises'
import { uptime } from 'node:os'
import { join } from 'node:path'
import { stamp, writeFileAtomic } from '../base/files.ts'
import { GatehouseError } from '../base/errors.ts'
import { loadConfig } from '../config/load.ts'
import { alertHostsFile } from '../base/paths.ts'
import type { Paths } from '../base/paths.ts'
import { forbidden, forbiddenNetworks } from '../config/addresses.ts'
import { BlockList, isIP } from 'node:net'
import { parseEgress } from '../config/egress.ts'
import type { Egress } from '../config/egress.ts'
import { alertTargets } from './alert-targets.ts'
import { discoveries, discovery, discoveryScript } from './discovery.ts'
import { extensionScript, extensionsOf } from './extensions.ts'
import { ingresses, ingressScript } from './ingress.ts'
import { extensionsFile, readExtensions } from '../config/extensions.ts'
import { certsTargets } from './certs-targets.ts'
import { mostPeers, peerName, peerTargets } from '../config/peers.ts'
import type { PeerTarget } from '../config/peers.ts'
import { gatewayTargets, unreachable } from './gateway-targets.ts'
import { kernelPath, tailnetNetworks } from '../config/data-path.ts'
import { ports } from '../config/ports.ts'
import { localPorts } from './local-ports.ts'
import { expandPreset } from '../config/presets.ts'
import { dnsLookup, resolveNames } from './resolve.ts'
import type { Known, Lookup } from './resolve.ts'
import { mark, namedEntries, setName } from './names/list.ts'
import { namesFile, resolverAddress } from './names/serve.ts'
import { learnFile, readLearning } from './names/stand-ins.ts'
import { interfaces, privateNetworks } from './networks.ts'
import type { Interfaces } from './networks.ts'
import { nft } from './nft.ts'

/**
 * What is in force: state.json in the firewall's directory, kept for the next run and for
 * `gatehouse firewall`.
 */
export interface Applied {
  /** When, ISO 8601. */
  at: string
  /** Whether ports 80 and 443 of the local network lead to the gateway. */
  localNetwork?: boolean
  /** Whether ports of the tailnet lead to the gateway's own ([tailnet] data_path). */
  kernelPath?: boolean
  /** Whether Node-RED is led to other devices of the tailnet. */
  peers?: boolean
  /** Names of the sets that answers to Node-RED go into. */
  sets?: string[]
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
  /** The name or wildcard of an entry that is allowed what its answers say, while they are valid. */
  pattern?: string
}

/** The targets of a list that was validated before, presets replaced by what they stand for. */
export function targets(allow: readonly string[], registry?: string): Egress[] {
  return allow.flatMap((text) => {
    const entry = parseEgress(text)
    if ('wrong' in entry)
      throw new GatehouseError('GH_FIREWALL_LIST', entry.wrong.message, entry.wrong.cure)
    // Not by an address of its own: extensionScript.
    if ('extension' in entry) return []
    return 'preset' in entry ? expandPreset(entry.preset, { registry }) : [entry.egress]
  })
}

/** The users whose targets gatehouse.toml decides, each with a chain of its own. */
export type Caller = 'node-red' | 'gatehouse' | 'gatehouse-certs' | 'gatehouse-alerts'

/**
 * The nftables script that puts a list of addresses in force. nft carries a script out as one
 * transaction: the old list holds until the new one does, and if anything in it is refused, the old
 * one stays.
 */
export function script(
  caller: Caller,
  entries: ReadonlyArray<{ egress: Egress; addresses: readonly string[] }>,
): string {
  const chain = `inet gatehouse ${caller}-allow`
  const lines = entries.flatMap(({ egress, addresses }) =>
    (['ip', 'ip6'] as const).flatMap((family) => {
      const of = addresses.filter((address) => address.includes(':') === (family === 'ip6'))
      return of.length === 0
        ? []
        : [
            `add rule ${chain} ${family} daddr { ${of.join(', ')} } ` +
              ending(caller, egress, family === 'ip' ? 4 : 6),
          ]
    }),
  )
  return [`flush chain ${chain}`, ...lines, ''].join('\n')
}

/**
 * Ports, verdict and comment of a rule. How large pings may be and how many is written in the ruleset
 * itself (chain node-red-ping).
 */
function ending(
  caller: Caller,
  { ports, protocol, text }: Egress,
  family: 4 | 6,
  before = '',
): string {
  const [first, last] = ports
  const what =
    protocol === 'icmp'
      ? `${echoRequest(family)} ${before}goto node-red-ping`
      : `${protocol} dport ${first === last ? first : `${first}-${last}`} ${before}accept`
  return `${what} comment "${`${caller}: ${text}`.slice(0, 120)}"`
}

/** Matches a ping of that family, and nothing else of ICMP. */
function echoRequest(family: 4 | 6): string {
  return `${family === 4 ? 'icmp' : 'icmpv6'} type echo-request`
}

/**
 * The same for Node-RED, whose list has names, wildcards and zones beside addresses. A name is a
 * pair of sets that its answers go into, each address for as long as it is valid
 * ({@link file://./names/resolver.ts}); a connection that was allowed by one carries the entry's
 * mark, and goes on until it ends or the entry is gone. Sets stay over a change, so that nothing
 * has to be asked anew.
 *
 * @param before names of the sets that the list before had
 * @param learning whether names on no list may be asked for, to be written down
 */
export function nodeRedScript(
  list: readonly Egress[],
  { networks }: Pick<Interfaces, 'networks'>,
  before: readonly string[] = [],
  learning = false,
): string {
  const chain = 'inet gatehouse node-red-allow'
  const sets = [
    ...new Set(list.filter(({ host }) => isNamed(host)).map(({ text }) => setName(text))),
  ]
  const both = (set: string, end: (family: 4 | 6) => string): string[] =>
    ([4, 6] as const).map((family) => `inet gatehouse ${set}-${family}${end(family)}`)
  const declared = (set: string): string[] =>
    both(set, (family) => ` { type ipv${family}_addr; flags timeout; size 4096; }`)
  const rule = (family: 4 | 6, to: string, egress: Egress, then = ''): string =>
    `add rule ${chain} ${family === 4 ? 'ip' : 'ip6'} daddr ${to} ` +
    ending('node-red', egress, family, then)
  const lines = list.flatMap((egress): string[] => {
    const { host, text } = egress
    // On this machine: see peersScript.
    if ('peer' in host) return []
    if ('address' in host) return [rule(host.family, `{ ${host.address} }`, egress)]
    if (isNamed(host))
      return [
        ...(egress.protocol === 'icmp'
          ? ([4, 6] as const).map((family) => `${echoRequest(family)} goto node-red-ping`)
          : [`meta l4proto ${egress.protocol} accept`]
        ).map((rest) => `add rule ${chain} ct state established ct mark ${mark(text)} ${rest}`),
        ...([4, 6] as const).map((family) =>
          rule(family, `@${setName(text)}-${family}`, egress, `ct mark set ${mark(text)} `),
        ),
      ]
    const of = (family: 4 | 6): string[] =>
      networks.filter((own) => own.family === family).map(({ network }) => network)
    return ([4, 6] as const).flatMap((family) => {
      const own = of(family)
      if ('zone' in host && host.zone === 'lan')
        return own.length === 0 ? [] : [rule(family, `{ ${own.join(', ')} }`, egress)]
      const not = [...forbiddenNetworks(family), ...privateNetworks[family], ...own]
      return [rule(family, `!= { ${merged(not).join(', ')} }`, egress)]
    })
  })
  // The one chain that names them is emptied first; a set has to be there to be removed.
  const gone = before.filter((set) => !sets.includes(set))
  return [
    ...sets.flatMap(declared).map((set) => `add set ${set}`),
    `flush chain ${chain}`,
    ...gone.flatMap(declared).map((set) => `add set ${set}`),
    ...gone.flatMap((set) => both(set, () => '')).map((set) => `delete set ${set}`),
    // Whom Node-RED asks: where there is no name on the list, there is nothing to ask.
    'flush chain inet gatehouse node-red-names',
    ...(namedEntries(list).length === 0 && !learning
      ? []
      : [
          `add rule inet gatehouse node-red-names ip daddr ${resolverAddress} udp dport 53 ` +
            'accept comment "node-red: its resolver, for the names on its list"',
        ]),
    ...lines,
    '',
  ].join('\n')
}

function isNamed(host: Egress['host']): boolean {
  return 'name' in host || 'wildcard' in host
}

/** Networks without those that lie in another of them: nft refuses ranges that overlap. */
function merged(networks: readonly string[]): string[] {
  const unique = [...new Set(networks)]
  return unique.filter(
    (inner) => !unique.some((outer) => outer !== inner && contains(outer, inner)),
  )
}

function contains(outer: string, inner: string): boolean {
  const [base, prefix] = outer.split('/') as [string, string]
  const [address, length] = inner.split('/') as [string, string]
  const family = isIP(base) === 4 ? 'ipv4' : 'ipv6'
  if (Number(prefix) > Number(length) || isIP(base) !== isIP(address)) return false
  const list = new BlockList()
  list.addSubnet(base, Number(prefix), family)
  return list.check(address, family)
}

/**
 * The lines that lead Node-RED to other devices of the tailnet: the addresses that stand for them
 * lead to the gateway, which dials. Whoever else sends there is stopped behind it. To be run behind those of Node-RED's own list. The chain that
 * translates exists only where there is one.
 *
 * @param before whether it is there
 */
export function peersScript(peers: readonly PeerTarget[], before: boolean): string {
  const chain = 'inet gatehouse node-red-peers'
  if (peers.length === 0 && !before) return ''
  return [
    `add chain ${chain} { type nat hook output priority -100; policy accept; }`,
    `flush chain ${chain}`,
    ...(peers.length === 0 ? [`delete chain ${chain}`] : []),
    ...peers.flatMap(({ text, address, port, local }) => [
      `add rule ${chain} ip daddr ${address} tcp dport ${port} dnat ip to ${address}:${local}`,
      `add rule inet gatehouse node-red-names ip daddr ${address} tcp dport ${local} accept ` +
        `comment "${`node-red: ${text}, by the gateway`.slice(0, 120)}"`,
    ]),
    '',
  ].join('\n')
}

const tailnetRedirect = 'inet gatehouse redirect-tailnet'

/**
 * The lines that lead the node's ports to the gateway's where the kernel's TCP serves the tailnet,
 * or no longer: from peers, by that interface. What of it is let in is written in the ruleset
 * itself (chain in-tailnet).
 *
 * @param before whether they are in force
 */
export function kernelRedirection(on: boolean, before: boolean): string {
  if (!on && !before) return ''
  const { interface: name, addresses, ports: own } = kernelPath
  const lines = [
    `add chain ${tailnetRedirect} { type nat hook prerouting priority dstnat; policy accept; }`,
    `flush chain ${tailnetRedirect}`,
  ]
  if (!on) lines.push(`delete chain ${tailnetRedirect}`)
  else
    for (const family of [4, 6] as const)
      for (const [from, to] of Object.entries(own)) {
        const [ip, network] = [family === 4 ? 'ip' : 'ip6', tailnetNetworks[family]]
        const target = family === 4 ? addresses[4] : `[${addresses[6]}]`
        lines.push(
          `add rule ${tailnetRedirect} iifname "${name}" ${ip} saddr ${network} ${ip} daddr ` +
            `${network} tcp dport ${from} dnat ${ip} to ${target}:${to} comment "tailnet: TCP ` +
            `${from} by IPv${family}, from peers ([tailnet] data_path)"`,
        )
      }
  return `${lines.join('\n')}\n`
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
        `add rule ${redirect} fib daddr type local tcp dport ${from} redirect to :${to} ` +
          `comment "local network: TCP ${from}, from everybody there ([local_network] listen)"`,
      )
  return `${lines.join('\n')}\n`
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
    node_red: { allow, registry, listen: listenOn },
    local_network: { listen },
    tailnet: { dataPath },
  } = config
  const kernel = dataPath === 'kernel'
  const egress = targets(allow, registry)
  const peers = peerTargets(egress)
  const [ingress, found] = [ingresses(listenOn), discoveries(allow)]
  const [gateway, certs] = [gatewayTargets(config), certsTargets(config)]
  const alerts = await alertTargets(paths)
  const extensions = await readExtensions(paths)
  const before = await readApplied(paths.firewall)
  const now = Math.round(uptime() * 1000)
  const own = interfaces()
  const learning = Date.now() < (await readLearning(join(paths.firewall, learnFile)))
  const named = (list: Egress[]): string[] =>
    list.flatMap(({ host }) => ('name' in host ? [host.name] : []))
  const names = await resolveNames(
    [...named(gateway), ...named(certs), ...named(alerts)],
    before?.names ?? {},
    lookup,
    now,
    own.addresses,
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
      if (!('name' in host)) throw new Error(`${text} is for Node-RED's list alone`)
      const { addresses, refused, problem } = names[host.name]!
      return {
        egress: entry,
        text,
        addresses: Object.keys(addresses),
        refused,
        ...(problem === undefined ? {} : { problem }),
      }
    }
  const [forGateway, forCerts, forAlerts] = [
    gateway.map(resolved(unreachable)),
    certs.map(resolved(unreachable)),
    alerts.map(resolved(forbidden)),
  ]
  await nft(
    nodeRedScript(egress, own, before?.sets, learning) +
      peersScript(peers, before?.peers === true) +
      ingressScript(ingress, own) +
      discoveryScript(found, own) +
      extensionScript(extensions, extensionsOf(allow), own) +
      script('gatehouse', forGateway) +
      script('gatehouse-certs', forCerts) +
      script('gatehouse-alerts', forAlerts) +
      redirection(listen, before?.localNetwork === true) +
      kernelRedirection(kernel, before?.kernelPath === true),
  )
  const patterns = namedEntries(egress)
  await replaceText(join(paths.firewall, namesFile), `${JSON.stringify(patterns)}\n`)
  const networks = own.networks.map(({ network }) => network)
  const groups = found.map((preset): Entry => ({
    text: preset,
    addresses: [discovery[preset].group],
    refused: {},
  }))
  const beside = extensionsOf(allow).map((name): Entry => {
    const there = extensions.some((one) => one.name === name)
    return {
      text: `extension:${name}`,
      addresses: there ? ['127.0.0.1'] : [],
      refused: {},
      ...(there ? {} : { problem: 'this extension is not attached' }),
    }
  })
  const ofList = egress.map(({ text, host, ports }): Entry => {
    const pattern = patterns.find((named) => named.text === text)?.pattern
    const lan = 'zone' in host && host.zone === 'lan' ? networks : []
    return {
      text,
      addresses: 'address' in host ? [host.address] : lan,
      refused: {},
      ...('zone' in host && host.zone === 'lan' && lan.length === 0
        ? { problem: 'this device is in no network' }
        : {}),
      ...('peer' in host &&
      !peers.some(({ name, port }) => name === peerName(host.peer) && port === ports[0])
        ? { problem: `more than ${mostPeers} entries for devices of the tailnet` }
        : {}),
      ...(pattern === undefined ? {} : { pattern }),
    }
  })
  const kept = (entries: Array<Entry & { egress: Egress }>): Entry[] =>
    entries.map(({ egress: _egress, ...rest }) => rest)
  const applied: Applied = {
    at: new Date().toISOString(),
    entries: [...ofList, ...beside, ...groups],
    sets: patterns.flatMap(({ set }) => set ?? []),
    ...(gateway.length === 0 ? {} : { gateway: kept(forGateway) }),
    ...(certs.length === 0 ? {} : { certs: kept(forCerts) }),
    ...(alerts.length === 0 ? {} : { alerts: kept(forAlerts) }),
    names,
    ...(listen ? { localNetwork: true } : {}),
    ...(kernel ? { kernelPath: true } : {}),
    ...(peers.length > 0 ? { peers: true } : {}),
  }
  // Without any there is nothing to look after: gatehouse-firewall.service then is not started
  // again.
  if (
    egress.length +
      ingress.length +
      found.length +
      beside.length +
      extensions.length +
      gateway.length +
      certs.length +
      alerts.length ===
      0 &&
    !listen &&
    !kernel
  )
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

/** Writes a file where what is in it is another: a reader looks at its time. */
async function replaceText(path: string, text: string): Promise<void> {
  if ((await readFile(path, 'utf8').catch(() => '')) === text) return
  await writeFileAtomic(path, text, 0o644)
}

/**
 * `gatehouse firewall apply`. Exit code 1 when a name could never be resolved yet: systemd tries
 * again.
 */
export async function runApply(paths: Paths): Promise<number> {
  const watched = [
    join(paths.config, 'gatehouse.toml'),
    alertHostsFile(paths),
    extensionsFile(paths),
  ]
  let applied: Applied
  let before: string
  do {
    before = await stamp(watched)
    applied = await apply(paths)
  } while ((await stamp(watched)) !== before)
  const all = [applied.entries, applied.gateway, applied.certs, applied.alerts].flatMap(
    (list) => list ?? [],
  )
  for (const { text, addresses, refused, problem } of all) {
    for (const [address, why] of Object.entries(refused))
      process.stderr.write(
        `gatehouse firewall: ${text} leads to ${address}, ${why}: not allowed. If that is ` +
          'not your doing, its DNS is not to be trusted. (GH_FIREWALL_REBINDING)\n',
      )
    if (problem !== undefined)
      process.stderr.write(
        `gatehouse firewall: ${text}: ` +
          `${problem}${addresses.length === 0 ? '' : '; what was known of it stays allowed'}. ` +
          '(GH_FIREWALL_NAME)\n',
      )
  }
  const count = applied.entries.filter(
    ({ addresses, pattern }) => addresses.length > 0 || pattern !== undefined,
  ).length
  process.stdout.write(
    `Node-RED may call ${applied.entries.length === 0 ? 'nobody' : `${count} of the ${applied.entries.length} on its list`}${applied.gateway === undefined ? '' : `; the gateway may connect to ${applied.gateway.filter(({ addresses }) => addresses.length > 0).length} of ${applied.gateway.length} targets of control server, apps and forwards`}\n`,
  )
  // When an extension is attached, it is run again anyway.
  return all.some(
    ({ text, addresses, problem }) =>
      problem !== undefined && addresses.length === 0 && !text.startsWith('extension:'),
  )
    ? 1
    : 0
}
