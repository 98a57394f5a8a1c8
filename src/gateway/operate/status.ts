import type { Config } from '../../config/config.ts'
import type { Authority, CertsRecord, DNSRecord, Note } from '../../certs/record.ts'
import type { Part, Problem } from '../shared/problems.ts'
import type { ServiceStatus } from '../tailnet/services.ts'

/**
 * Answer of `GET /v1/status` on the admin socket and of `gatehouse status --json`. Times are RFC
 * 3339.
 */
export interface GatewayStatus {
  version: string
  /** True when there is no problem. */
  ok: boolean
  startedAt: string
  /** What to open in a browser; absent until there is a name. */
  url?: string
  /** The three origins of the node's name: editor, what flows serve, the gateway's own pages. */
  urls?: { editor: string; flows: string; gateway: string }
  tailnet: {
    /** ipn state; `NoState` before the start. */
    state: string
    /** Full name that was assigned, which need not be the one asked for. */
    name?: string
    addresses: string[]
    /** Whose TCP serves HTTPS there: [tailnet] data_path, or what it came to. */
    dataPath: Config['tailnet']['dataPath']
    /** To be opened by a person, when the node needs a login. */
    loginURL?: string
    tags: string[]
    keyExpiry?: string
    /** Tailscale's own warnings. */
    health: string[]
    peers: Array<{ name: string; online: boolean; path: 'direct' | 'relay' | 'idle'; via?: string }>
  }
  certificate: {
    /** Where certificates come from: [certificates] mode. */
    mode: Config['certificates']['mode']
    /** The device's own authority, whose root is at http://<name>/ca.crt. */
    authority?: Authority
    /** DNS records for the person to set. */
    records: DNSRecord[]
    /** One for each name the node may have a certificate for. */
    names: Array<{
      name: string
      notAfter?: string
      issuer?: string
      renewAt?: string
      problem?: string
    }>
    /** Last run of gatehouse-certs: see CertsRecord. */
    lastRun?: Pick<
      CertsRecord,
      'checkedAt' | 'result' | 'problem' | 'code' | 'severity' | 'daysLeft' | 'next'
    >
    /** What was put right of late, and a person should know of all the same. */
    notes: Note[]
  }
  upstream: { socket: string; state: 'unknown' | 'up' | 'down'; since: string }
  access: {
    /**
     * Who may do everything unless a grant says less: the person the node belongs to. Absent for a
     * tagged node, and until it has joined.
     */
    owner?: string
    /** Rights given in gatehouse.toml: right to login names and tags. */
    settings: { view: string[]; edit: string[]; use: string[] }
    /** The app capability to be granted in the tailnet's policy for the rest. */
    capability: string
    /** What everybody on the local network may do; absent while it is not listened there. */
    localNetwork?: string[]
  }
  /** Names of apps' own. */
  services: ServiceStatus[]
  configuration: {
    /** What provisioning complains about. */
    problem?: string
    /** What of the settings a person should know though they hold; absent when there is nothing. */
    notes?: string[]
  }
  problems: Array<Problem & { part: Part }>
}
