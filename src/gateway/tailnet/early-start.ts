import { join } from 'node:path'
import { Server } from '@gatehouse/tsnet'
import type { ServerOptions } from '@gatehouse/tsnet'
import type { Config } from '../../config/config.ts'
import { loadConfig, readAuthKey } from '../../config/load.ts'
import type { Paths } from '../../base/paths.ts'
import type { Tailnet } from './tailnet.ts'

/** UDP port of WireGuard: the one the firewall lets in. */
const wireGuardPort = 41641

/** What the tailnet server is made with. */
export function tailnetOptions(
  paths: Paths,
  {
    tailnet: { hostname, controlURL, caFile, bootstrapDNS, tags },
    network,
  }: Pick<Config, 'tailnet' | 'network'>,
  authKey: string | undefined,
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
   */
  take: (options: ServerOptions) => Promise<Tailnet>
}

/**
 * Starts the tailnet server at once, so that its thread loads Tailscale (the longest part of the
 * start) while this one loads the gateway. Says nothing of what goes wrong: whoever takes it finds
 * the same.
 *
 * @param create makes a server; for tests
 */
export async function beginTailnet(
  paths: Paths,
  create: (options: ServerOptions) => Tailnet = (options) => new Server(options),
): Promise<Begun> {
  let early: { options: ServerOptions; server: Tailnet } | undefined
  try {
    const options = tailnetOptions(
      paths,
      await loadConfig(paths.config),
      await readAuthKey(paths.credentials),
    )
    early = { options, server: create(options) }
    early.server.start().catch(() => {})
  } catch {
    // No configuration, or a wrong one.
  }
  return {
    take: async (options) => {
      const begun = early
      early = undefined
      if (begun === undefined) return create(options)
      if (JSON.stringify(begun.options) === JSON.stringify(options)) return begun.server
      await begun.server.close()
      return create(options)
    },
  }
}
