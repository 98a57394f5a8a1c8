import { exchange } from '../../base/control-client.ts'
import { Resolver } from 'node:dns/promises'
import { restartDevice, seeLogs, seeNodeRedLog } from '../../base/cures.ts'
import { reason } from '../../base/errors.ts'
import type { Check } from '../../broker/checks.ts'
import type { WhoIs } from '@gatehouse/tsnet'
import { policyFor } from '../access/access.ts'
import type { Certificates } from '../certificates/certificates.ts'
import { channelHeader } from '../../config/header-names.ts'
import { assertion } from '../access/channel.ts'
import type { Guard } from '../access/guard.ts'
import type { Node } from '../tailnet/node.ts'
import { controlWords } from '../shared/control-words.ts'
import { probeControl } from '../tailnet/probe.ts'
import type { Problems } from '../shared/problems.ts'
import type { Services } from '../tailnet/services.ts'
import type { Upstream } from '../apps/upstream.ts'
import { day } from '../../base/time.ts'

export type { Check }

/** What {@link examine} looks at. */
export interface Patient {
  node: Node | undefined
  controlURL: string | undefined
  /** PEM text: its authority, where it has one of its own. */
  controlAuthority?: string | undefined
  certificates: Certificates
  upstream: Upstream
  guard: Guard
  problems: Problems
  channelKey: Buffer | undefined
  /** Where Node-RED has its editor. */
  editorRoot: string
  serving: boolean
  services: Services
  /** Names there are to be certificates for. */
  names: string[]
  /** Addresses of a name in DNS. Default: as the system's resolver has them. */
  resolve?: (name: string) => Promise<string[]>
  now?: Date
}

/** Peers asked about their rights, at most: each is a call to the node's thread. */
const maxPeers = 100

/**
 * What the gateway alone can check: as its user, through the firewall that holds for it, with the
 * node it holds. `gatehouse doctor` adds what only root sees (cli/doctor.ts).
 */
export async function examine(patient: Patient): Promise<Check[]> {
  const { node, now = new Date() } = patient
  return [
    await control(patient),
    tailnet(patient),
    ...key(node?.status?.self?.keyExpiry, node?.running === true, now, patient.controlURL),
    path(patient),
    ...services(patient),
    ...certificate(patient, now),
    ...(await ownNames(patient)),
    await upstream(patient),
    await login(patient),
    await access(patient),
  ]
}

async function control({ controlURL, controlAuthority }: Patient): Promise<Check> {
  const error = await probeControl(controlURL, controlAuthority)
  // It answers: that the node has not joined is not the network's fault, and has a check of its
  // own.
  if (error.code === 'GH_TAILNET_SLOW')
    return { name: 'control server', result: 'ok', found: `${controlURL ?? "Tailscale's"} answers` }
  return { name: 'control server', result: 'fail', found: error.message, cure: error.cure }
}

function tailnet({ node, problems }: Patient): Check {
  const problem = problems.get('tailnet') ?? problems.get('https') ?? problems.get('listener')
  if (problem !== undefined)
    return {
      name: 'tailnet',
      result: node?.running === true ? 'warn' : 'fail',
      found: problem.message,
      cure: problem.cure,
    }
  if (node?.running !== true)
    return {
      name: 'tailnet',
      result: 'fail',
      found: `the node is ${node?.status?.backendState ?? 'not started'}`,
      cure: 'Wait a minute; if it stays so, restart the device',
    }
  return { name: 'tailnet', result: 'ok', found: `joined as ${node.name}` }
}

function key(
  expiry: string | undefined,
  running: boolean,
  now: Date,
  controlURL: string | undefined,
): Check[] {
  const cure = controlWords(controlURL).keepKey
  if (expiry === undefined)
    return running ? [{ name: 'node key', result: 'ok', found: 'does not expire' }] : []
  const left = Date.parse(expiry) - now.getTime()
  const when = `${expiry.slice(0, 10)}, ${left < 0 ? 'which is over' : `in ${Math.floor(left / day)} days`}`
  let result: Check['result'] = 'ok'
  if (left < 0) result = 'fail'
  else if (left < 14 * day) result = 'warn'
  return [
    {
      name: 'node key',
      result,
      found: `expires on ${when}`,
      ...(left < 14 * day ? { cure } : {}),
    },
  ]
}

function path({ node }: Patient): Check {
  const peers = (node?.status?.peers ?? []).filter((peer) => peer.online)
  const direct = peers.filter((peer) => peer.curAddr !== '').length
  const relayed = peers.filter((peer) => peer.curAddr === '' && peer.relay !== '').length
  if (peers.length === 0)
    return {
      name: 'path',
      result: 'warn',
      found: 'no other device of the tailnet is online and may reach this one',
      cure: "Log a device of yours into the same tailnet; if one is, look at the tailnet's policy",
    }
  const found = `${peers.length} devices online, ${direct} on a direct path, ${relayed} with a relay to fall back on`
  return { name: 'path', result: 'ok', found }
}

function services({ services }: Patient): Check[] {
  return services.list().map(({ service, name, addresses, problem }): Check =>
    problem !== undefined
      ? { name: 'service', result: 'fail', found: problem.message, cure: problem.cure }
      : {
          name: 'service',
          result: addresses.length === 0 ? 'warn' : 'ok',
          found: `${service} ${addresses.length === 0 ? 'waits for approval' : `is at https://${name}/`}`,
          ...(addresses.length === 0 ? { cure: 'Wait a minute' } : {}),
        },
  )
}

function certificate({ names, certificates, problems, serving }: Patient, now: Date): Check[] {
  const problem = problems.get('certificate')
  if (names.length === 0)
    return [
      { name: 'certificate', result: 'skip', found: 'the node has no name yet to have one for' },
    ]
  return names.map((name): Check => {
    const held = certificates.get(name)
    if (held === undefined || held.notAfter <= now)
      return {
        name: 'certificate',
        result: 'fail',
        found: problem?.message ?? `there is no certificate for ${name}`,
        cure: problem?.cure ?? seeLogs('gatehouse-certs'),
      }
    const days = Math.floor((held.notAfter.getTime() - now.getTime()) / day)
    if (problem !== undefined)
      return { name: 'certificate', result: 'warn', found: problem.message, cure: problem.cure }
    return {
      name: 'certificate',
      result: serving ? 'ok' : 'warn',
      found: `${name}, valid for ${days} more days, by ${held.issuer}${serving ? '' : '; port 443 is not open yet'}`,
      ...(serving ? {} : { cure: 'Wait a minute; if it stays so, restart the device' }),
    }
  })
}

/** Names of one's own lead here by a record that a person has to set. */
async function ownNames({ node, names, resolve = addressesOf }: Patient): Promise<Check[]> {
  // What the tailnet gives, it also tells its members.
  const given = new Set([node?.name, ...(node?.names ?? [])])
  const here = node?.status?.tailscaleIPs ?? []
  return await Promise.all(
    names
      .filter((name) => !given.has(name) && !name.startsWith('*.'))
      .map(async (name): Promise<Check> => {
        const found = await resolve(name).catch(() => [] as string[])
        if (found.some((address) => here.includes(address)))
          return { name: 'name', result: 'ok', found: `${name} leads to this device` }
        const where = found.length === 0 ? 'nowhere' : `to ${found.join(', ')}`
        const address = here.find((one) => !one.includes(':')) ?? "the device's tailnet address"
        return {
          name: 'name',
          result: 'warn',
          found: `${name} leads ${where}, as far as this device can see, not to it`,
          cure: `Set an A record ${name} with ${address} in your DNS, or in Headscale's extra_records`,
        }
      }),
  )
}

async function addressesOf(name: string): Promise<string[]> {
  const resolver = new Resolver({ timeout: 3_000, tries: 2 })
  const answers = await Promise.allSettled([resolver.resolve4(name), resolver.resolve6(name)])
  return answers.flatMap((answer) => (answer.status === 'fulfilled' ? answer.value : []))
}

/** How long Node-RED may take to answer a check. Milliseconds. */
const patience = 10_000

async function upstream({ upstream: { socket }, editorRoot }: Patient): Promise<Check> {
  const start = performance.now()
  try {
    const { status } = await exchange(socket, { path: editorRoot, timeout: patience })
    const ms = Math.round(performance.now() - start)
    if (status !== 200)
      return {
        name: 'Node-RED',
        result: 'fail',
        found: `answers ${status} for its editor`,
        cure: seeNodeRedLog,
      }
    return {
      name: 'Node-RED',
      result: ms > 5_000 ? 'warn' : 'ok',
      found: `answers in ${ms} ms`,
      ...(ms > 5_000 ? { cure: `A flow may be busy. ${seeNodeRedLog}` } : {}),
    }
  } catch (err) {
    return {
      name: 'Node-RED',
      result: 'fail',
      found: `does not answer: ${reason(err)}`,
      cure: seeNodeRedLog,
    }
  }
}

/** Whether Node-RED believes the gateway: the two keys are handed over at two starts. */
async function login({ upstream: { socket }, channelKey, editorRoot }: Patient): Promise<Check> {
  const cure = `${restartDevice}: the key is made at boot and handed to both`
  if (channelKey === undefined)
    return {
      name: 'login',
      result: 'fail',
      found: 'the gateway has no key to tell Node-RED who is logged in',
      cure,
    }
  const doctor: WhoIs = {
    node: { id: '', name: 'gatehouse doctor', hostName: '', addresses: [], tags: ['tag:doctor'] },
    capMap: {},
  }
  try {
    const { status, text } = await exchange(socket, {
      path: `${editorRoot}settings`,
      headers: {
        accept: 'application/json',
        [channelHeader]: assertion(channelKey, doctor, { rights: new Set(['view']), from: 'none' }),
      },
      timeout: patience,
    })
    const user =
      status === 200
        ? (JSON.parse(text) as { user?: { username?: string; permissions?: string } }).user
        : undefined
    if (user?.username === 'gatehouse doctor' && user.permissions === 'read')
      return {
        name: 'login',
        result: 'ok',
        found: 'Node-RED believes the gateway about who is logged in',
      }
    return {
      name: 'login',
      result: 'fail',
      found:
        status === 401 || status === 404
          ? 'Node-RED does not believe the gateway: their keys differ'
          : `Node-RED does not know who is logged in (it answers ${status})`,
      cure,
    }
  } catch (err) {
    return { name: 'login', result: 'skip', found: `Node-RED does not answer: ${reason(err)}` }
  }
}

async function access({ node, guard, controlURL }: Patient): Promise<Check> {
  if (node?.tailnet === undefined || !node.running)
    return { name: 'access', result: 'skip', found: 'the node has not joined yet' }
  const { tailnet } = node
  const self = await guard.self()
  const peers = (node.status?.peers ?? [])
    .filter((peer) => peer.tailscaleIPs.length > 0)
    .slice(0, maxPeers)
  const answers = await Promise.all(
    peers.map(async (peer) => {
      const address = peer.tailscaleIPs[0]!
      return await guard.ask({
        address,
        local: false,
        until: 0,
        whoIs: async () => await tailnet.whoIs(address).catch(() => undefined),
      })
    }),
  )
  const count = (right: 'edit' | 'view' | 'use'): number =>
    answers.filter(({ access }) => access.rights.has(right)).length
  const wrong = answers.find(({ access }) => access.problem !== undefined)?.access.problem
  const found = `of ${peers.length} devices ${count('edit')} may edit, ${count('view')} view, ${count('use')} use`
  if (wrong !== undefined)
    return {
      name: 'access',
      result: 'warn',
      found: `${found}; a grant is not understood: ${wrong}`,
      cure: 'Write it as docs/access.md says',
    }
  if (count('edit') > 0 || peers.length === 0) return { name: 'access', result: 'ok', found }
  const person = answers.find(
    ({ whoIs }) => whoIs?.user !== undefined && whoIs.node.tags.length === 0,
  )?.whoIs
  return {
    name: 'access',
    result: 'warn',
    found: `nobody may edit flows: ${found}`,
    cure:
      `Add to the tailnet's policy (${controlWords(controlURL).policy}):\n` +
      `${policyFor(person, self, ['edit', 'use', 'status'])}`,
  }
}
