import type { GatewayStatus } from './status.ts'

/** The status for a person. `now` is for the ages in it. */
export function table(status: GatewayStatus, now: Date = new Date()): string {
  const lines: string[] = []
  const row = (name: string, value: string): void => {
    lines.push(`${name.padEnd(13)} ${value}`)
  }
  if (status.problems.length > 0) {
    for (const problem of status.problems)
      lines.push(
        `! ${problem.part}: ${problem.message}.`,
        `  → ${problem.cure}. (${problem.code}, since ${ago(problem.since, now)})`,
      )
    lines.push('')
  }
  row('Editor', status.urls?.editor ?? 'no address yet')
  if (status.urls !== undefined) {
    row('Flows', status.urls.flows)
    row('This page', `${status.urls.gateway}status`)
  }
  row(
    'Tailnet',
    [status.tailnet.state, status.tailnet.name, ...status.tailnet.tags]
      .filter((text) => text !== undefined)
      .join('  '),
  )
  row('Addresses', status.tailnet.addresses.join('  ') || 'none yet')
  if (status.tailnet.dataPath === 'kernel') row('Data path', "the kernel's TCP")
  if (status.tailnet.loginURL !== undefined) row('Log in', status.tailnet.loginURL)
  if (status.tailnet.keyExpiry !== undefined)
    row('Key expires', until(status.tailnet.keyExpiry, now))
  for (const text of status.tailnet.health) row('Tailscale', text)
  for (const name of status.certificate.names) {
    row(
      'Certificate',
      name.notAfter === undefined
        ? `${name.name}  none yet`
        : `${name.name}  expires ${until(name.notAfter, now)}  by ` +
            `${name.issuer}${name.renewAt === undefined ? '' : `  renewed ${until(name.renewAt, now)}`}`,
    )
    if (name.problem !== undefined) row('', name.problem)
  }
  if (status.certificate.names.length === 0) row('Certificate', 'no name yet')
  for (const { name, type, value, there } of status.certificate.records)
    row(
      there ? 'DNS record' : '! DNS record',
      `${there ? '' : 'to be set: '}${name}  ${type}  ${type === 'TXT' ? JSON.stringify(value) : value}`,
    )
  if (status.certificate.authority !== undefined) {
    row('Authority', `of this device alone, SHA-256 ${status.certificate.authority.fingerprint}`)
    row(
      '',
      `valid until ${status.certificate.authority.notAfter.slice(0, 10)}; its root is at port 80, /ca.crt`,
    )
  }
  if (status.certificate.lastRun !== undefined) {
    const { result, checkedAt, next, code, problem, severity } = status.certificate.lastRun
    row(
      '',
      `last look ${ago(checkedAt, now)}: ` +
        `${result}${code === undefined ? '' : ` (${code}, ${severity})`}${next === undefined ? '' : `, next attempt ${until(next, now)}`}`,
    )
    if (problem !== undefined) row('', problem)
  }
  for (const { at, code, message } of status.certificate.notes)
    row('', `${ago(at, now)}: ${message.replace(/\.$/, '')} (${code})`)
  row('Node-RED', `${status.upstream.state}  since ${ago(status.upstream.since, now)}`)
  for (const { service, name, addresses, problem } of status.services)
    row(
      'Service',
      `${service}  ${problem === undefined ? `${name === undefined ? 'not advertised yet' : `https://${name}/`}${addresses.length === 0 ? '  waits for approval' : ''}` : problem.message}`,
    )
  row(
    'Access',
    status.tailnet.name === undefined
      ? 'nobody yet'
      : `${status.access.owner === undefined ? 'nobody by default: the device is tagged' : `${status.access.owner} (owner) may do everything`}; ` +
          `others what ${status.access.capability} grants`,
  )
  for (const [right, who] of Object.entries(status.access.settings))
    if (who.length > 0) row('', `${right} by gatehouse.toml: ${who.join(', ')}`)
  if (status.access.localNetwork !== undefined)
    row(
      '',
      'WARNING: anybody on the local network may ' +
        `${status.access.localNetwork.join(' and ')}, without login: [local_network] listen`,
    )
  row(
    'Configuration',
    status.problems.some((problem) => problem.part === 'configuration') ? 'see above' : 'well',
  )
  for (const text of status.configuration.notes ?? []) row('', text)
  const width = Math.max(0, ...status.tailnet.peers.map((peer) => peer.name.length))
  for (const [i, peer] of status.tailnet.peers.entries()) {
    row(
      i === 0 ? 'Peers' : '',
      `${peer.name.padEnd(width)}  ${peer.online ? 'online ' : 'offline'}  ` +
        `${peer.path}${peer.via === undefined ? '' : ` ${peer.path === 'relay' ? 'through' : 'to'} ${peer.via}`}`,
    )
  }
  row('Gateway', `${status.version}  up since ${ago(status.startedAt, now)}`)
  return `${lines.join('\n')}\n`
}

function ago(time: string, now: Date): string {
  return `${span(now.getTime() - Date.parse(time))} ago`
}

function until(time: string, now: Date): string {
  const ms = Date.parse(time) - now.getTime()
  return `${time.slice(0, 16).replace('T', ' ')} UTC (${ms < 0 ? `${span(-ms)} ago` : `in ${span(ms)}`})`
}

function span(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000))
  if (seconds < 120) return `${seconds} s`
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h`
  return `${Math.round(seconds / 86_400)} days`
}
