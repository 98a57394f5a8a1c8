import { getCACertificates } from 'node:tls'
import { GatehouseError, reason } from '../../base/errors.ts'
import { requestText } from '../../base/request.ts'
import { defaultControlURL } from '../shared/control-words.ts'

/**
 * What a client of today says it can do (tailcfg.CurrentCapabilityVersion of the Tailscale that
 * src/tsnet is built from). A control server answers by it: Headscale has no keys for one of 1.
 */
export const capabilityVersion = 142

/**
 * Why a node that has been starting for a while has not joined: asks the control server for its
 * key, as any client does first, and words what goes wrong.
 *
 * @param authority PEM text: what its certificate may be verified by beside the public authorities
 * @param timeout in milliseconds
 */
export async function probeControl(
  controlURL: string = defaultControlURL,
  authority?: string,
  timeout = 5_000,
): Promise<GatehouseError> {
  const host = URL.parse(controlURL)?.host ?? controlURL
  const unreachable = (message: string, cure: string): GatehouseError =>
    new GatehouseError(
      'GH_CONTROL_UNREACHABLE',
      `the control server ${host} cannot be reached: ${message}`,
      cure,
    )
  const retry = 'The gateway goes on trying'
  const portal =
    'A network that wants you to log in on a page of its own first answers like this too: ' +
    'use another, or have this device let through.'
  try {
    // Not fetch, which refuses ports that browsers block.
    const { status, text } = await requestText(new URL(`/key?v=${capabilityVersion}`, controlURL), {
      ca: authority === undefined ? undefined : [...getCACertificates('default'), authority],
      timeout,
      most,
    })
    if (status >= 500) return unreachable(`it answers ${status}`, `Try again later. ${retry}`)
    if (!isKey(text))
      return unreachable(
        `something else answers in its place (${status})`,
        `Check control_url in gatehouse.toml. ${portal} ${retry}`,
      )
    return new GatehouseError(
      'GH_TAILNET_SLOW',
      `the control server ${host} answers, but the node has not joined yet`,
      `Wait a minute; if it stays so, restart the device. ${retry}`,
    )
  } catch (err) {
    // A host with several addresses fails with an AggregateError: its first error is the cause.
    const cause =
      err instanceof AggregateError && err.errors.length > 0
        ? (err.errors[0] as Error)
        : (err as Error)
    const code = (cause as NodeJS.ErrnoException).code ?? cause.name
    if (code === 'ENOTFOUND' || code === 'EAI_AGAIN')
      return unreachable(
        `its name is not found (${code})`,
        `Check the network cable or WiFi, the router's DNS, and control_url in gatehouse.toml. ${retry}`,
      )
    if (code === 'ENETUNREACH' || code === 'EHOSTUNREACH' || code === 'EADDRNOTAVAIL')
      return unreachable(
        `there is no network (${code})`,
        `Check the network cable or WiFi. ${retry}`,
      )
    if (code === 'ECONNREFUSED')
      return unreachable(
        'it refuses connections (ECONNREFUSED)',
        `Check control_url in gatehouse.toml and that the server runs. ${retry}`,
      )
    if (/CERT|SELF_SIGNED|ISSUER|SIGNATURE/.test(code))
      return unreachable(
        `its certificate is not trusted (${code})`,
        'Check control_url in gatehouse.toml, and ca_file under [tailnet] where the server ' +
          `has an authority of its own. ${portal} ${retry}`,
      )
    if (code === 'ETIMEDOUT')
      return unreachable(
        'no answer',
        `Check the internet connection and that the network lets TCP port 443 out. ${retry}`,
      )
    return unreachable(reason(err), `Check the network and control_url in gatehouse.toml. ${retry}`)
  }
}

/**
 * Whether this is what a control server has under /key: its keys as JSON, of old ones the key
 * alone. A login page is neither.
 */
function isKey(text: string): boolean {
  if (/^(mkey:)?[0-9a-f]{64}$/.test(text.trim())) return true
  try {
    const keys: unknown = JSON.parse(text)
    return typeof keys === 'object' && keys !== null
  } catch {
    return false
  }
}

/** The most that is read of an answer. Bytes. */
const most = 1 << 16
