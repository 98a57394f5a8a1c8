import { EventEmitter } from 'node:events'
import { reason } from '../../base/errors.ts'
import type { WhoIs } from '@gatehouse/tsnet'
import { decide } from './access.ts'
import type { Access, AccessSettings, Right } from './access.ts'
import { assertion } from './channel.ts'
import type { Logger } from '../shared/log.ts'
import type { Peer } from '../tailnet/peer.ts'
import type { Tailnet } from '../tailnet/tailnet.ts'

/** How often the rights of those that hold something open are looked at. Milliseconds. */
const recheckInterval = 5_000

/** The node's own identity changes with a login or a tag, never by itself. Milliseconds. */
const selfLifetime = 30_000

/** Options of {@link Guard}. */
export interface GuardOptions {
  log: Logger
  /** Asked for the node's own identity; undefined until the node has started. */
  tailnet: () => Pick<Tailnet, 'whoIs'> | undefined
  /** Addresses of the node itself; empty until it has joined. */
  addresses: () => readonly string[]
  /** Shared with Node-RED; undefined when there is none, and Node-RED then knows nobody. */
  channelKey: Buffer | undefined
}

/** Who is behind a connection, and what they may do. */
export interface Verdict {
  whoIs: WhoIs | undefined
  access: Access
  /** The header that tells Node-RED's editor who asks; undefined for a peer that may not see it. */
  assertion: string | undefined
}

/** Knows who a peer is and what they may do. Emits `change` when the settings did. */
export class Guard extends EventEmitter {
  /** The control server's URL, for the wording of cures; undefined: Tailscale's. */
  controlURL: string | undefined
  #options: GuardOptions
  #settings: AccessSettings = { view: [], edit: [], use: [] }
  #local: ReadonlySet<Right> = new Set()
  #self: { answer: Promise<WhoIs | undefined>; until: number } | undefined
  #said = new Set<string>()
  /** Verdicts that count for some seconds. */
  #known = new WeakMap<object, { verdict: Verdict; until: number }>()

  constructor(options: GuardOptions) {
    super()
    this.#options = options
  }

  get settings(): AccessSettings {
    return this.#settings
  }

  set settings(settings: AccessSettings) {
    this.#settings = settings
    this.#known = new WeakMap()
    this.emit('change')
  }

  /**
   * What everybody on the local network may do: [local_network]. Nothing while it is not listened
   * there.
   */
  set local(rights: Iterable<Right>) {
    this.#local = new Set(rights)
    this.#known = new WeakMap()
    this.emit('change')
  }

  /** Who the node itself is; undefined when that is not known (yet). */
  async self(): Promise<WhoIs | undefined> {
    const [address] = this.#options.addresses()
    const tailnet = this.#options.tailnet()
    if (address === undefined || tailnet === undefined) return undefined
    if (this.#self === undefined || this.#self.until < Date.now()) {
      const answer = tailnet.whoIs(address).catch((err: unknown) => {
        this.#options.log.warn(
          { code: 'GH_WHOIS', peer: address },
          `who is the node itself: ${reason(err)}. Until that is known its owner has no rights but granted ones`,
        )
        this.#self = undefined
        return undefined
      })
      this.#self = { answer, until: Date.now() + selfLifetime }
    }
    return await this.#self.answer
  }

  /**
   * What {@link ask} found out, as long as what it rests on counts: most requests come soon after
   * another on their connection.
   */
  known(peer: Peer): Verdict | undefined {
    const known = this.#known.get(peer)
    return known !== undefined && known.until > Date.now() ? known.verdict : undefined
  }

  /**
   * Who is behind a connection, and what they may do; {@link Peer.mayNothing} says in short.
   *
   * @param fresh do not take an answer that was given before
   */
  async ask(
    peer: Pick<Peer, 'whoIs' | 'address' | 'local' | 'until'> & Partial<Pick<Peer, 'mayNothing'>>,
    fresh = false,
  ): Promise<Verdict> {
    if (peer.local) {
      const access: Access = {
        rights: this.#local,
        from: this.#local.size === 0 ? 'none' : 'local network',
      }
      peer.mayNothing = access.rights.size === 0
      return { whoIs: undefined, access, assertion: this.#assertion(undefined, access) }
    }
    const answer = peer.whoIs(fresh)
    const { until } = peer
    const [whoIs, self] = await Promise.all([answer, this.self()])
    const access = decide(whoIs, self, this.#settings)
    peer.mayNothing = access.rights.size === 0
    if (access.problem !== undefined && !this.#said.has(access.problem)) {
      // A policy has few mistakes, and each is said once.
      if (this.#said.size > 100) this.#said.clear()
      this.#said.add(access.problem)
      this.#options.log.warn(
        { code: 'GH_GRANT', peer: peer.address },
        `a grant of the tailnet's policy gives nothing: ${access.problem}. Change it as docs/access.md says`,
      )
    }
    const verdict = { whoIs, access, assertion: this.#assertion(whoIs, access) }
    // Who owns the node is not known at first, and that must not last.
    if (self !== undefined) this.#known.set(peer, { verdict, until })
    return verdict
  }

  /**
   * For who holds something open by a right: calls at once when the settings change, and every five
   * seconds for what the tailnet's policy says; not while a call before is at work. Returns what
   * ends it.
   */
  recheck(look: () => Promise<void>): () => void {
    let looking = false
    const call = (): void => {
      if (looking) return
      looking = true
      void look().finally(() => {
        looking = false
      })
    }
    const timer = setInterval(call, recheckInterval)
    timer.unref()
    this.on('change', call)
    return () => {
      clearInterval(timer)
      this.off('change', call)
    }
  }

  #assertion(whoIs: WhoIs | undefined, access: Access): string | undefined {
    const { channelKey } = this.#options
    if (channelKey === undefined || !access.rights.has('view')) return undefined
    const who = whoIs ?? (access.from === 'local network' ? access.from : undefined)
    return who === undefined ? undefined : assertion(channelKey, who, access)
  }
}
