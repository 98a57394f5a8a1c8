import { EventEmitter } from 'node:events'
import { rename } from 'node:fs/promises'
import type { Status } from '@gatehouse/tsnet'
import { GatehouseError, oneLine, reason } from '../../base/errors.ts'
import { sleep } from '../../base/time.ts'
import { Backoff } from '../shared/backoff.ts'
import { controlWords, isOwnControl } from '../shared/control-words.ts'
import type { Logger } from '../shared/log.ts'
import type { Problems } from '../shared/problems.ts'
import { probeControl } from './probe.ts'
import type { Tailnet, TailnetConn, TailnetListener, TailnetPacketSocket } from './tailnet.ts'

/** Options of {@link Node}. */
export interface NodeOptions {
  /**
   * Makes the tailnet server; called again when one could not be started.
   *
   * @param kernel whether the kernel is to have its packets: {@link kernel}, until that failed
   */
  create: (kernel: boolean) => Tailnet | Promise<Tailnet>
  /** Whether the kernel is to have the node's packets ([tailnet] data_path). Default: no. */
  kernel?: boolean
  controlURL: string | undefined
  /** PEM text: what the control server is verified by beside the public authorities. */
  controlAuthority?: string | undefined
  /** True when there is an auth key, for the wording of cures. */
  hasAuthKey: boolean
  /**
   * File of the node's state. One that is damaged is put aside where there is an auth key to join
   * with anew. Default: it is left, and that is said.
   */
  stateFile?: string
  /** Tags that are asked for, likewise. Default: none. */
  tags?: readonly string[]
  problems: Problems
  log: Logger
  /**
   * Milliseconds, for tests: `retry` first and longest wait, `patience` until a start counts as
   * stuck, `poll` between looks.
   */
  timing?: { retry?: [number, number]; patience?: number; poll?: number }
}

/**
 * The node's life on the tailnet: starts it, joins, joins again when that fails, watches it, and
 * says what is wrong.
 *
 * Emits `started` (Tailnet) once it can listen, `status` (Status) whenever there is a newer one,
 * and `fatal` (Error) when the tailnet server has died and the process must start anew.
 */
export class Node extends EventEmitter {
  #options: NodeOptions
  #tailnet: Tailnet | undefined
  #closed = new AbortController()
  #status: Status | undefined
  /** Tailscale Services it is to host. */
  services: readonly string[] = []
  /** Whether certificates are for the names the tailnet gives: only then is it a problem to get none. */
  wantsNames = true
  #loginURL: string | undefined
  /** Whether the kernel has, or is to have, the packets. */
  #kernel: boolean
  /** Set while the control server refuses the key: says more than the state does. */
  #refused = false
  #joining = false
  #pendingSince = Date.now()
  #emptySince: number | undefined
  #poll: NodeJS.Timeout | undefined
  #looking: Promise<void> | undefined

  constructor(options: NodeOptions) {
    super()
    this.#options = options
    this.#kernel = options.kernel ?? false
  }

  /** Whether the kernel has the packets of what nothing is listened to by {@link listen}. */
  get kernel(): boolean {
    return this.#kernel && this.#tailnet !== undefined
  }

  get tailnet(): Tailnet | undefined {
    return this.#tailnet
  }
  get status(): Status | undefined {
    return this.#status
  }
  get loginURL(): string | undefined {
    return this.#status?.backendState === 'Running'
      ? undefined
      : this.#status?.authURL || this.#loginURL
  }
  get running(): boolean {
    return this.#status?.backendState === 'Running'
  }

  /** Full name that was assigned, lower case, without the trailing dot. */
  get name(): string | undefined {
    const name = this.#status?.self?.dnsName.replace(/\.$/, '').toLowerCase()
    return name === undefined || name === '' || !this.running ? undefined : name
  }

  /**
   * Names there may be certificates for, and are to be; empty until joined. The control server says
   * which (DNSConfig.CertDomains, those of Services this node may host among them), as for
   * Tailscale's own certificates (feature/acme/cert.go, resolveCertDomain); a Service that the node
   * may host but is not to is left out.
   */
  get names(): string[] {
    if (!this.running || this.#status === undefined) return []
    const { certDomains, services, magicDNSSuffix } = this.#status
    const idle = new Set(
      Object.keys(services)
        .filter((service) => !this.services.includes(service))
        .map((service) => `${service.slice('svc:'.length)}.${magicDNSSuffix}`),
    )
    return certDomains.filter((name) => !idle.has(name))
  }

  /**
   * Starts; resolves when the server can listen. Never rejects: it is tried until it works or
   * {@link close} is called.
   */
  async start(): Promise<void> {
    const { create, problems, timing } = this.#options
    const backoff = new Backoff(...(timing?.retry ?? ([2_000, 120_000] as const)))
    while (!this.#closed.signal.aborted) {
      let tailnet: Tailnet | undefined
      try {
        const made = await create(this.#kernel)
        tailnet = made
        made.on('error', (err: Error) => {
          if (!this.#closed.signal.aborted && this.#tailnet === made) this.emit('fatal', err)
        })
        made.on('state', () => {
          void this.look()
        })
        made.on('loginURL', (url: string) => {
          this.#loginURL = url
          void this.look()
        })
        await made.start()
        this.#tailnet = tailnet
        this.#pendingSince = Date.now()
        this.emit('started', tailnet)
        this.#join()
        void this.look()
        return
      } catch (err) {
        if (this.#kernel && (err as NodeJS.ErrnoException).code === 'TSNET_TUN') {
          problems.set('data path', dataPathProblem(reason(err)))
          this.#kernel = false
          await tailnet?.close().catch(() => {})
          continue
        }
        await tailnet?.close().catch(() => {})
        if (await this.#putAside(err)) continue
        problems.set('tailnet', startProblem(err), 'error')
        await sleep(backoff.next(), this.#closed.signal)
      }
    }
  }

  /**
   * A state that is damaged holds no identity any more. With an auth key the device joins as
   * another node, with all else that it has, rather than being out of reach.
   *
   * @returns true when there is none in the way any more
   */
  async #putAside(err: unknown): Promise<boolean> {
    const { hasAuthKey, log, stateFile } = this.#options
    const damage = damageOf(err)
    if (damage === undefined || !hasAuthKey || stateFile === undefined) return false
    try {
      await rename(stateFile, `${stateFile}.damaged`)
    } catch (failed) {
      log.warn(`the damaged state cannot be put aside: ${reason(failed)}`)
      return false
    }
    log.error(
      { code: 'GH_IDENTITY_DAMAGED' },
      `the device's identity in the tailnet is lost, since its state is damaged: ${damage}. ` +
        'It joins as another node with the auth key of gatehouse.toml. If this card is a copy of ' +
        'another, copy it again, to the end',
    )
    return true
  }

  /** A port of the node, listened on until it works. */
  async listen(
    port: number,
    accept: (conn: TailnetConn) => void,
  ): Promise<TailnetListener | undefined> {
    const listener = await this.#open(port, async (tailnet) => await tailnet.listen(port))
    listener?.on('connection', accept)
    return listener
  }

  /** A UDP port of the node, likewise. */
  async listenPacket(port: number): Promise<TailnetPacketSocket | undefined> {
    return await this.#open(port, async (tailnet) => await tailnet.listenPacket(port))
  }

  async #open<T>(port: number, open: (tailnet: Tailnet) => Promise<T>): Promise<T | undefined> {
    const { problems, timing } = this.#options
    const backoff = new Backoff(...(timing?.retry ?? ([1_000, 30_000] as const)))
    while (!this.#closed.signal.aborted && this.#tailnet !== undefined) {
      try {
        const opened = await open(this.#tailnet)
        problems.clear('listener', `tailnet port ${port} is open`)
        return opened
      } catch (err) {
        problems.set(
          'listener',
          new GatehouseError(
            'GH_LISTEN',
            `tailnet port ${port} cannot be opened: ${reason(err)}`,
            'The gateway goes on trying',
            { cause: err },
          ),
        )
        await sleep(backoff.next(), this.#closed.signal)
      }
    }
    return undefined
  }

  #join(): void {
    if (this.#joining || this.#tailnet === undefined) return
    this.#joining = true
    void this.#up(this.#tailnet).finally(() => {
      this.#joining = false
    })
  }

  async #up(tailnet: Tailnet): Promise<void> {
    const { problems, timing } = this.#options
    const backoff = new Backoff(...(timing?.retry ?? ([10_000, 300_000] as const)))
    while (!this.#closed.signal.aborted) {
      try {
        this.#take(await tailnet.up({ signal: this.#closed.signal }))
        return
      } catch (err) {
        if (this.#closed.signal.aborted) return
        this.#refused = true
        if ((err as NodeJS.ErrnoException).code === 'TSNET_AUTH') {
          problems.set(
            'tailnet',
            new GatehouseError(
              'GH_AUTH_KEY',
              `the control server does not accept this node: ${withoutKeys(reason(err))}`,
              this.#keyCure(reason(err)),
              { cause: err },
            ),
            'error',
          )
        } else {
          problems.set(
            'tailnet',
            new GatehouseError(
              'GH_TAILNET_UP',
              `the node cannot join: ${withoutKeys(reason(err))}`,
              'The gateway goes on trying; if it stays so, restart the device',
              { cause: err },
            ),
          )
        }
        await sleep(backoff.next(), this.#closed.signal)
      }
    }
  }

  /**
   * Asks for a new node key while this one still holds, as `tailscale up --force-reauth` does: the
   * node stays in the tailnet, and takes the new key once somebody has logged in. An auth key that
   * is still good renews by itself; one that is used up is let go of first.
   *
   * @returns the URL to log in at; undefined when it is renewed already
   * @throws GatehouseError when there is nothing to renew, or the control server does not answer
   */
  async renew(): Promise<string | undefined> {
    const tailnet = this.#tailnet
    const before = this.#status?.self?.keyExpiry
    if (tailnet === undefined || !this.running || before === undefined)
      throw new GatehouseError(
        'GH_KEY_RENEW',
        this.running ? "the device's key does not end" : 'the device is not in the tailnet now',
        this.running ? 'There is nothing to do' : 'Wait until it is, and try again',
      )
    const said = await this.#askLogin(tailnet, before)
    if (typeof said !== 'object') return said
    // It offers the auth key again and again; without it, once it is in the tailnet again (some
    // seconds), there is a URL.
    this.#options.log.info(`the auth key does not renew the node key: ${withoutKeys(said.refused)}`)
    await tailnet.localAPI('POST', '/localapi/v0/start', {})
    for (let tries = 0; tries < 60; tries++) {
      await sleep(this.#options.timing?.poll ?? 500, this.#closed.signal)
      await this.look()
      if (this.running && this.#options.problems.get('tailnet') === undefined) break
    }
    const again = await this.#askLogin(tailnet, before)
    if (typeof again !== 'object') return again
    throw new GatehouseError(
      'GH_KEY_RENEW',
      `the control server does not renew the key: ${withoutKeys(again.refused)}`,
      controlWords(this.#options.controlURL).keepKey,
    )
  }

  /** A login URL, undefined when the key was renewed meanwhile, or why it is refused. */
  async #askLogin(
    tailnet: Tailnet,
    before: string,
  ): Promise<string | undefined | { refused: string }> {
    const { promise, resolve, reject } = Promise.withResolvers<
      string | undefined | { refused: string }
    >()
    const refuse = (refused: string): void => resolve({ refused })
    const poll = setInterval(() => {
      void this.look().then(() => {
        const now = this.#status?.self?.keyExpiry
        if (this.running && now !== before) resolve(undefined)
      })
    }, this.#options.timing?.poll ?? 1_000)
    const late = setTimeout(() => {
      reject(
        new GatehouseError(
          'GH_KEY_RENEW',
          'the control server has not answered within 30 s',
          'Try again; the key that there is holds meanwhile',
        ),
      )
    }, 30_000)
    tailnet.once('loginURL', resolve).once('message', refuse)
    try {
      await tailnet.localAPI('POST', '/localapi/v0/login-interactive')
      return await promise
    } finally {
      clearInterval(poll)
      clearTimeout(late)
      tailnet.off('loginURL', resolve).off('message', refuse)
    }
  }

  /** What to do about a key that is refused, or about tags it may not give. */
  #keyCure(said: string): string {
    const { hasAuthKey, tags = [], controlURL } = this.#options
    const words = controlWords(controlURL)
    const card = "write it as auth_key into gatehouse.toml on the card's first partition"
    if (!hasAuthKey)
      return "Write an auth_key into gatehouse.toml on the card's first partition and restart the device"
    const make = tags.length > 0 && /\btags?\b/i.test(said) ? words.taggedKey(tags) : words.newKey
    return `${make}, ${card} and restart the device`
  }

  /** Takes the newest status now. Never rejects. */
  async look(): Promise<void> {
    this.#looking ??= this.#look().finally(() => {
      this.#looking = undefined
    })
    await this.#looking
  }

  async #look(): Promise<void> {
    clearTimeout(this.#poll)
    const tailnet = this.#tailnet
    if (tailnet === undefined || this.#closed.signal.aborted) return
    try {
      this.#take(await tailnet.status())
      await this.#judge()
    } catch (err) {
      this.#options.log.debug(`status: ${reason(err)}`)
    }
    if (this.#closed.signal.aborted) return
    const settled = this.running && this.names.length > 0
    // An approval is not told, only seen.
    const pending = this.services.some((service) => this.#status?.services?.[service] === undefined)
    this.#poll = setTimeout(
      () => {
        void this.look()
      },
      this.#options.timing?.poll ?? pollInterval(settled, pending),
    )
    this.#poll.unref()
  }

  #take(status: Status): void {
    const was = this.#status
    this.#status = status
    if (status.backendState === 'Running') {
      this.#refused = false
      this.#loginURL = undefined
      if (this.#options.problems.get('tailnet')?.code !== 'GH_CONTROL_LOST')
        this.#options.problems.clear('tailnet', 'the tailnet works again')
      if (was?.backendState !== 'Running' && this.name !== undefined) {
        this.#options.log.info(
          { name: this.name, addresses: status.tailscaleIPs },
          `joined the tailnet as ${this.name}`,
        )
      }
    } else if (was?.backendState === 'Running') {
      this.#pendingSince = Date.now()
      // Expired or removed: what brings it back (a login, a new key) is up's business.
      this.#join()
    }
    this.emit('status', status)
  }

  async #judge(): Promise<void> {
    const { problems, timing, controlURL, controlAuthority } = this.#options
    const status = this.#status!
    if (status.backendState === 'Running') {
      this.#judgeHTTPS(status)
      const lost = status.health.find((text) => /coordination server|control server/i.test(text))
      if (lost === undefined) problems.clear('tailnet', 'the control server is there again')
      else
        problems.set(
          'tailnet',
          new GatehouseError(
            'GH_CONTROL_LOST',
            `the connection to the control server is lost: ${lost.replace(/\.$/, '')}`,
            'Check the network; peers that are known can still connect. The gateway goes on trying',
          ),
        )
      return
    }
    if (this.#refused) return
    if (status.backendState === 'NeedsMachineAuth') {
      problems.set(
        'tailnet',
        new GatehouseError(
          'GH_APPROVAL_NEEDED',
          'the node waits to be approved',
          controlWords(controlURL).approve,
        ),
      )
    } else if (this.loginURL !== undefined) {
      problems.set(
        'tailnet',
        new GatehouseError(
          'GH_LOGIN_NEEDED',
          'the node is not logged in',
          `Open ${this.loginURL} in a browser and log in; or write an auth_key into ` +
            `gatehouse.toml on the card's first partition`,
        ),
      )
    } else if (Date.now() - this.#pendingSince > (timing?.patience ?? 20_000)) {
      const error = await probeControl(controlURL, controlAuthority)
      if (!this.running && !this.#refused && this.loginURL === undefined)
        problems.set('tailnet', error)
    }
  }

  #judgeHTTPS(status: Status): void {
    const { problems, timing, controlURL } = this.#options
    if (status.certDomains.length > 0 || !this.wantsNames) {
      this.#emptySince = undefined
      problems.clear('https', 'there are names for certificates')
      return
    }
    // The names come with the first netmap, which may be a moment behind the state.
    this.#emptySince ??= Date.now()
    if (Date.now() - this.#emptySince < (timing?.patience ?? 10_000)) return
    if (isOwnControl(controlURL)) {
      problems.set(
        'https',
        new GatehouseError(
          'GH_HTTPS_NAMES',
          'the control server gives this device no names for certificates (Headscale gives ' +
            'none), so there is no HTTPS yet',
          'Write under [certificates] in gatehouse.toml on the card mode = "self" (an ' +
            'authority made on this device), "acme" (a domain of your own) or "files" (a ' +
            'certificate you have), as docs/certificates.md says, and restart the device',
        ),
      )
      return
    }
    problems.set(
      'https',
      new GatehouseError(
        'GH_HTTPS_DISABLED',
        'HTTPS is not enabled on the tailnet, so there can be no certificate',
        'Enable it in the admin console: DNS, HTTPS Certificates, Enable HTTPS. The gateway notices by itself',
      ),
    )
  }

  async close(): Promise<void> {
    this.#closed.abort()
    clearTimeout(this.#poll)
    await this.#tailnet?.close()
  }
}

/** What is said where `[tailnet] data_path = "kernel"` cannot be had. */
export function dataPathProblem(why: string): GatehouseError {
  return new GatehouseError(
    'GH_DATA_PATH',
    `the kernel's TCP does not serve the tailnet, the gateway's own does: ${why}`,
    'All of it works, more slowly. Restart the device to try again; or take data_path out of ' +
      '[tailnet] in gatehouse.toml',
  )
}

/** Blots out anything that looks like a key, Tailscale's or Headscale's, in words from elsewhere. */
function withoutKeys(text: string): string {
  return oneLine(text).replace(/\b(tskey|hskey)-[A-Za-z0-9_-]+/g, '$1-…')
}

/** How long until the node's status is asked for again. Milliseconds. */
function pollInterval(settled: boolean, pending: boolean): number {
  if (!settled) return 3_000
  return pending ? 5_000 : 30_000
}

/**
 * What is damaged of the state, without the bindings' own cure, for which one needs a shell
 * (src/tsnet/go/store.go). Undefined where something else is wrong.
 */
function damageOf(err: unknown): string | undefined {
  if ((err as NodeJS.ErrnoException).code !== 'TSNET_STATE') return undefined
  const said = reason(err)
  return / is damaged \(/.test(said) ? said.split(': restore it')[0] : undefined
}

/** Why the node cannot start. */
function startProblem(err: unknown): GatehouseError {
  const damage = damageOf(err)
  if (damage === undefined)
    return new GatehouseError(
      'GH_TAILNET_START',
      `the tailnet node cannot start: ${reason(err)}`,
      'The gateway goes on trying; if it stays so, restart the device',
      { cause: err },
    )
  return new GatehouseError(
    'GH_IDENTITY_DAMAGED',
    `the device's identity in the tailnet is damaged: ${damage}`,
    'If this card is a copy of another, copy it again, to the end. Otherwise write a new auth_key ' +
      "into gatehouse.toml on the card's first partition and restart the device: it joins as " +
      'another node, with its flows. If it happens again, the card is worn: use another',
    { cause: err },
  )
}
