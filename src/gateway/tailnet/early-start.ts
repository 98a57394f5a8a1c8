import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Server } from '@gatehouse/tsnet'
import type { ServerOptions } from '@gatehouse/tsnet'
import type { Config } from '../../config/config.ts'
import { kernelPath } from '../../config/data-path.ts'
import { loadConfig, readAuthKey } from '../../config/load.ts'
import type { Paths } from '../../base/paths.ts'
import type { Tailnet } from './tailnet.ts'

/** UDP port of WireGuard: the one the firewall lets in. */
const wireGuardPort = 41641

/** How long the tun interface may take to be there: networkd makes it at boot. Milliseconds. */
const patience = 10_000

/**
 * What the tailnet server is made with.
 *
 * @param kernel whether the kernel is to have the packets, as `[tailnet] data_path` may say
 */
export function tailnetOptions(
  paths: Paths,
  {
    tailnet: { hostname, controlURL, caFile, bootstrapDNS, tags },
    network,
  }: Pick<Config, 'tailnet' | 'network'>,
  authKey: string | undefined,
  kernel = false,
): ServerOptions {
  const proxy = network.find((entry) => entry.proxy !== undefined)?.proxy
  return {
    dir: paths.state('/var/lib/gatehouse'),
    hostname,
    app: 'gatehouse',
    port: wireGuardPort,
    ...(authKey === undefined ? {} : { authKey }),
    advertiseTags: tags,
    ...(controlURL === undefined ? {} : { controlURL }),
    ...(caFile === undefined ? {} : { extraCAFile: join(paths.config, caFile) }),
    ...(bootstrapDNS ? {} : { bootstrapDNS }),
    ...(kernel ? { tun: kernelPath.interface } : {}),
    // The appliance's logs stay on it.
    env: {
      TS_NO_LOGS_NO_SUPPORT: 'true',
      ...(proxy === undefined ? {} : { HTTPS_PROXY: proxy, HTTP_PROXY: proxy }),
    },
  }
}

/** A tailnet server that has been started before the gateway was there. */
export interface Begun {
  /**
   * The server, once, where it was made with the same options; otherwise a new one, when it has
   * gone: they would have the same port and state.
   *
   * @throws Error with code TSNET_TUN when it is to use an interface that is not there
   */
  take: (options: ServerOptions) => Promise<Tailnet>
}

/**
 * Starts the tailnet server at once, so that its thread loads Tailscale (the longest part of the
 * start) while this one loads the gateway. Says nothing of what goes wrong: whoever takes it finds
 * the same.
 *
 * @param create makes a server; for tests
 * @param wait how long for the interface, where one is wanted. Milliseconds; for tests
 */
export async function beginTailnet(
  paths: Paths,
  create: (options: ServerOptions) => Tailnet = (options) => new Server(options),
  wait: number = patience,
): Promise<Begun> {
  const make = async (options: ServerOptions): Promise<Tailnet> => {
    if (options.tun !== undefined) await interfaceIsThere(options.tun, wait)
    return create(options)
  }
  let early: { options: ServerOptions; server: Promise<Tailnet> } | undefined
  try {
    const config = await loadConfig(paths.config)
    const kernel = config.tailnet.dataPath === 'kernel'
    const options = tailnetOptions(paths, config, await readAuthKey(paths.credentials), kernel)
    const server = make(options)
    early = { options, server }
    void server.then(async (made) => await made.start()).catch(() => {})
    // An error of making it is its own, where it needs no waiting.
    if (!kernel) await server
  } catch {
    // No configuration, or a wrong one.
    early = undefined
  }
  return {
    take: async (options) => {
      const begun = early
      early = undefined
      if (begun === undefined) return await make(options)
      if (JSON.stringify(begun.options) === JSON.stringify(options)) return await begun.server
      await begun.server.then(async (made) => await made.close()).catch(() => {})
      return await make(options)
    },
  }
}

/** @throws Error with code TSNET_TUN when it is not there in time */
async function interfaceIsThere(name: string, wait: number): Promise<void> {
  const end = Date.now() + wait
  for (;;) {
    if (
      await stat(`/sys/class/net/${name}`).then(
        () => true,
        () => false,
      )
    )
      return
    if (Date.now() >= end)
      throw Object.assign(new Error(`there is no interface ${name}`), { code: 'TSNET_TUN' })
    await sleep(100)
  }
}
