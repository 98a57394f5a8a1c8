/**
 * From the options and the environment to what the shim is started with. Precedence is tsnet's
 * (tailscale.com/tsnet, "Authentication").
 */
import { isBuiltin } from 'node:module'
import { isIP } from 'node:net'
import { TsnetError } from './errors.ts'
import type { Federation } from './federation.ts'
import { platformToken } from './platform.ts'
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
    advertiseRoutes: options.advertiseRoutes ?? [],
    acceptRoutes: options.acceptRoutes ?? false,
    app: options.app || '',
    controlURL,
    bootstrapDNS: options.bootstrapDNS ?? isTailscales(controlURL),
    advertiseTags: options.advertiseTags ?? [],
    ephemeral: options.ephemeral ?? options.memory ?? false,
    port: options.port ?? 0,
    tun: options.tun || '',
    verbose: options.verbose !== undefined && options.verbose !== false,
  }
}

/** What a key is made of by workload identity; undefined where that is not asked for. */
export function federation(
  options: ServerOptions,
  env: NodeJS.ProcessEnv,
  params: Pick<StartParams, 'authKey' | 'clientSecret' | 'controlURL' | 'advertiseTags'>,
): Federation | undefined {
  if (params.authKey || params.clientSecret) return undefined
  const clientID = options.clientID || env.TS_CLIENT_ID || ''
  const idToken = options.idToken || env.TS_ID_TOKEN || ''
  const audience = options.audience || env.TS_AUDIENCE || ''
  if (!clientID && !idToken && !audience) return undefined
  if (idToken && audience)
    throw new TsnetError('TSNET_OPTIONS', 'workload identity: give idToken or audience, not both')
  if (!clientID || (!idToken && !audience)) {
    const missing = clientID ? 'idToken (or audience)' : 'clientID'
    throw new TsnetError(
      'TSNET_OPTIONS',
      `workload identity needs both clientID and idToken (or audience): ${missing} is missing`,
    )
  }
  return {
    clientID,
    idToken: idToken || (() => platformToken(audience, env)),
    controlURL: params.controlURL,
    tags: params.advertiseTags,
  }
}

/** The level of a line of Tailscale's log, and the line without the mark. */
export function logLevel(line: string): { level: number; text: string } {
  const mark = /\[v([12])\] /.exec(line)
  return mark
    ? { level: Number(mark[1]), text: line.replace(mark[0], '') }
    : { level: 0, text: line }
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

/** Of the process's environment what the worker thread itself needs: where temporary files go. */
export function workerEnv(env: NodeJS.ProcessEnv): Record<string, string> {
  const names = ['TMPDIR', 'TEMP', 'TMP', 'SystemRoot', 'windir']
  return Object.fromEntries(names.flatMap((name) => (env[name] ? [[name, env[name]]] : [])))
}

/** How packets are to leave the process. Throws TSNET_OPTIONS for what is no way. */
export function network(options: ServerOptions, env: NodeJS.ProcessEnv): Network {
  const asked = options.network || env.TSNET_NETWORK || 'auto'
  if (asked !== 'auto' && asked !== 'ffi' && asked !== 'node')
    throw new TsnetError('TSNET_OPTIONS', `network "${asked}" is not valid: use auto, ffi or node`)
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
  if (!options.dir && !options.store && !options.memory)
    refuse('dir is required (or a store, or memory): where the identity of the node is kept')
  if (options.memory && options.store)
    refuse('memory keeps the identity nowhere, a store keeps it: give one of both')
  if (
    options.store &&
    (typeof options.store.read !== 'function' || typeof options.store.write !== 'function')
  )
    refuse('store needs the functions read and write')
  if (options.port !== undefined) checkPort(options.port, 0)
  for (const tag of options.advertiseTags ?? []) {
    if (!/^tag:[a-zA-Z][a-zA-Z0-9-]*$/.test(tag))
      refuse(
        `advertiseTags: "${tag}": write tag: and a name of letters, digits and dashes ` +
          'that begins with a letter',
      )
  }
  for (const route of options.advertiseRoutes ?? []) {
    const [address = '', bits] = route.split('/')
    const family = isIP(address)
    if (!family || !/^\d+$/.test(bits ?? '') || Number(bits) > (family === 4 ? 32 : 128))
      refuse(`advertiseRoutes: "${route}": write it as 192.168.1.0/24`)
    if (bits === '0')
      refuse(
        `advertiseRoutes: "${route}": to be an exit node is not supported (TCP alone is forwarded)`,
      )
  }
  if (![undefined, true, false, 0, 1, 2].includes(options.verbose))
    refuse(`verbose: ${String(options.verbose)}: use true, false, 0, 1 or 2`)
  const way = network(options, process.env)
  if (options.tun) checkTun(options, way)
  if (options.controlURL) {
    const url = URL.parse(options.controlURL)
    if (!url || !/^https?:$/.test(url.protocol))
      refuse(`controlURL "${options.controlURL}": use an http or https URL`)
  }
}

/**
 * Throws TSNET_OPTIONS where there can be no tun device of that name, whatever the machine allows.
 */
function checkTun({ tun, advertiseRoutes = [] }: ServerOptions, way: Network): void {
  const refuse = (message: string): never => {
    throw new TsnetError('TSNET_OPTIONS', `tun "${tun}": ${message}`)
  }
  // As Linux has it (dev_valid_name); a % would be a pattern for a free number.
  if (!/^[^\s/:%\0]{1,15}$/.test(tun!) || tun === '.' || tun === '..' || !/^[!-~]*$/.test(tun!))
    refuse('the name of an interface has 1 to 15 characters of ASCII without space, "/", ":", "%"')
  if (process.platform !== 'linux' || way === 'node')
    refuse('needs Linux and network "ffi" (node:ffi); without tun the node has a stack of its own')
  if (advertiseRoutes.length > 0)
    refuse('advertiseRoutes is not supported with it: leave one of both out')
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
