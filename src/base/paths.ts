import { dirname, join } from 'node:path'

/**
 * Where things are. Defaults are the appliance's (docs/architecture.md); each can be overridden by
 * an environment variable, which is how tests run the same program in a temporary directory.
 */
export interface Paths {
  /** GATEHOUSE_BOOT_DIR, default /efi: what the person wrote. */
  boot: string
  /** GATEHOUSE_CONFIG_DIR, default /var/lib/gatehouse-config: the last good configuration. */
  config: string
  /** GATEHOUSE_STATE_ROOT, default /var/lib: the folders that a backup is of. */
  data: string
  /** GATEHOUSE_PROBLEM_FILE, default /run/gatehouse-provision/problem. */
  problem: string
  /**
   * GATEHOUSE_CHANNEL_KEY, default /run/gatehouse-provision/channel: the key the gateway and
   * Node-RED share.
   */
  channel: string
  /** GATEHOUSE_REPORT_DIR, default /run/gatehouse-report: what was last shown on the consoles. */
  reported: string
  /** GATEHOUSE_STATE_FILE, default /run/gatehouse/state: the gateway's state in a line. */
  told: string
  /** GATEHOUSE_TLS_DIR, default /var/lib/gatehouse-tls: `<name>.pem` and status.json. */
  tls: string
  /** GATEHOUSE_NODE_RED_SOCKET, default /run/node-red/http.sock. */
  nodeRed: string
  /** GATEHOUSE_ADMIN_SOCKET, default /run/gatehouse-admin.sock. */
  admin: string
  /** GATEHOUSE_CERTS_SOCKET, default /run/gatehouse-certs.sock. */
  certs: string
  /** GATEHOUSE_BROKER_SOCKET, default /run/gatehouse-broker.sock. */
  broker: string
  /**
   * GATEHOUSE_FIREWALL_DIR, default /run/gatehouse-firewall: what is in force for Node-RED, and what
   * its resolver reads and has told.
   */
  firewall: string
  /** GATEHOUSE_ALERTS_DIR, default /run/gatehouse-alerts: what is wrong, for who tells people. */
  alerts: string
  /**
   * GATEHOUSE_UNIT_DIR, default /run/systemd/system: where systemd looks for units of this boot.
   */
  units: string
  /**
   * GATEHOUSE_CONSOLE_DIR, default `console` beside the program: the web console as
   * tools/console.ts bundles it. Where there is none, as in a run from source, there is no console.
   */
  console: string
  /** STATE_DIRECTORY as systemd sets it; default is the caller's. */
  state: (fallback: string) => string
  /** RUNTIME_DIRECTORY as systemd sets it, default /run/gatehouse. */
  runtime: string
  /** CREDENTIALS_DIRECTORY as systemd sets it; undefined outside systemd. */
  credentials: string | undefined
}

export function paths(env: NodeJS.ProcessEnv = process.env): Paths {
  // systemd lists several directories with colons; ours are single, the first counts.
  const first = (value: string | undefined): string | undefined =>
    value === undefined || value === '' ? undefined : value.split(':')[0]
  return {
    boot: env.GATEHOUSE_BOOT_DIR ?? '/efi',
    config: env.GATEHOUSE_CONFIG_DIR ?? '/var/lib/gatehouse-config',
    data: env.GATEHOUSE_STATE_ROOT ?? '/var/lib',
    problem: env.GATEHOUSE_PROBLEM_FILE ?? '/run/gatehouse-provision/problem',
    channel: env.GATEHOUSE_CHANNEL_KEY ?? '/run/gatehouse-provision/channel',
    reported: env.GATEHOUSE_REPORT_DIR ?? '/run/gatehouse-report',
    told: env.GATEHOUSE_STATE_FILE ?? '/run/gatehouse/state',
    tls: env.GATEHOUSE_TLS_DIR ?? '/var/lib/gatehouse-tls',
    nodeRed: env.GATEHOUSE_NODE_RED_SOCKET ?? '/run/node-red/http.sock',
    admin: env.GATEHOUSE_ADMIN_SOCKET ?? '/run/gatehouse-admin.sock',
    certs: env.GATEHOUSE_CERTS_SOCKET ?? '/run/gatehouse-certs.sock',
    broker: env.GATEHOUSE_BROKER_SOCKET ?? '/run/gatehouse-broker.sock',
    firewall: env.GATEHOUSE_FIREWALL_DIR ?? '/run/gatehouse-firewall',
    alerts: env.GATEHOUSE_ALERTS_DIR ?? '/run/gatehouse-alerts',
    units: env.GATEHOUSE_UNIT_DIR ?? '/run/systemd/system',
    console: env.GATEHOUSE_CONSOLE_DIR ?? join(import.meta.dirname, 'console'),
    state: (fallback) => first(env.STATE_DIRECTORY) ?? fallback,
    runtime: first(env.RUNTIME_DIRECTORY) ?? '/run/gatehouse',
    credentials: first(env.CREDENTIALS_DIRECTORY),
  }
}

/**
 * What of the settings a person should know, though all is well: a line each; absent when there is
 * none. Read by `gatehouse status`.
 */
export function notesFile({ problem }: Pick<Paths, 'problem'>): string {
  return join(dirname(problem), 'notes')
}

/** Secrets of gatehouse.toml that are handed to a unit, as its credential of that name. */
export type Secret =
  | 'authkey'
  | 'eab-hmac-key'
  | 'tsig-key'
  | 'acme-dns-password'
  | 'certificate-key'
  | 'node-red-env'
  | 'alerts'

/**
 * Where a secret is for the units that get it (LoadCredential=): in /run, for it is written anew at
 * each boot, and nothing that fills the disk may keep it from being so.
 */
export function secretFile({ problem }: Pick<Paths, 'problem'>, name: Secret): string {
  return join(dirname(problem), name)
}

/**
 * Servers that alerts are sent to, a line each (`https://host:port`), for the firewall: their paths
 * may be passwords. Absent when there are none.
 */
export function alertHostsFile({ problem }: Pick<Paths, 'problem'>): string {
  return join(dirname(problem), 'alert-hosts')
}
