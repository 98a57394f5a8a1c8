/**
 * The ID token that a platform signs for the workload that runs on it, for a given audience: of
 * GitHub Actions and of Google Cloud. As tailscale.com/wif, which has AWS too: that wants a request
 * to STS signed with the instance's credentials, which is what its SDK is for.
 */
import { TsnetError } from './errors.ts'

/** How long each request may take, in ms. */
const REQUEST_MS = 5_000
/** The most of an answer that is told in an error, in characters. */
const TOLD = 300

async function ask(what: string, url: URL, headers: Record<string, string>): Promise<Response> {
  let res: Response
  try {
    res = await fetch(url, { headers, redirect: 'error', signal: AbortSignal.timeout(REQUEST_MS) })
  } catch (err) {
    const { message } = ((err as Error).cause ?? err) as Error
    throw new TsnetError('TSNET_AUTH', `${what}: ${message}`, { cause: err })
  }
  if (res.ok) return res
  const text = (await res.text()).slice(0, TOLD).trim()
  throw new TsnetError('TSNET_AUTH', `${what}: ${res.status} ${text}`)
}

/**
 * GitHub Actions tells a job with `permissions: id-token: write` where to ask, and by what right.
 */
async function ofGitHub(base: string, right: string, audience: string): Promise<string> {
  const url = new URL(base)
  url.searchParams.set('audience', audience)
  const headers = { Authorization: `Bearer ${right}`, Accept: 'application/json' }
  const res = await ask('GitHub Actions gave no ID token', url, headers)
  return ((await res.json()) as { value?: string }).value ?? ''
}

/** The metadata server of Google Cloud (Compute Engine, GKE, Cloud Run): the service account's. */
async function ofGoogle(host: string, audience: string): Promise<string> {
  const path = '/computeMetadata/v1/instance/service-accounts/default/identity'
  const url = new URL(path, `http://${host}`)
  url.search = new URLSearchParams({ audience, format: 'full' }).toString()
  const what =
    'no ID token: this is neither a job of GitHub Actions with the permission id-token: write, ' +
    'nor a machine of Google Cloud; elsewhere give idToken, or a function that gets one'
  const res = await ask(what, url, { 'Metadata-Flavor': 'Google' })
  if (res.headers.get('metadata-flavor') !== 'Google') throw new TsnetError('TSNET_AUTH', what)
  return (await res.text()).trim()
}

/**
 * The token. GitHub Actions comes first: its jobs may run on any cloud. GCE_METADATA_HOST names
 * another metadata server, as with Google's own libraries. Throws TSNET_AUTH.
 */
export async function platformToken(audience: string, env: NodeJS.ProcessEnv): Promise<string> {
  const { ACTIONS_ID_TOKEN_REQUEST_URL: url, ACTIONS_ID_TOKEN_REQUEST_TOKEN: right } = env
  const token =
    url && right
      ? await ofGitHub(url, right, audience)
      : await ofGoogle(env.GCE_METADATA_HOST || 'metadata.google.internal', audience)
  if (!token) throw new TsnetError('TSNET_AUTH', 'no ID token: the platform’s answer has none')
  return token
}
