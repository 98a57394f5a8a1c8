/**
 * Ports of the node's name, each an origin of its own to browsers (RFC 6454 §4: scheme, host and
 * port), so that no page of one can act in another (src/gateway/access/request-origin.ts). 8443 and
 * 10000 are those that Tailscale's Funnel has beside 443, and so known to those who use it.
 */
export const ports = {
  /** Node-RED's editor, and [[app]] by path. */
  editor: 443,
  /** What flows serve. */
  flows: 8_443,
  /** The gateway's own pages. */
  own: 10_000,
} as const

/** An origin as browsers write it: without the port that is https's own. */
export function originOf(name: string, port: number): string {
  return `https://${authorityOf(name, port)}`
}

/** Name and port as Host has them: without the port that is https's own. */
export function authorityOf(name: string, port: number): string {
  return port === 443 ? name : `${name}:${port}`
}
