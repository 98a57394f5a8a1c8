import { ports } from '../../config/ports.ts'
import type { WhoIs } from '@gatehouse/tsnet'

/**
 * The app capability that grants of the tailnet's policy give
 * (https://tailscale.com/kb/1537/grants-app-capabilities): a domain and a name. `internal` is a
 * top-level domain reserved for private use (ICANN, 2024): nobody else can own this one.
 */
export const capability = 'gatehouse.internal/cap/app'

/** Below this, at the gateway's own port, is its API (console/api.ts). */
export const apiPrefix = '/api/v1/'

/** What of the API may be read with the right `status`; all else of it needs `manage`. */
const readable: ReadonlySet<string> = new Set(
  [
    ...['status', 'figures', 'me', 'access', 'schema', 'metrics', 'healthz', 'readyz'],
    'openapi.json',
  ].map((name) => apiPrefix + name),
)

/**
 * The right that a request to the gateway's own port needs.
 *
 * @param path canonical, without query
 */
export function ownRight(method: string, path: string): Right {
  const reads = method === 'GET' || method === 'HEAD'
  if (!path.startsWith('/api/')) return 'status'
  return reads && readable.has(path) ? 'status' : 'manage'
}

/**
 * What a peer may be allowed to do:
 * - `view`: open the Node-RED editor, changing nothing
 * - `edit`: change flows; includes `view`
 * - `use`: what flows serve over HTTP and WebSocket, at their own port
 * - `status`: the gateway's status page, and what the console shows without changing anything
 * - `manage`: change the device's settings, restart, update and back it up; includes `status`.
 *   Whoever may do this may give themselves every other right. Never from the local network.
 */
export const allRights = ['view', 'edit', 'use', 'status', 'manage'] as const
export type Right = (typeof allRights)[number]

/** Rights given in gatehouse.toml, to login names (`alice@example.com`) and tags (`tag:sensor`). */
export interface AccessSettings {
  view: string[]
  edit: string[]
  use: string[]
  /** Default: nobody. */
  manage?: string[]
}

/** What a peer may do, and why. */
export interface Access {
  rights: ReadonlySet<Right>
  /** What they rest on; `none` when there are none. */
  from: 'grant' | 'settings' | 'owner' | 'local network' | 'none'
  /**
   * What is wrong with the grants, where a value of them was not understood and so gives nothing.
   */
  problem?: string | undefined
}

const nothing: Access = { rights: new Set(), from: 'none' }

/**
 * What a peer may do. In this order, and the first that says anything about the peer counts:
 *
 * 1. Grants of the tailnet's policy with {@link capability}, and gatehouse.toml's [access]: the
 *    union of both.
 * 2. Neither: the person the node belongs to may do everything, from devices of their own. A tagged
 *    node belongs to nobody.
 * 3. Else nothing.
 *
 * So a grant of less (`view` to the owner) counts too, and a peer the tailnet does not know has no
 * rights.
 *
 * @param peer undefined when the tailnet does not know the address
 * @param self who the node itself is; undefined when that is not known (yet)
 */
export function decide(
  peer: WhoIs | undefined,
  self: WhoIs | undefined,
  settings: AccessSettings,
): Access {
  if (peer === undefined) return nothing
  const rights = new Set<Right>()
  let problem: string | undefined
  const granted = Object.hasOwn(peer.capMap, capability) ? peer.capMap[capability]! : undefined
  for (const value of granted ?? []) {
    const read = readGrant(value)
    if (typeof read === 'string') problem = read
    else for (const right of read) rights.add(right)
  }
  const person = peer.user === undefined ? [] : [peer.user.loginName.replace(/@$/, '')]
  const names = peer.node.tags.length > 0 ? peer.node.tags : person
  let listed = false
  for (const right of ['view', 'edit', 'use', 'manage'] as const) {
    // A login name without a domain is written `alice` or, as in Headscale's policy, `alice@`.
    const named = settings[right]?.some((name) => names.includes(name.replace(/@$/, '')))
    if (named !== true) continue
    rights.add(right)
    listed = true
  }
  if (rights.has('edit')) rights.add('view')
  if (rights.has('manage')) rights.add('status')
  if (granted !== undefined || listed) {
    const source = granted === undefined ? 'settings' : 'grant'
    return { rights, from: rights.size === 0 ? 'none' : source, problem }
  }
  return owns(peer, self) ? { rights: new Set(allRights), from: 'owner' } : nothing
}

/**
 * A person's own device, and a node of the same person. User IDs are the control server's and never
 * reused.
 */
export function owns(peer: WhoIs | undefined, self: WhoIs | undefined): boolean {
  return (
    peer?.user !== undefined &&
    peer.node.tags.length === 0 &&
    self?.user !== undefined &&
    self.node.tags.length === 0 &&
    peer.user.id === self.user.id
  )
}

/**
 * Reads one value of a grant, `{"may": ["view"]}`. A value that is not understood as a whole gives
 * nothing: what it was to say is not guessed at.
 */
function readGrant(value: unknown): Right[] | string {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    return `${show(value)} is not an object such as {"may": ["edit", "use"]}`
  for (const key of Object.keys(value))
    if (key !== 'may') return `${show(key)} is not known: "may" is all there is`
  const { may } = value as { may?: unknown }
  if (!Array.isArray(may)) return '"may" is not a list such as ["edit", "use"]'
  const unknown = may.find((right) => !(allRights as readonly unknown[]).includes(right))
  return unknown === undefined
    ? (may as Right[])
    : `${show(unknown)} is not one of ${allRights.join(', ')}`
}

function show(value: unknown): string {
  return JSON.stringify(value).slice(0, 80)
}

/**
 * The rights a request to Node-RED's editor needs; all of them.
 *
 * @param path canonical path, without query (target.ts)
 * @param upgrade true when it has an Upgrade header, as a WebSocket handshake has
 */
export function needed(method: string, path: string, upgrade: boolean): Right[] {
  // The editor's own WebSocket only sends to it; any other below the editor's root would be a
  // surprise.
  if (upgrade && method === 'GET') return path === '/comms' ? ['view'] : ['edit']
  if (method === 'GET' || method === 'HEAD' || method === 'OPTIONS') return ['view']
  // Signing out changes nothing but the browser's session.
  return path === '/auth/revoke' ? ['view'] : ['edit']
}

/**
 * A login name as policies write it: Headscale's local users have no domain, and an @ behind their
 * name tells them from hosts.
 */
function policyName(loginName: string | undefined): string | undefined {
  return loginName === undefined || loginName.includes('@') ? loginName : `${loginName}@`
}

/**
 * Policy lines that would give a peer these rights, to be pasted into the tailnet's policy file (an
 * entry of its "grants").
 */
export function policyFor(
  peer: WhoIs | undefined,
  self: WhoIs | undefined,
  rights: Iterable<Right>,
): string {
  const src =
    peer === undefined
      ? 'you@example.com'
      : (peer.node.tags[0] ?? policyName(peer.user?.loginName) ?? peer.node.addresses[0]!)
  const dst = self === undefined ? 'tag:gatehouse' : (self.node.tags[0] ?? self.node.addresses[0]!)
  const entrances = [ports.editor, 80, ports.flows, ports.own]
    .map((port) => `"tcp:${port}"`)
    .join(', ')
  return `"grants": [
  {
    "src": [${JSON.stringify(src)}],
    "dst": [${JSON.stringify(dst)}],
    "ip":  [${entrances}],
    "app": { ${JSON.stringify(capability)}: [{ "may": ${JSON.stringify([...rights]).replaceAll(',', ', ')} }] }
  }
]`
}
