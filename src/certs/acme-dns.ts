import { requestText } from '../base/request.ts'

/** An account at an acme-dns server (https://github.com/joohoi/acme-dns, README, "API"). */
export interface AcmeDNSAccount {
  user: string
  password: string
  /** What its TXT record is called, below the server's domain. */
  subdomain: string
  /** The record's full name; undefined where only the other three are known. */
  fullDomain: string | undefined
}

/** What an acme-dns server answered when it did not do as it was asked. */
export class AcmeDNSRefusal extends Error {
  readonly status: number
  constructor(status: number, said: string) {
    super(`it answers ${status}${said === '' ? '' : ` (${said})`}`)
    this.status = status
  }
}

/** The most that is read of an answer. Bytes. */
const most = 1 << 16

/** An acme-dns server. `authorities`: PEM of those its https is verified by; default: the system's. */
export class AcmeDNS {
  #url: URL
  #authorities: string | undefined
  #timeout: number

  constructor(url: string, authorities: string | undefined, timeout = 15_000) {
    this.#url = new URL(url)
    this.#authorities = authorities
    this.#timeout = timeout
  }

  /** Makes an account. */
  async register(): Promise<AcmeDNSAccount> {
    const body = await this.#post('register', {}, '')
    const { username, password, subdomain, fulldomain } = (body ?? {}) as Record<string, unknown>
    for (const value of [username, password, subdomain, fulldomain])
      if (typeof value !== 'string' || !/^[A-Za-z0-9._~+/=-]{1,256}$/.test(value))
        throw new AcmeDNSRefusal(200, 'not an account')
    return {
      user: username as string,
      password: password as string,
      subdomain: subdomain as string,
      fullDomain: (fulldomain as string).toLowerCase().replace(/\.$/, ''),
    }
  }

  /** Publishes a challenge's value: 43 characters, base64url. */
  async update({ user, password, subdomain }: AcmeDNSAccount, value: string): Promise<void> {
    await this.#post(
      'update',
      { 'x-api-user': user, 'x-api-key': password },
      JSON.stringify({ subdomain, txt: value }),
    )
  }

  async #post(path: string, headers: Record<string, string>, body: string): Promise<unknown> {
    const url = new URL(`${this.#url.pathname.replace(/\/$/, '')}/${path}`, this.#url)
    const { status, text } = await requestText(url, {
      method: 'POST',
      headers: { ...headers, 'content-type': 'application/json' },
      body,
      ca: this.#authorities === undefined ? undefined : [this.#authorities],
      timeout: this.#timeout,
      most,
    })
    let parsed: unknown
    try {
      parsed = JSON.parse(text)
    } catch {
      parsed = undefined
    }
    if (status >= 200 && status < 300 && parsed !== undefined) return parsed
    throw new AcmeDNSRefusal(status, said(parsed))
  }
}

/** The server's word for what is wrong: `{"error":"forbidden"}`. */
function said(body: unknown): string {
  const error = (body as { error?: unknown } | undefined)?.error
  return typeof error === 'string' ? error.slice(0, 80) : ''
}
