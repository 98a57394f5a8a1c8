import { Counter, Gauge, Histogram, Registry, collectDefaultMetrics } from 'prom-client'
import { whenClosed } from '../shared/on-close.ts'
import { plugin } from '../shared/plugin.ts'
import type { Problem } from '../shared/problems.ts'

/** States a tailnet node can be in (ipn.State). */
const tailnetStates = [
  'NoState',
  'NeedsLogin',
  'NeedsMachineAuth',
  'Stopped',
  'Starting',
  'Running',
] as const

/**
 * What the gauges are read from, at each scrape: the state of things is kept in one place and never
 * copied.
 */
export interface Observed {
  /** Open TLS connections of peers. */
  connections: () => number
  /** Open WebSockets. */
  websockets: () => number
  /** 1 up, 0 down or not known yet; by upstream. */
  upstreams: () => Array<{ upstream: string; up: boolean }>
  /** ipn state of the node. */
  tailnetState: () => string
  /** Peers the node knows, by the way packets take to them. */
  peers: () => Array<'direct' | 'relay' | 'idle'>
  /** When the node's key expires; undefined when it does not. */
  keyExpiry: () => Date | undefined
  problems: () => Array<Problem & { part: string }>
}

/**
 * What the gateway counts, in Prometheus's terms (https://prometheus.io/docs/practices/naming/):
 * base units, `_total` for counters, labels with few values only. No label holds what a client
 * sends.
 *
 * Other modules add their own with `new Gauge({ …, registers: [metrics.registry] })`.
 */
export class Metrics {
  readonly registry: Registry = new Registry()
  readonly requests: Counter<'route' | 'status'>
  readonly duration: Histogram<'route'>
  readonly connections: Counter
  readonly websockets: Counter<'route'>

  constructor(version: string, observed: Observed) {
    const registers = [this.registry]
    const gauge = (name: string, help: string, read: () => number): void => {
      new Gauge({
        name,
        help,
        registers,
        collect() {
          this.set(read())
        },
      })
    }
    new Gauge({
      name: 'gatehouse_build_info',
      help: 'Always 1; the version is in the label.',
      labelNames: ['version', 'node'],
      registers,
    }).set({ version, node: process.version }, 1)
    this.requests = new Counter({
      name: 'gatehouse_http_requests_total',
      help: 'Requests answered, by route and class of status; those broken off count under the status they had.',
      labelNames: ['route', 'status'],
      registers,
    })
    this.duration = new Histogram({
      name: 'gatehouse_http_request_duration_seconds',
      help: "From the request's headers to the last byte of its answer. WebSockets are not in it.",
      labelNames: ['route'],
      buckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60],
      registers,
    })
    this.connections = new Counter({
      name: 'gatehouse_connections_total',
      help: 'Connections of tailnet peers to port 443.',
      registers,
    })
    this.websockets = new Counter({
      name: 'gatehouse_websockets_total',
      help: 'WebSockets opened.',
      labelNames: ['route'],
      registers,
    })
    gauge(
      'gatehouse_connections',
      'Connections of tailnet peers that are open.',
      observed.connections,
    )
    gauge('gatehouse_websockets', 'WebSockets that are open.', observed.websockets)
    new Gauge({
      name: 'gatehouse_upstream_up',
      help: '1 when the upstream accepts connections, else 0.',
      labelNames: ['upstream'],
      registers,
      collect() {
        this.reset()
        for (const { upstream, up } of observed.upstreams()) this.set({ upstream }, up ? 1 : 0)
      },
    })
    new Gauge({
      name: 'gatehouse_tailnet_state',
      help: '1 for the state the node is in, 0 for the others.',
      labelNames: ['state'],
      registers,
      collect() {
        const now = observed.tailnetState()
        for (const state of tailnetStates) this.set({ state }, state === now ? 1 : 0)
      },
    })
    new Gauge({
      name: 'gatehouse_tailnet_peers',
      help: 'Peers of the node, by the way packets take to them; idle: no packets lately.',
      labelNames: ['path'],
      registers,
      collect() {
        const peers = observed.peers()
        for (const path of ['direct', 'relay', 'idle'] as const)
          this.set({ path }, peers.filter((peer) => peer === path).length)
      },
    })
    new Gauge({
      name: 'gatehouse_tailnet_key_expiry_timestamp_seconds',
      help: 'When the key of the node expires, in Unix time; absent when it does not.',
      registers,
      collect() {
        const expiry = observed.keyExpiry()
        // Without labels prom-client starts at 0, which would say 1970.
        if (expiry === undefined) this.remove()
        else this.set(expiry.getTime() / 1000)
      },
    })
    new Gauge({
      name: 'gatehouse_problem',
      help: '1 for each problem there is now, as `gatehouse status` shows it.',
      labelNames: ['part', 'code'],
      registers,
      collect() {
        this.reset()
        for (const { part, code } of observed.problems()) this.set({ part, code }, 1)
      },
    })
  }

  /**
   * Adds what Prometheus's clients tell of a process (`process_…`, `nodejs_…`). Once a process: the
   * collectors do not end.
   */
  watchProcess(): void {
    collectDefaultMetrics({ register: this.registry })
  }
}

/**
 * Counts the requests of the application. The route is the name of the app that answered,
 * `gatehouse` for the gateway itself.
 */
export const measure = plugin<{ metrics: Metrics }>('measure', async (app, { metrics }) => {
  app.addHook('onRequest', (request, reply, done) => {
    const start = performance.now()
    whenClosed(reply.raw, (tunnel) => {
      const route = request.upstream ?? 'gatehouse'
      const status = `${Math.trunc(reply.raw.statusCode / 100)}xx`
      if (tunnel) return counting(metrics.requests, { route, status })
      metrics.requests.inc({ route, status })
      metrics.duration.observe({ route }, (performance.now() - start) / 1000)
      return undefined
    })
    done()
  })
})

/** Counts a request when it is called; made here, where it holds nothing but what it is given. */
function counting(
  requests: Metrics['requests'],
  labels: { route: string; status: string },
): () => void {
  return () => {
    requests.inc(labels)
  }
}
