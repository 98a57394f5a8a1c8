/**
 * From the options and the environment to what the shim is started with. Precedence is tsnet's
 * (tailscale.com/tsnet, "Authentication").
 */
import { isBuiltin } from 'node:module'
import { TsnetError } from './errors.ts'
import type { StartParams } from './protocol.ts'
import type { Network, ServerOptions } from './types.ts'

/**
 * What the options say, completed by the environment. As with tsnet an empty string is as good as
 * none.
 */
export function startParams(
  options: ServerOptions,
  env: NodeJS.ProcessEnv,
): Omit<StartParams, 'rootsPEM' | 'ownStore' | 'state' | 'stateFile'> {
  const authKey = options.authKey || env.TS_AUTHKEY || env.TS_AUTH_KEY || ''
  const controlURL = options.controlURL || env.TS_CONTROL_URL || ''
  return {
    hostname: options.hostname || 'tsnet',
    authKey,
    // A client secret given as the auth key is one too, by its prefix (tskey-client-).
    clientSecret: authKey ? '' : options.clientSecret || env.TS_CLIENT_SECRET || '',
    app: options.app || '',
    controlURL,
    bootstrapDNS: options.bootstrapDNS ?? isTailscales(controlURL),
    advertiseTags: options.advertiseTags ?? [],
    ephemeral: options.ephemeral ?? false,
    port: options.port ?? 0,
    verbose: options.verbose ?? false,
  }
}

/** Whether a control server is one of Tailscale's, which the empty string stands for. */
function isTailscales(controlURL: string): boolean {
  const host = URL.parse(controlURL)?.hostname ?? ''
  return controlURL === '' || host === 'tailscale.com' || host.endsWith('.tailscale.com')
}

/** Where HTTP proxies are named, by custom: Tailscale's control client and relays go by them. */
const proxyVariables = ['HTTPS_PROXY', 'HTTP_PROXY', 'NO_PROXY'].flatMap((name) => [
  name,
  name.toLowerCase(),
])

/**
 * The environment of the module: what is listed here and {@link ServerOptions.env}, nothing else of
 * the process's.
 */
export function moduleEnv(options: ServerOptions, env: NodeJS.ProcessEnv): Record<string, string> {
  return {
    // Tailscale's logs stay here: an appliance uploads nothing unless its owner says so.
    TS_NO_LOGS_NO_SUPPORT: 'true',
    ...(env.TSNET_FORCE_LOGIN && { TSNET_FORCE_LOGIN: env.TSNET_FORCE_LOGIN }),
    ...(env.TSNET_SIMD && { TSNET_SIMD: env.TSNET_SIMD }),
    ...Object.fromEntries(proxyVariables.flatMap((name) => (env[name] ? [[name, env[name]]] : []))),
    ...options.env,
  }
}

/** How packets are to leave the process. Throws TSNET_OPTIONS for what is no way. */
export function network(options: ServerOptions, env: NodeJS.ProcessEnv): Network {
  const asked = options.network || env.TSNET_NETWORK || 'auto'
  if (asked !== 'auto' && asked !== 'ffi' && asked !== 'node')
    throw new TsnetError('TSNET_OPTIONS', `network "${asked}" is none of auto, ffi, node`)
  // The worker thread has flags of its own: --no-experimental-ffi of this process is for all of it.
  if (asked === 'node' || isBuiltin('node:ffi')) return asked
  if (asked === 'ffi')
    throw new TsnetError(
      'TSNET_OPTIONS',
      'network "ffi" needs a Node.js with node:ffi; "auto" takes what there is',
    )
  return 'node'
}

/** Throws TSNET_OPTIONS for what cannot work, before anything is started. */
export function checkOptions(options: ServerOptions): void {
  const refuse = (message: string): never => {
    throw new TsnetError('TSNET_OPTIONS', message)
  }
  if (!options.dir && !options.store)
    refuse('dir is required (or a store): where the identity of the node is kept')
  if (
    options.store &&
    (typeof options.store.read !== 'function' || typeof options.store.write !== 'function')
  )
    refuse('store needs the functions read and write')
  if (options.port !== undefined) checkPort(options.port, 0)
  for (const tag of options.advertiseTags ?? []) {
    if (!/^tag:[a-zA-Z][a-zA-Z0-9-]*$/.test(tag))
      refuse(
        `advertiseTags: "${tag}": write tag: and a name of letters, digits and dashes that begins with a letter`,
      )
  }
  network(options, process.env)
  if (options.controlURL) {
    const url = URL.parse(options.controlURL)
    if (!url || !/^https?:$/.test(url.protocol))
      refuse(`controlURL "${options.controlURL}": use an http or https URL`)
  }
}

/** Throws TSNET_OPTIONS for what is no port. `least` 0 lets 0 stand for any. */
export function checkPort(port: number, least = 1): void {
  if (!Number.isInteger(port) || port < least || port > 65535)
    throw new TsnetError('TSNET_OPTIONS', `port ${port}: use ${least} to 65535`)
}

/** `host:port` as Go wants it. */
export function joinHostPort(host: string, port: number): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
}

/** The two parts of what Go writes as `100.64.0.1:443` or `[fd7a:115c:a1e0::1]:443`. */
export function splitHostPort(s: string): [string, number] {
  const at = s.lastIndexOf(':')
  return [s.slice(0, at).replace(/^\[|\]$/g, ''), Number(s.slice(at + 1))]
}
