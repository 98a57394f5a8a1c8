/**
 * Names of headers that are the gateway's own, by whom they are set and which way they go. What
 * gatehouse.toml may change (header-rules.ts) and what the gateway passes on (apps/headers.ts) are
 * decided by the same lists.
 */

/** Headers of a message, names in lower case. */
export type Headers = Record<string, string | string[]>

/**
 * The request header in which the gateway tells Node-RED who asks (adminAuth's tokenHeader). Copies
 * that come in are deleted.
 */
export const channelHeader = 'x-gatehouse-user'

/**
 * Request headers by which apps commonly learn who asks, from where, or for which address. Only a
 * proxy in front may say so: set by the gateway or by nobody. The first ones are `tailscale
 * serve`'s (ipn/ipnlocal/serve.go, addTailscaleIdentityHeaders and addAppCapabilitiesHeader); then
 * those of nginx, Authelia, authentik, Pomerium, Vouch, oauth2-proxy, mod_auth_openidc, SiteMinder,
 * IBM's and Oracle's proxies, Kong, Grafana's auth proxy, IIS and CDNs.
 */
const ownedPrefix =
  /^(?:tailscale|x-tailscale|x-forwarded|x-gatehouse|x-webauth|x-auth-request|x-remote|remote|x-original|x-rewrite|x-ssl-client|ssl-client|x-client-cert|cf-access|x-goog-authenticated|x-ms-client-principal|x-amzn-oidc|x-authentik|x-authenticated|x-pomerium|x-vouch|oidc-claim|x-azure|wl-proxy|iv)(?:-|$)/
const owned = new Set([
  'forwarded',
  'x-real-ip',
  'x-client-ip',
  'x-cluster-client-ip',
  'forwarded-for',
  'true-client-ip',
  'cf-connecting-ip',
  'cf-connecting-ipv6',
  'cf-pseudo-ipv4',
  'fastly-client-ip',
  'fly-client-ip',
  'client-ip',
  'proxy-client-ip',
  'incap-client-ip',
  'x-sucuri-clientip',
  'x-originating-ip',
  'x-proxyuser-ip',
  'x-envoy-external-address',
  'x-user',
  'x-username',
  'x-email',
  'x-groups',
  'x-token-user-name',
  'x-consumer-username',
  'x-credential-identifier',
  'x-jwt-assertion',
  'sm-user',
  'x-host',
  'x-forward-for',
  // CGI hands it on as HTTP_PROXY, by which programs choose a proxy (CVE-2016-5385).
  'proxy',
  'front-end-https',
  'x-url-scheme',
  'x-scheme',
])

/**
 * Whether a request header is the gateway's own word to the app, so that a copy that comes in is
 * deleted. Underscores count as hyphens, as CGI and many servers fold them.
 *
 * @param name in lower case
 */
export function isOwned(name: string): boolean {
  const folded = name.includes('_') ? name.replaceAll('_', '-') : name
  return owned.has(folded) || ownedPrefix.test(folded)
}

/** Hop-by-hop headers (RFC 9110 §7.6.1), and Expect, which the gateway has answered itself. */
export const hopByHop: ReadonlySet<string> = new Set([
  'connection',
  'keep-alive',
  'proxy-connection',
  'proxy-authenticate',
  'proxy-authorization',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
  'http2-settings',
  'expect',
])

/** What says where a message ends and how it is packed: made anew for each side. */
const framing = new Set(['content-length', 'content-encoding', 'content-range', 'accept-encoding'])

/**
 * Response headers that say what software answers, to nobody's use but an attacker's; and
 * Strict-Transport-Security, since whether the name is served over TLS is the gateway's to say; and
 * what would widen an app beyond its paths.
 */
export const leaks: ReadonlySet<string> = new Set([
  'server',
  'x-powered-by',
  'x-aspnet-version',
  'x-aspnetmvc-version',
  'x-generator',
  'x-runtime',
  'strict-transport-security',
  // A service worker rules below its own folder, and not over others' paths of the same origin.
  'service-worker-allowed',
])

/** Response headers that only the gateway sets. */
const ownAnswer = new Set(['strict-transport-security', 'cache-status', 'date', 'age'])

/**
 * Why a header is not for [[app]] to change, whether with a request to the app or with its answer;
 * undefined when it is. Underscores count as hyphens, as some origins take them.
 */
export function ownHeader(name: string, direction: 'request' | 'answer'): string | undefined {
  const folded = name.toLowerCase().replaceAll('_', '-')
  if (hopByHop.has(folded) || framing.has(folded) || folded.startsWith('sec-websocket-'))
    return 'of the connection, not of the message: the gateway sets it itself'
  if (direction === 'request' && (folded === 'host' || isOwned(folded)))
    return "the gateway's own word to the app, which nothing may change"
  if (direction === 'answer' && ownAnswer.has(folded)) return "the gateway's own word to the peer"
  return undefined
}
