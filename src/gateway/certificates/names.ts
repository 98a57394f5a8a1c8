import type { Config } from '../../config/config.ts'

/** Where the names of this device come from. */
export interface NameSources {
  settings: Pick<Config['certificates'], 'mode' | 'name'>
  /** What the tailnet gives; all of it missing until the node has joined. */
  node:
    | {
        name: string | undefined
        /** Names the control server lets the node have certificates for. */
        names: string[]
      }
    | undefined
  /** Whether there is a certificate that covers a name. */
  covered: (name: string) => boolean
}

/** Whether a name of [certificates] covers a host: the same, or a wildcard for its first label. */
export function covers(name: string, host: string): boolean {
  if (name === host) return true
  const dot = host.indexOf('.')
  return name.startsWith('*.') && dot > 0 && host.slice(dot + 1) === name.slice(2)
}

/** Names there are to be certificates for; those of the tailnet only once the node has joined. */
export function certificateNames({ settings: { mode, name }, node }: NameSources): string[] {
  if (mode === 'tailscale') return node?.names ?? []
  if (mode !== 'self') return name
  // All of them at once: the authority is made for these, and anew for more.
  return node?.name === undefined ? [] : [...new Set([...name, node.name])]
}

/**
 * The one name the device is shown under: what every other is sent to (308), what links and
 * `gatehouse status` say. In gatehouse.toml it is the first; of several, the first there is a
 * certificate for, so that nobody is sent to a name without one. Undefined until it is known.
 */
export function canonicalName(sources: NameSources): string | undefined {
  const { settings, node, covered } = sources
  if (settings.mode === 'tailscale') return node?.name
  const exact = certificateNames(sources).filter((name) => !name.startsWith('*.'))
  return exact.find(covered) ?? exact[0]
}

/**
 * Name of a Tailscale Service that this device hosts, as its app is to be reached by: of those in
 * gatehouse.toml the one that begins as the Service is called, or what a wildcard makes of it; else
 * the tailnet's.
 *
 * @param label of `svc:label`
 * @param tailnet its full name in the tailnet; undefined until the node has joined
 */
export function serviceName(
  { settings: { mode, name } }: NameSources,
  label: string,
  tailnet: string | undefined,
): string | undefined {
  if (mode === 'tailscale' || tailnet === undefined) return tailnet
  const exact = name.find((one, i) => i > 0 && one.split('.', 1)[0] === label)
  if (exact !== undefined) return exact
  const wildcard = name.find((one) => one.startsWith('*.'))
  return wildcard === undefined ? tailnet : `${label}${wildcard.slice(1)}`
}

/**
 * Whether a host is another name of this device, which is sent to the {@link canonicalName}: the
 * tailnet's, when names of one's own are served; a further one of gatehouse.toml, or one that a
 * wildcard there covers. Any host that is neither may be a trick (DNS rebinding).
 */
export function isAlias({ settings: { mode, name }, node }: NameSources, host: string): boolean {
  if (mode === 'tailscale') return false
  return (
    host === node?.name ||
    host === node?.name?.split('.', 1)[0] ||
    name.some((one) => covers(one, host))
  )
}
