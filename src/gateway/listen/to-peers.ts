import { once } from 'node:events'
import { createServer } from 'node:net'
import type { Server, Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import type { Status } from '@gatehouse/tsnet'
import { reason } from '../../base/errors.ts'
import type { PeerHost, PeerTarget } from '../../config/peers.ts'
import type { Logger } from '../shared/log.ts'
import type { Tailnet } from '../tailnet/tailnet.ts'

/** A device has this long to accept a connection. Milliseconds. */
const patience = 15_000

/**
 * Open connections, to all of them: the most that wait on one is a MiB, and those of the tailnet
 * inwards must find room beside them on a board with 512 MB.
 */
const most = 64

/** Options of {@link ToPeers}. */
export interface ToPeersOptions {
  log: Logger
  tailnet: () => Tailnet | undefined
  status: () => Status | undefined
}

/**
 * Node-RED's way to other devices of the tailnet ({@link file://./../../config/peers.ts}): a port
 * for each entry of its list, at an address of this machine that the firewall lets Node-RED alone
 * send to. What is dialled is the entry's device and port, whatever comes; the call is this
 * device's own, and the tailnet's policy decides on it.
 */
export class ToPeers {
  #options: ToPeersOptions
  #servers = new Map<string, { target: PeerTarget; server: Server; open: Set<Socket> }>()
  #count = 0
  /** Targets whose failure was told: a flow tries again for ever. */
  #failed = new Set<string>()
  #changing: Promise<void> = Promise.resolve()

  constructor(options: ToPeersOptions) {
    this.#options = options
  }

  /** Takes over the list. What is open to an entry that is gone ends. Never rejects. */
  async configure(targets: readonly PeerTarget[]): Promise<void> {
    this.#changing = this.#changing.then(async () => {
      await this.#configure(targets)
    })
    await this.#changing
  }

  /** Closes all of it. */
  async close(): Promise<void> {
    await this.configure([])
  }

  async #configure(targets: readonly PeerTarget[]): Promise<void> {
    const key = (target: PeerTarget): string => JSON.stringify(target)
    const wanted = new Map(targets.map((target) => [key(target), target]))
    for (const [of, { server, open }] of this.#servers) {
      if (wanted.has(of)) continue
      this.#servers.delete(of)
      const closed = once(server, 'close')
      server.close()
      for (const socket of open) socket.destroy()
      await closed
    }
    for (const [of, target] of wanted) {
      if (this.#servers.has(of)) continue
      const open = new Set<Socket>()
      const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => {
        open.add(socket)
        this.#count++
        socket.once('close', () => {
          open.delete(socket)
          this.#count--
        })
        socket.on('error', () => socket.destroy())
        if (this.#count > most) socket.destroy()
        else void this.#take(socket, target)
      })
      const { log } = this.#options
      try {
        server.listen({ host: target.address, port: target.local })
        await once(server, 'listening')
        server.on('error', (err) => {
          log.warn({ code: 'GH_TO_PEER', target: target.text }, reason(err))
        })
        this.#servers.set(of, { target, server, open })
      } catch (err) {
        log.error(
          { code: 'GH_TO_PEER', target: target.text },
          `flows cannot reach ${target.text}: the gateway cannot listen at ` +
            `${target.address}:${target.local}: ${reason(err)}. Restart the device`,
        )
      }
    }
  }

  async #take(socket: Socket, target: PeerTarget): Promise<void> {
    const { log, tailnet: of } = this.#options
    const gone = new AbortController()
    socket.once('close', () => gone.abort())
    const signal = AbortSignal.any([gone.signal, AbortSignal.timeout(patience)])
    let conn: Duplex
    try {
      const tailnet = of()
      if (tailnet === undefined) throw new Error('the device is not in the tailnet yet')
      const address = await this.#find(tailnet, target.peer, signal)
      conn = await tailnet.dial(address, target.port, { signal })
    } catch (err) {
      if (gone.signal.aborted) return
      // Before anything was said: the flow sees that nobody is there.
      socket.resetAndDestroy()
      if (this.#failed.has(target.text)) return
      this.#failed.add(target.text)
      log.warn(
        { code: 'GH_TO_PEER', target: target.text },
        `a flow wanted ${target.text}: ` +
          `${signal.aborted ? `no answer within ${patience / 1_000} s` : reason(err)}. Check ` +
          `that it is online and listens, and that the tailnet's policy lets this device call ` +
          'it. Said once',
      )
      return
    }
    this.#failed.delete(target.text)
    const begun = performance.now()
    if (socket.destroyed) {
      conn.on('error', () => {}).destroy()
      return
    }
    conn.on('error', () => socket.destroy())
    conn.once('close', () => {
      if (!socket.destroyed && !conn.readableEnded) socket.destroy()
      log.info(
        { target: target.text, ms: Math.round(performance.now() - begun) },
        'a flow to the tailnet',
      )
    })
    socket.once('close', () => {
      if (!socket.readableEnded) conn.destroy()
    })
    socket.pipe(conn)
    conn.pipe(socket)
  }

  /**
   * The address to dial. Never one of this device's own: the gateway would take the caller for the
   * device, and so for its owner.
   *
   * @throws Error in words for a person
   */
  async #find(tailnet: Tailnet, peer: PeerHost, signal: AbortSignal): Promise<string> {
    let status = this.#options.status()
    if (status === undefined || status.backendState !== 'Running')
      throw new Error('the device is not in the tailnet yet')
    let found = addressesOf(status, peer)
    if (found === undefined) {
      // The status that is at hand may be half a minute old.
      status = await tailnet.status()
      found = addressesOf(status, peer)
    }
    // The control server tells names of Services, not as peers.
    if (found === undefined && 'service' in peer)
      found = await tailnet.resolve(
        `${peer.service.slice('svc:'.length)}.${status.magicDNSSuffix.toLowerCase()}`,
        { signal },
      )
    if (found === undefined)
      throw new Error(
        'tag' in peer
          ? `this device sees no device with ${peer.tag} in the tailnet`
          : 'this device sees no device of this name in the tailnet',
      )
    const own = new Set([...status.tailscaleIPs, ...Object.values(status.services).flat()])
    if (found.some((address) => own.has(address)))
      throw new Error('that is this device itself, which a flow cannot call by the tailnet')
    if (found[0] === undefined) throw new Error('it has no address')
    return found[0]
  }
}

/** Addresses of a device, or of one with a tag, online before offline; undefined: there is none. */
function addressesOf(
  { peers, self, tailscaleIPs }: Status,
  peer: PeerHost,
): readonly string[] | undefined {
  if ('service' in peer) return undefined
  if ('name' in peer) {
    if (self?.dnsName.toLowerCase() === peer.name) return tailscaleIPs
    return peers.find(({ dnsName }) => dnsName.toLowerCase() === peer.name)?.tailscaleIPs
  }
  return peers
    .filter(({ tags, expired }) => tags.includes(peer.tag) && expired !== true)
    .toSorted((a, b) => Number(b.online) - Number(a.online) || (a.dnsName < b.dnsName ? -1 : 1))[0]
    ?.tailscaleIPs
}
