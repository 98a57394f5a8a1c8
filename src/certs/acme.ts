import acme from 'acme-client'
import { X509Certificate, createPrivateKey } from 'node:crypto'
import { mkdir, readFile, rename } from 'node:fs/promises'
import { Agent, request } from 'node:https'
import type { RequestOptions } from 'node:https'
import type { ClientRequest, IncomingMessage } from 'node:http'
import { join } from 'node:path'
import { reason } from '../config/errors.ts'
import { writeFileAtomic } from '../config/files.ts'
import type { Failure } from './ledger.ts'

/** An attempt to get a certificate that failed, and what that means for the next one. */
export class IssueError extends Error {
  readonly kind: Failure
  /** Milliseconds the authority asked to wait. */
  readonly retryAfter: number | undefined
  readonly cure: string

  constructor (kind: Failure, message: string, cure: string, retryAfter?: number, options?: ErrorOptions) {
    super(message, options)
    this.kind = kind
    this.cure = cure
    this.retryAfter = retryAfter
  }
}

/** Options of {@link createIssuer}. */
export interface IssuerOptions {
  /** URL of the ACME directory. */
  directory: string
  /** PEM of the authorities trusted for the directory; default: the system's. */
  authorities: string | undefined
  email: string | undefined
  /** Directory of the account key. */
  state: string
  /** Publishes the TXT record of a dns-01 challenge. */
  publish: (name: string, value: string) => Promise<void>
}

/** Gets certificates by ACME (RFC 8555) with dns-01 challenges. */
export interface Issuer {
  /** @returns PEM of chain (leaf first) and fresh ECDSA P-256 key
   * @throws IssueError */
  issue: (name: string) => Promise<string>
}

/** Reads or makes the account key, and sets acme-client up for the directory. */
export async function createIssuer ({ directory, authorities, email, state, publish }: IssuerOptions): Promise<Issuer> {
  let answer: { status: number, retryAfter: number | undefined } | undefined
  const { defaults, interceptors } = acme.axios
  // ca replaces the built-in authorities: a person who names one means that one.
  defaults.httpsAgent = new Agent(authorities === undefined ? { keepAlive: false } : { keepAlive: false, ca: authorities })
  defaults.proxy = false
  defaults.timeout = 30_000
  // Waiting is the ledger's business: acme-client would sleep in memory, as long as the authority says, up to five times.
  ;(defaults as { acmeSettings?: { retryMaxAttempts: number } }).acmeSettings!.retryMaxAttempts = 0
  // acme-client 5.4.0 loses the error of a request that got no answer ("Cannot read properties of undefined"), so it is
  // noted where it happens. Redirects, which the built-in transport follows, have no place in ACME.
  let broken: Error | undefined
  ;(defaults as { transport?: unknown }).transport = {
    request: (options: RequestOptions, callback: (response: IncomingMessage) => void): ClientRequest =>
      request(options, callback).once('error', (err) => { broken = err }),
  }
  interceptors.response.use((response) => {
    broken = undefined
    answer = { status: response.status, retryAfter: parseRetryAfter(response.headers['retry-after'] as string | undefined) }
    return response
  })
  const accountKey = await readAccountKey(state)

  return {
    async issue (name) {
      answer = undefined
      broken = undefined
      let published = false
      const client = new acme.Client({ directoryUrl: directory, accountKey, backoffAttempts: 20, backoffMin: 1_000, backoffMax: 10_000 })
      try {
        const key = await acme.crypto.createPrivateEcdsaKey('P-256')
        const [, csr] = await acme.crypto.createCsr({ commonName: name, altNames: [name] }, key)
        // A known account is only looked up. Left to itself, `auto` sends it an update that changes nothing, which an authority may
        // refuse (Pebble does): the first certificate would be the last.
        await client.createAccount({ onlyReturnExisting: true }).catch((err: unknown) => { if (answer?.status !== 400) throw err })
        const chain = await client.auto({
          csr,
          ...(email === undefined ? {} : { email }),
          termsOfServiceAgreed: true,
          challengePriority: ['dns-01'],
          // Only the authority's view counts, and the firewall lets no other DNS query out.
          skipChallengeVerification: true,
          challengeCreateFn: async (_authz, challenge, value) => {
            if (challenge.type !== 'dns-01') throw new IssueError('refused', `the authority offers no dns-01 challenge for ${name}`, 'Use an authority that does')
            await publish(`_acme-challenge.${name}`, value)
            published = true
          },
          // The record is replaced by the next one; the control server keeps no others.
          challengeRemoveFn: async () => {},
        })
        return `${chain.trim()}\n${key.toString().trim()}\n`
      } catch (err) {
        throw explain(err instanceof IssueError ? err : broken ?? err, directory, answer as typeof answer, published)
      }
    },
  }
}

function explain (err: unknown, directory: string, answer: { status: number, retryAfter: number | undefined } | undefined, published: boolean): IssueError {
  if (err instanceof IssueError) return err
  const code = (err as NodeJS.ErrnoException).code ?? ''
  const host = URL.parse(directory)?.host ?? directory
  const options = { cause: err }
  if (/CERT|SELF_SIGNED|ISSUER|SIGNATURE/.test(code)) {
    return new IssueError('unreachable', `the certificate of the ACME directory ${host} is not trusted (${code})`, 'Check the clock, and ca_file in gatehouse.toml', undefined, options)
  }
  // A system error: there was no answer at all.
  if (/^E[A-Z_]+$/.test(code) && !code.startsWith('ERR_')) {
    return new IssueError('unreachable', `the ACME directory ${host} cannot be reached (${code})`, 'Check the network, and directory in gatehouse.toml', undefined, options)
  }
  if (answer?.status === 429) {
    return new IssueError('refused', `the authority ${host} limits the rate: ${reason(err)}`, 'Wait; restarting does not help', answer.retryAfter, options)
  }
  if (answer !== undefined && answer.status >= 500) {
    return new IssueError('unreachable', `the authority ${host} answers ${answer.status}: ${reason(err)}`, 'Wait', answer.retryAfter, options)
  }
  return new IssueError('refused', `the authority ${host} issues no certificate: ${reason(err)}`, published
    ? 'The challenge was published but not accepted; it is tried again later'
    : 'Check directory in gatehouse.toml', answer?.retryAfter, options)
}

/** Retry-After in milliseconds: seconds or an HTTP date (RFC 9110 §10.2.3). */
export function parseRetryAfter (value: string | undefined, now: number = Date.now()): number | undefined {
  if (value === undefined) return undefined
  if (/^\d+$/.test(value)) return Number(value) * 1000
  const date = Date.parse(value)
  return Number.isNaN(date) ? undefined : Math.max(0, date - now)
}

/** The account key, made once. A damaged one is put aside, not overwritten: it may be wanted. */
async function readAccountKey (state: string): Promise<string> {
  await mkdir(state, { recursive: true, mode: 0o700 })
  const path = join(state, 'account.pem')
  try {
    const pem = await readFile(path, 'utf8')
    createPrivateKey(pem)
    return pem
  } catch (err) {
    if ((err as NodeJS.ErrnoException).code !== 'ENOENT') await rename(path, `${path}.damaged`)
  }
  const pem = (await acme.crypto.createPrivateEcdsaKey('P-256')).toString()
  await writeFileAtomic(path, pem, 0o600)
  return pem
}

/** Serial number of a certificate's leaf, for the log. */
export function serialOf (pem: string): string {
  return new X509Certificate(pem).serialNumber
}
