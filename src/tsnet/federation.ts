/**
 * Workload identity federation: an auth key for a token that the platform signs (a CI job, a pod),
 * with no secret to keep. As tailscale.com/feature/identityfederation, here rather than in the
 * module: it is two requests.
 */
import { TsnetError } from './errors.ts'

/** Tailscale's control server, which has the API too. */
const API = 'https://controlplane.tailscale.com'
/** How long each request may take, in ms. */
const REQUEST_MS = 10_000

/** What a key is made of. */
export interface Federation {
  /** The federated credential's client ID, with `?ephemeral=false&preauthorized=true` after it. */
  clientID: string
  idToken: string | (() => string | Promise<string>)
  /** Control server; empty: Tailscale's. */
  controlURL: string
  tags: string[]
}

const refuse = (message: string, cause?: unknown): never => {
  throw new TsnetError('TSNET_AUTH', message, { cause })
}

/** The attributes behind a client ID. As Tailscale has it: ephemeral unless they say otherwise. */
function attributes(clientID: string): { id: string; ephemeral: boolean; preauthorized: boolean } {
  const [id = '', query] = clientID.split('?', 2)
  const of = { id, ephemeral: query === undefined, preauthorized: false }
  for (const [name, value] of new URLSearchParams(query)) {
    if ((name !== 'ephemeral' && name !== 'preauthorized') || !/^(true|false)$/.test(value))
      throw new TsnetError(
        'TSNET_OPTIONS',
        `clientID: "${name}=${value}": use ephemeral and preauthorized, each true or false`,
      )
    of[name] = value === 'true'
  }
  return of
}

async function post<T>(what: string, url: string, init: RequestInit): Promise<T> {
  let text = ''
  let status = 0
  try {
    const res = await fetch(url, {
      ...init,
      method: 'POST',
      redirect: 'error',
      signal: AbortSignal.timeout(REQUEST_MS),
    })
    status = res.status
    text = await res.text()
    if (res.ok) return JSON.parse(text) as T
  } catch (err) {
    return refuse(`${what}: ${((err as Error).cause as Error)?.message ?? (err as Error).message}`)
  }
  return refuse(`${what}: ${status} ${text.slice(0, 300).trim()}`)
}

/**
 * A single-use auth key. Throws TSNET_AUTH in the API's words, TSNET_OPTIONS for what cannot work.
 */
export async function federatedKey({
  clientID,
  idToken,
  controlURL,
  tags,
}: Federation): Promise<string> {
  const { id, ephemeral, preauthorized } = attributes(clientID)
  if (tags.length === 0)
    throw new TsnetError(
      'TSNET_OPTIONS',
      'clientID needs advertiseTags: a key made for a workload is tagged',
    )
  const base = controlURL.replace(/\/+$/, '') || API
  const token = typeof idToken === 'function' ? await idToken() : idToken
  const { access_token: access } = await post<{ access_token?: string }>(
    'no access token for the ID token',
    `${base}/api/v2/oauth/token-exchange`,
    {
      // As an OAuth client sends it (RFC 6749 section 4.1.3), with the token in place of a code.
      body: new URLSearchParams({
        grant_type: 'authorization_code',
        code: '',
        client_id: id,
        jwt: token,
      }),
    },
  )
  if (!access) refuse('no access token for the ID token: the answer has none')
  const { key } = await post<{ key?: string }>(
    'no auth key could be made for the workload',
    `${base}/api/v2/tailnet/-/keys`,
    {
      headers: {
        Authorization: `Basic ${Buffer.from(`${access}:`).toString('base64')}`,
        'Content-Type': 'application/json',
      },
      body: JSON.stringify({
        capabilities: {
          devices: { create: { reusable: false, ephemeral, preauthorized, tags } },
        },
      }),
    },
  )
  return key || refuse('no auth key could be made for the workload: the answer has none')
}
