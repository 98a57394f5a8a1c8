import { createSocket } from 'node:dgram'
import type { Socket } from 'node:dgram'
import { isIPv6 } from 'node:net'
import { reason } from '../../base/errors.ts'
import type { Guard } from '../access/guard.ts'
import type { Limits } from '../request/limits.ts'
import type { Logger } from '../shared/log.ts'
import { Peer } from '../tailnet/peer.ts'
import type { Tailnet, TailnetPacketSocket } from '../tailnet/tailnet.ts'
import { mayUse, stillMayUse, targetAway } from './forward-rights.ts'
import type { Forward } from './forward-rights.ts'

/** What flows may take. */
export interface FlowLimits {
  /** Flows of one peer that are open. */
  perPeer: number
  /** Of all peers. */
  all: number
  /** Datagrams kept until it is known who sends them, of one flow. */
  waiting: number
  /** A flow ends when nothing has come either way for so long (RFC 4787 §4.3). Milliseconds. */
  idle: number
}

/** What holds unless a test says otherwise. */
export const flowLimits: FlowLimits = { perPeer: 32, all: 512, waiting: 16, idle: 120_000 }

/** Options of {@link UDPForward}. */
export interface UDPForwardOptions {
  forward: Forward
  socket: TailnetPacketSocket
  log: Logger
  guard: Guard
  limits: Limits
  tailnet: Tailnet
  flows?: FlowLimits
}

/** One peer's port, and what is behind it. */
interface Flow {
  peer: Peer
  /** Undefined until it is known that the peer may. */
  target: Socket | undefined
  waiting: Buffer[]
  /** It may not: until it ends, and the next datagram asks anew. */
  denied: boolean
  timer: NodeJS.Timeout
}

/** How long a refusal holds, and how often a target that is not there is said. Milliseconds. */
const [refusal, silence] = [10_000, 60_000]

/**
 * UDP from a port of the node to a target: each port of each peer is a flow with a socket of its
 * own towards the target, so that answers find their way back. Who may is asked at a flow's first
 * datagram and again while it is open.
 */
export class UDPForward {
  readonly #options: UDPForwardOptions
  readonly #limits: FlowLimits
  readonly #flows = new Map<string, Flow>()
  #said = 0

  constructor(options: UDPForwardOptions) {
    this.#options = options
    this.#limits = options.flows ?? flowLimits
    options.socket.on('message', (data, { address, port }) => {
      this.#take(data, address, port)
    })
    options.socket.on('error', (err) => {
      options.log.debug(`UDP port ${options.forward.port}: ${reason(err)}`)
    })
  }

  /** Flows that are open. */
  get open(): number {
    return this.#flows.size
  }

  /** Ends flows of those who may not any more. */
  async recheck(): Promise<void> {
    const { forward } = this.#options
    for (const [key, { peer }] of [...this.#flows]) {
      if (!(await stillMayUse(this.#options, forward, peer))) this.#end(key)
    }
  }

  close(): void {
    for (const key of [...this.#flows.keys()]) this.#end(key)
    this.#options.socket.close()
  }

  #take(data: Buffer, address: string, port: number): void {
    const key = `${address} ${port}`
    const flow = this.#flows.get(key)
    if (flow === undefined) {
      this.#begin(key, data, address, port)
      return
    }
    if (flow.denied) return
    flow.timer.refresh()
    if (flow.target !== undefined) flow.target.send(data)
    else if (flow.waiting.length < this.#limits.waiting) flow.waiting.push(data)
    else this.#options.limits.refuse('udp_flow', address)
  }

  #begin(key: string, data: Buffer, address: string, port: number): void {
    const { limits, tailnet, log } = this.#options
    const own = [...this.#flows.values()].filter(({ peer }) => peer.address === address).length
    if (own >= this.#limits.perPeer || this.#flows.size >= this.#limits.all) {
      limits.refuse('udp_flow', address)
      return
    }
    const peer = new Peer({ remoteAddress: address, remotePort: port }, tailnet, log)
    const timer = setTimeout(() => {
      this.#end(key)
    }, this.#limits.idle)
    timer.unref()
    const flow: Flow = { peer, target: undefined, waiting: [data], denied: false, timer }
    this.#flows.set(key, flow)
    void this.#admit(key, flow)
  }

  async #admit(key: string, flow: Flow): Promise<void> {
    const { forward, log, socket } = this.#options
    const { peer } = flow
    const { about, allowed } = await mayUse(this.#options, forward, peer)
    if (this.#flows.get(key) !== flow) return
    if (!allowed) {
      // So that each further datagram is no new question.
      flow.waiting = []
      flow.denied = true
      clearTimeout(flow.timer)
      flow.timer = setTimeout(() => {
        this.#end(key)
      }, refusal).unref()
      return
    }
    const [, host, port] = /^\[?(.+?)\]?:(\d+)$/.exec(forward.target)!
    const target = createSocket(isIPv6(host!) ? 'udp6' : 'udp4')
    target.on('error', (err) => {
      if (this.#said + silence < Date.now()) targetAway(log, about, err)
      this.#said = Date.now()
      this.#end(key)
    })
    target.on('message', (answer) => {
      flow.timer.refresh()
      socket.send(answer, peer.port, peer.address)
    })
    target.connect(Number(port), host!, () => {
      if (this.#flows.get(key) !== flow) {
        target.close()
        return
      }
      flow.target = target
      log.info(about, 'forward of UDP')
      for (const data of flow.waiting.splice(0)) target.send(data)
    })
  }

  #end(key: string): void {
    const flow = this.#flows.get(key)
    if (flow === undefined) return
    this.#flows.delete(key)
    clearTimeout(flow.timer)
    flow.target?.close()
  }
}
