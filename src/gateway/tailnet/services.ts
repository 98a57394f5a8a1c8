import { GatehouseError, reason } from '../../base/errors.ts'
import { sleep } from '../../base/time.ts'
import { ports } from '../../config/ports.ts'
import { Backoff } from '../shared/backoff.ts'
import { isOwnControl } from '../shared/control-words.ts'
import type { Logger } from '../shared/log.ts'
import type { Node } from './node.ts'
import type { Problems } from '../shared/problems.ts'
import type { TailnetConn, TailnetListener } from './tailnet.ts'

/** Options of {@link Services}. */
export interface ServicesOptions {
  log: Logger
  problems: Problems
  /** Undefined until it has started. */
  node: () => Node | undefined
  /** The control server, where it is one's own; undefined for Tailscale's. Default: that. */
  controlURL?: () => string | undefined
  /**
   * Name of a Service that certificates are for, by its label and its name in the tailnet. Default:
   * the tailnet's.
   */
  nameOf?: (label: string, tailnet: string | undefined) => string | undefined
  /** Whether there can be a certificate for a name. Default: the control server says so. */
  certifiable?: (name: string) => boolean
  /** A connection of a peer to a port of a Service. */
  accept: (service: string, port: number, conn: TailnetConn) => void
}

/** A Service as `gatehouse status` shows it. */
export interface ServiceStatus {
  /** `svc:name` */
  service: string
  /** Full name; absent until the node has joined. */
  name?: string
  /** Of the Service, once the node may host it. */
  addresses: string[]
  problem?: { code: string; message: string; cure: string }
}

/** Ports of a Service: those of an app, and beside them that of what flows serve. */
const appPorts = [443, 80]
const editorPorts = [...appPorts, ports.flows]

interface Hosted {
  since: number
  closed: AbortController
  ports: readonly number[]
  problem?: GatehouseError | undefined
  listeners: TailnetListener[]
}

/**
 * The Tailscale Services this node hosts: names in the tailnet for apps of their own, beside the
 * node's (https://tailscale.com/kb/1552/tailscale-services). All are the one node's: its
 * connections to a Service's addresses come in here.
 *
 * A Service is advertised before there is a certificate for it: the control server gives its name
 * out, and lets challenges be published for it, only when the node may host it.
 */
export class Services {
  /** How long an approval may take until its lack is a problem. Milliseconds. */
  patience = 15_000
  #options: ServicesOptions
  #hosted = new Map<string, Hosted>()
  #wanted: string[] = []
  #editor: string | undefined
  #started = false
  #timer: NodeJS.Timeout | undefined

  constructor(options: ServicesOptions) {
    this.#options = options
  }

  /**
   * Those that are configured, each once. What is open to one that goes stays open; its name is
   * given back.
   *
   * @param editor the one that is another name of the editor, if any
   */
  configure(services: readonly string[], editor?: string): void {
    this.#editor = editor
    this.#wanted = [...new Set([...services, ...(editor === undefined ? [] : [editor])])]
    const node = this.#options.node()
    if (node !== undefined) node.services = this.#wanted
    this.#listen()
    this.judge()
  }

  /** Hosts them from now on: the node is there. */
  start(): void {
    this.#started = true
    this.configure(this.#wanted, this.#editor)
  }

  /**
   * Full name of a Service; undefined until the node has joined, and for one that is not
   * configured.
   */
  name(service: string): string | undefined {
    const node = this.#options.node()
    const suffix = node?.running === true ? node.status?.magicDNSSuffix.toLowerCase() : undefined
    if (!this.#wanted.includes(service)) return undefined
    const label = service.slice('svc:'.length)
    const tailnet = suffix === undefined || suffix === '' ? undefined : `${label}.${suffix}`
    return this.#options.nameOf === undefined ? tailnet : this.#options.nameOf(label, tailnet)
  }

  /** Addresses of a Service, once the node may host it. */
  addresses(service: string): readonly string[] {
    return this.#options.node()?.status?.services?.[service] ?? []
  }

  list(): ServiceStatus[] {
    return this.#wanted.map((service) => {
      const name = this.name(service)
      const problem = this.#hosted.get(service)?.problem
      return {
        service,
        ...(name === undefined ? {} : { name }),
        addresses: [...this.addresses(service)],
        ...(problem === undefined
          ? {}
          : { problem: { code: problem.code, message: problem.message, cure: problem.cure } }),
      }
    })
  }

  /** Whether the control server is one of one's own that, as Headscale, gives no names at all. */
  #unsupported(): boolean {
    const names = this.#options.node()?.status?.certDomains ?? []
    return isOwnControl(this.#options.controlURL?.()) && names.length === 0
  }

  /** Looks at what the control server says of them, with each new status. */
  judge(): void {
    clearTimeout(this.#timer)
    const node = this.#options.node()
    for (const [service, hosted] of this.#hosted) {
      if (node?.running !== true || hosted.listeners.length === 0) continue
      const name = this.name(service)
      const left = hosted.since + this.patience - Date.now()
      const { certifiable = (full: string): boolean => node.names.includes(full) } = this.#options
      if (this.addresses(service).length > 0 && certifiable(name ?? '')) hosted.problem = undefined
      else if (left > 0)
        this.#timer = setTimeout(() => {
          this.judge()
        }, left + 1).unref()
      else if (this.addresses(service).length === 0 && this.#unsupported()) {
        hosted.problem = unsupported(service)
      } else if (this.addresses(service).length === 0) {
        hosted.problem = new GatehouseError(
          'GH_SERVICE_APPROVAL',
          `this device is not approved as a host of ${service}, so ${name ?? 'its name'} leads nowhere yet`,
          `In the admin console, Services: define ${service} with the ports ` +
            `${hosted.ports.map((port) => `tcp:${port}`).join(', ')} and approve this device; ` +
            'or let the policy do it, with the lines docs/gateway.md has. The gateway notices ' +
            'by itself',
        )
      } else {
        hosted.problem = new GatehouseError(
          'GH_SERVICE_CERTIFICATE',
          `the tailnet gives this device no certificate name for ${service}`,
          'Check that HTTPS is enabled (admin console, DNS) and that the Service has the ' +
            'port tcp:443. The gateway notices by itself',
        )
      }
    }
    const problem = [...this.#hosted.values()].find(
      (hosted) => hosted.problem !== undefined,
    )?.problem
    if (problem === undefined) this.#options.problems.clear('service', 'every Service is hosted')
    else this.#options.problems.set('service', problem)
  }

  /** Gives all of them back. */
  async close(): Promise<void> {
    this.#started = false
    clearTimeout(this.#timer)
    await Promise.allSettled(
      [...this.#hosted.keys()].map(async (service) => {
        await this.#end(service)
      }),
    )
  }

  #listen(): void {
    if (!this.#started) return
    const portsOf = (service: string): number[] =>
      service === this.#editor ? editorPorts : appPorts
    for (const [service, hosted] of this.#hosted)
      if (!this.#wanted.includes(service) || hosted.ports !== portsOf(service))
        void this.#end(service)
    for (const service of this.#wanted) {
      if (this.#hosted.has(service)) continue
      const hosted: Hosted = {
        since: Date.now(),
        closed: new AbortController(),
        ports: portsOf(service),
        listeners: [],
      }
      this.#hosted.set(service, hosted)
      for (const port of hosted.ports) void this.#host(service, port, hosted)
    }
  }

  async #end(service: string): Promise<void> {
    const hosted = this.#hosted.get(service)!
    this.#hosted.delete(service)
    hosted.closed.abort()
    await Promise.allSettled(
      hosted.listeners.map(async (listener) => {
        await listener.close()
      }),
    )
  }

  async #host(service: string, port: number, hosted: Hosted): Promise<void> {
    const { log, accept } = this.#options
    const { signal } = hosted.closed
    const backoff = new Backoff(1_000, 30_000)
    while (!signal.aborted) {
      try {
        const listener = await this.#options
          .node()!
          .tailnet!.listenService(service, port, { signal })
        if (signal.aborted) {
          await listener.close()
          return
        }
        listener.on('connection', (conn: TailnetConn) => {
          accept(service, port, conn)
        })
        hosted.since = Date.now()
        hosted.problem = undefined
        hosted.listeners.push(listener)
        log.info({ service, port }, `${service} is advertised, port ${port}`)
        this.judge()
        void this.#options.node()?.look()
        return
      } catch (err) {
        if (signal.aborted) return
        const untagged =
          (err as NodeJS.ErrnoException).code === 'TSNET_SERVICE' && /tagged/.test(reason(err))
        const own = this.#unsupported()
        hosted.problem = own ? unsupported(service) : notHosted(service, err, untagged)
        this.judge()
        await sleep(backoff.next(), signal)
      }
    }
  }
}

function unsupported(service: string): GatehouseError {
  return new GatehouseError(
    'GH_SERVICE_UNSUPPORTED',
    `the control server gives ${service} no address: Services are Tailscale's, and Headscale ` +
      'has none, nor an approval to wait for',
    'Give the [[app]] a path = "/…/" or a port instead of service, in gatehouse.toml on the ' +
      'card, and restart the device',
  )
}

function notHosted(service: string, err: unknown, untagged: boolean): GatehouseError {
  return untagged
    ? new GatehouseError(
        'GH_SERVICE_TAG',
        `${service} cannot be hosted: this device is not tagged`,
        'Give it a tag, such as tag:gatehouse: in the admin console (Machines, Edit ACL ' +
          'tags), or by an auth key with that tag. docs/gateway.md says what the policy needs. ' +
          'The gateway notices by itself',
        { cause: err },
      )
    : new GatehouseError(
        'GH_SERVICE',
        `${service} cannot be advertised: ${reason(err)}`,
        'The gateway goes on trying',
        { cause: err },
      )
}
