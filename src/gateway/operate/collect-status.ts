import { GatehouseError } from '../../base/errors.ts'
import { originOf, ports } from '../../config/ports.ts'
import type { Config } from '../../config/config.ts'
import { capability } from '../access/access.ts'
import type { Right } from '../access/access.ts'
import type { Guard } from '../access/guard.ts'
import type { Upstream } from '../apps/upstream.ts'
import type { Certificates } from '../certificates/certificates.ts'
import type { CertificateWatch } from '../certificates/watch.ts'
import type { Problems } from '../shared/problems.ts'
import type { Node } from '../tailnet/node.ts'
import type { Services } from '../tailnet/services.ts'
import type { NodeStatus } from '@gatehouse/tsnet'
import type { GatewayStatus } from './status.ts'

/** What {@link collectStatus} goes by. */
export interface StatusSources {
  version: string
  startedAt: Date
  /** What provisioning complains about; undefined when it does not. */
  configurationProblem: string | undefined
  /** What provisioning says beside that. */
  configurationNotes: readonly string[]
  problems: Problems
  node: Node | undefined
  /** The one name of the device; undefined until it is known. */
  name: string | undefined
  /** Whether port 443 is open. */
  serving: boolean
  /** Whether it is open by the kernel's data path. */
  kernel: boolean
  mode: Config['certificates']['mode']
  certificates: Certificates
  watch: CertificateWatch
  upstream: Upstream
  guard: Guard
  services: Services
  /** What everybody on the local network may do; undefined while it is not listened there. */
  localRights: readonly Right[] | undefined
}

/** Everything `gatehouse status` tells, from its parts; nothing is looked at anew here. */
export async function collectStatus(sources: StatusSources): Promise<GatewayStatus> {
  const { name, node, configurationProblem, guard, localRights } = sources
  const problems = sources.problems.list()
  // What the problem says is said.
  const notes = sources.configurationNotes.filter(
    (note) => !(configurationProblem ?? '').includes(note),
  )
  return {
    version: sources.version,
    ok: problems.length === 0 && node?.running === true && sources.serving,
    startedAt: sources.startedAt.toISOString(),
    ...(name === undefined
      ? {}
      : {
          url: `${originOf(name, ports.editor)}/`,
          urls: {
            editor: `${originOf(name, ports.editor)}/`,
            flows: `${originOf(name, ports.flows)}/`,
            gateway: `${originOf(name, ports.own)}/`,
          },
        }),
    tailnet: tailnetStatus(node, sources.kernel),
    certificate: certificateStatus(sources),
    upstream: {
      socket: sources.upstream.socket,
      state: sources.upstream.state,
      since: sources.upstream.since.toISOString(),
    },
    access: {
      ...(await ownerOf(guard)),
      settings: guard.settings,
      capability,
      ...(localRights === undefined ? {} : { localNetwork: [...localRights] }),
    },
    services: sources.services.list(),
    configuration: {
      ...(configurationProblem === undefined ? {} : { problem: configurationProblem }),
      ...(notes.length === 0 ? {} : { notes }),
    },
    problems,
  }
}

/** Sets the problem that provisioning complains about, or clears it. */
export function judgeConfiguration(problems: Problems, found: string | undefined): void {
  if (found !== undefined)
    problems.set(
      'configuration',
      new GatehouseError('GH_CONFIGURATION', found.replace(/\.$/, ''), 'Then restart the device'),
    )
  else if (problems.get('configuration')?.code === 'GH_CONFIGURATION')
    problems.clear('configuration', 'the configuration is valid again')
}

function tailnetStatus(node: Node | undefined, kernel: boolean): GatewayStatus['tailnet'] {
  const status = node?.status
  return {
    state: status?.backendState ?? 'NoState',
    ...(node?.name === undefined ? {} : { name: node.name }),
    addresses: status?.tailscaleIPs ?? [],
    dataPath: kernel ? 'kernel' : 'userspace',
    ...(node?.loginURL === undefined ? {} : { loginURL: node.loginURL }),
    tags: status?.self?.tags ?? [],
    ...(status?.self?.keyExpiry === undefined ? {} : { keyExpiry: status.self.keyExpiry }),
    health: status?.health ?? [],
    peers: (status?.peers ?? []).map((peer) => ({
      name: peer.dnsName.replace(/\.$/, '') || peer.hostName,
      online: peer.online,
      ...pathTo(peer),
    })),
  }
}

function certificateStatus({
  mode,
  certificates,
  watch: { record, names },
}: StatusSources): GatewayStatus['certificate'] {
  return {
    mode,
    ...(record?.authority === undefined || mode !== 'self' ? {} : { authority: record.authority }),
    records: record?.records ?? [],
    names: names.map((name) => {
      const certificate = certificates.get(name)
      const problem = certificates.refused(name)
      const renewAt = record?.certificates?.find((one) => one.name === name)?.renewAt
      return {
        name,
        ...(certificate === undefined
          ? {}
          : { notAfter: certificate.notAfter.toISOString(), issuer: certificate.issuer }),
        ...(renewAt === undefined ? {} : { renewAt }),
        ...(problem === undefined ? {} : { problem }),
      }
    }),
    ...(record === undefined
      ? {}
      : {
          lastRun: {
            checkedAt: record.checkedAt,
            result: record.result,
            problem: record.problem,
            code: record.code,
            severity: record.severity,
            daysLeft: record.daysLeft,
            next: record.next,
          },
        }),
    notes: record?.notes ?? [],
  }
}

async function ownerOf(guard: Guard): Promise<{ owner?: string }> {
  const self = await guard.self()
  return self?.user === undefined || self.node.tags.length > 0 ? {} : { owner: self.user.loginName }
}

/** The way packets take to a peer. */
export function pathTo(
  peer: NodeStatus,
): { path: 'direct' | 'relay'; via: string } | { path: 'idle' } {
  if (peer.curAddr !== '') return { path: 'direct', via: peer.curAddr }
  return peer.relay !== '' ? { path: 'relay', via: peer.relay } : { path: 'idle' }
}
