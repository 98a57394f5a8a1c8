import acme from 'acme-client'
import { X509Certificate, createPrivateKey } from 'node:crypto'
import { mkdir, readFile, rename } from 'node:fs/promises'
import { Agent, request } from 'node:https'
import type { RequestOptions } from 'node:https'
import type { ClientRequest, IncomingMessage } from 'node:http'
import { join } from 'node:path'
import { checkClock } from '../base/cures.ts'
import { reason } from '../base/errors.ts'
import { writeFileAtomic } from '../base/files.ts'
import type { RenewalInfo } from './ari.ts'
import { IssueError } from './failure.ts'
import type { Prover } from './proof.ts'
import { day } from '../base/time.ts'

/** Options of {@link createIssuer}. */
export interface IssuerOptions {
  /** URL of the ACME directory. */
  directory: string
  /** PEM of the authorities trusted for the directory; default: the system's. */
  authorities: string | undefined
  email: string | undefined
  /**
   * What a new account is bound to at the authority (RFC 8555 §7.3.4); default: nothing. The key is
   * base64url.
   */
  binding?: { keyId: string; hmacKey: string } | undefined
  /** Profile of certificates asked for; default: the authority's own choice. */
  profile?: string | undefined
  /**
   * Milliseconds a certificate is to be valid from now on (RFC 8555 §7.4, notBefore and notAfter);
   * default: the authority's own choice. Let's Encrypt refuses it.
   */
  lifetime?: number
  /** Directory of the account key. */
  state: string
  now?: () => Date
  /** Told what time the authority says it is, over TLS that was verified. */
  heard?: (time: Date) => Promise<void>
  /** Proves that a name is one's own. */
  prover: Prover
}

/** What {@link Issuer.issue} may be told besides the name. */
export interface IssueOptions {
  /**
   * The certificate this one replaces (RFC 9773 §5), as `certificateId` names it. Left out of the
   * order when the authority will not have it.
   */
  replaces?: string | undefined
  /** Told, in a line, what is worth knowing and no failure. */
  say?: (line: string) => void
  /** Called before the authority is asked to validate the name; what it throws ends the attempt. */
  validating?: () => Promise<void>
  /** Called before the authority is asked to issue; what it throws ends the attempt. */
  issuing?: () => Promise<void>
}

/** Gets certificates: by ACME (RFC 8555) with challenges in DNS, or from an authority of one's own. */
export interface Issuer {
  /** @returns PEM of chain (leaf first) and fresh ECDSA P-256 key
   * @throws IssueError */
  issue: (name: string, options?: IssueOptions) => Promise<string>
  /**
   * When the authority would have a certificate renewed (RFC 9773).
   *
   * @param id as `certificateId` gives it
   * @returns undefined when the authority has no such service
   * @throws IssueError
   */
  renewalInfo: (id: string) => Promise<RenewalInfo | undefined>
}

interface Answer {
  status: number
  type: string | undefined
  retryAfter: number | undefined
}

/** Parts of the directory (RFC 8555 §7.1.1) that acme-client knows nothing of. */
interface Directory {
  renewalInfo?: unknown
  meta?: { profiles?: Record<string, unknown> }
}

/** Reads or makes the account key, and sets acme-client up for the directory. */
export async function createIssuer({
  directory,
  authorities,
  email,
  binding,
  profile,
  lifetime,
  state,
  prover,
  now = () => new Date(),
  heard = async () => {},
}: IssuerOptions): Promise<Issuer> {
  let answer: Answer | undefined
  const { defaults, interceptors } = acme.axios
  // ca replaces the built-in authorities: a person who names one means that one.
  defaults.httpsAgent = new Agent(
    authorities === undefined ? { keepAlive: false } : { keepAlive: false, ca: authorities },
  )
  defaults.proxy = false
  defaults.timeout = 30_000
  // Waiting is the ledger's business: acme-client would sleep in memory, as long as the authority
  // says, up to five times.
  ;(defaults as { acmeSettings?: { retryMaxAttempts: number } }).acmeSettings!.retryMaxAttempts = 0
  // acme-client 5.4.0 loses the error of a request that got no answer ("Cannot read properties of
  // undefined"), so it is noted where it happens. Redirects, which the built-in transport follows,
  // have no place in ACME.
  let broken: Error | undefined
  ;(defaults as { transport?: unknown }).transport = {
    request: (
      options: RequestOptions,
      callback: (response: IncomingMessage) => void,
    ): ClientRequest =>
      request(options, callback).once('error', (err) => {
        broken = err
      }),
  }
  interceptors.response.use((response) => {
    broken = undefined
    const type = (response.data as { type?: unknown } | undefined)?.type
    answer = {
      status: response.status,
      type: typeof type === 'string' ? type : undefined,
      retryAfter: parseRetryAfter(response.headers['retry-after'] as string | undefined),
    }
    return response
  })
  const accountKey = await readAccountKey(state)

  let known: Promise<Directory> | undefined
  const readDirectory = async (): Promise<Directory> => {
    const { status, data, headers } = await acme.axios.get<unknown>(directory, {
      validateStatus: null,
    })
    const told = new Date(String(headers.date))
    if (!Number.isNaN(told.getTime())) {
      if (told.getTime() > now().getTime() + day) {
        throw new IssueError(
          'GH_CERTS_CLOCK',
          `the clock says ${now().toISOString()}, and the authority ` +
            `${URL.parse(directory)?.host} that it is ${told.toISOString()}`,
          checkClock,
        )
      }
      await heard(told)
    }
    if (status !== 200 || typeof data !== 'object' || data === null)
      throw new Error(`its directory answers ${status}`)
    return data
  }
  /** Runs some requests; what they throw becomes an IssueError. */
  const asking = async <T>(
    what: string,
    run: () => Promise<T>,
    stage: () => Stage = () => 'directory',
  ): Promise<T> => {
    answer = undefined
    broken = undefined
    try {
      return await run()
    } catch (err) {
      throw explain(
        what,
        err instanceof IssueError ? err : (broken ?? err),
        directory,
        answer,
        stage(),
      )
    }
  }
  const learn = async (): Promise<Directory> => {
    known ??= readDirectory()
    known.catch(() => {
      known = undefined
    })
    return await known
  }

  return {
    async renewalInfo(id) {
      return await asking('does not say when to renew', async () => {
        const { renewalInfo } = await learn()
        if (typeof renewalInfo !== 'string') return undefined
        const { status, data } = await acme.axios.get<{
          suggestedWindow?: { start?: string; end?: string }
          explanationURL?: unknown
          detail?: string
        }>(`${renewalInfo.replace(/\/$/, '')}/${id}`, { validateStatus: null })
        if (status !== 200) throw new Error(data?.detail ?? `it answers ${status}`)
        const [start, end] = [
          new Date(data?.suggestedWindow?.start ?? ''),
          new Date(data?.suggestedWindow?.end ?? ''),
        ]
        if (!(start < end)) throw new Error('its window has no end after its start')
        const explanation =
          typeof data.explanationURL === 'string' && /^https?:\/\//.test(data.explanationURL)
            ? data.explanationURL
            : undefined
        return { start, end, explanation, retryAfter: answer?.retryAfter }
      })
    },

    async issue(
      name,
      { replaces, say = () => {}, validating = async () => {}, issuing = async () => {} } = {},
    ) {
      let stage: Stage = 'directory'
      const wildcard = name.startsWith('*.')
      const base = name.replace(/^\*\./, '')
      await prover.prepare(base, wildcard)
      const client = new acme.Client({
        directoryUrl: directory,
        accountKey,
        ...(binding === undefined
          ? {}
          : { externalAccountBinding: { kid: binding.keyId, hmacKey: binding.hmacKey } }),
        backoffAttempts: 20,
        backoffMin: 1_000,
        backoffMax: 10_000,
      })
      // Five, its own number, are too few for an authority that refuses every other nonce.
      ;(client as unknown as { http: { maxBadNonceRetries: number } }).http.maxBadNonceRetries = 25
      return await asking(
        'issues no certificate',
        async () => {
          const { renewalInfo, meta } = await learn()
          if (profile !== undefined && !Object.hasOwn(meta?.profiles ?? {}, profile)) {
            const offered = Object.keys(meta?.profiles ?? {})
            throw new IssueError(
              'GH_CERTS_ORDER',
              `the authority has no profile ${JSON.stringify(profile)}`,
              offered.length === 0
                ? 'Remove profile from gatehouse.toml'
                : `Write one of ${offered.join(', ')} in gatehouse.toml`,
            )
          }
          const order = client.createOrder.bind(client)
          client.createOrder = async (data) => {
            stage = 'order'
            const start = now().getTime()
            const asked = {
              ...data,
              ...(profile === undefined ? {} : { profile }),
              ...(lifetime === undefined
                ? {}
                : {
                    notBefore: new Date(start).toISOString(),
                    notAfter: new Date(start + lifetime).toISOString(),
                  }),
            }
            if (replaces === undefined || typeof renewalInfo !== 'string') return await order(asked)
            return await order({ ...asked, replaces } as typeof asked).catch(
              async (err: unknown) => {
                // It was replaced before (alreadyReplaced, 409), or is none of this authority's or
                // account's: the order counts, not the word.
                if (
                  answer === undefined ||
                  answer.status < 400 ||
                  [429, 502, 503, 504].includes(answer.status)
                )
                  throw err
                say(
                  `${name}: the authority takes the order for no renewal (${reason(err)}): it is made as a new one`,
                )
                return await order(asked)
              },
            )
          }
          const complete = client.completeChallenge.bind(client)
          client.completeChallenge = async (challenge) => {
            await validating()
            stage = 'validation'
            return await complete(challenge)
          }
          const finalize = client.finalizeOrder.bind(client)
          client.finalizeOrder = async (...order) => {
            stage = 'finalization'
            await issuing()
            return await finalize(...order)
          }
          const key = await acme.crypto.createPrivateEcdsaKey('P-256')
          const [, csr] = await acme.crypto.createCsr({ commonName: name, altNames: [name] }, key)
          // A known account is only looked up. Left to itself, `auto` sends it an update that
          // changes nothing, which an authority may refuse (Pebble does): the first certificate
          // would be the last.
          stage = 'account'
          await client.createAccount({ onlyReturnExisting: true }).catch((err: unknown) => {
            if (answer?.status !== 400) throw err
          })
          // acme-client knows no such challenge. What the authority gets is the same: an empty
          // object.
          const authorize = client.getChallengeKeyAuthorization.bind(client)
          client.getChallengeKeyAuthorization = async (challenge) =>
            (challenge.type as string) === 'dns-persist-01' ? '' : await authorize(challenge)
          const chain = await client.auto({
            csr,
            ...(email === undefined ? {} : { email }),
            termsOfServiceAgreed: true,
            challengePriority: [prover.challenge],
            // Only the authority's view counts, and the firewall lets no other DNS query out.
            skipChallengeVerification: true,
            challengeCreateFn: async (_authz, challenge, value) => {
              if ((challenge.type as string) !== prover.challenge)
                throw new IssueError(
                  'GH_CERTS_ORDER',
                  `the authority offers no ${prover.challenge} challenge for ${name}`,
                  prover.challenge === 'dns-01'
                    ? 'Use an authority that does'
                    : 'Use an authority that does, or another proof: "rfc2136" or "acme-dns" in gatehouse.toml',
                )
              if (prover.challenge === 'dns-01')
                await prover.publish(`_acme-challenge.${base}`, value)
              else
                await prover.persist(base, wildcard, {
                  issuers: issuersOf(challenge),
                  account: client.getAccountUrl(),
                })
            },
            challengeRemoveFn: async (_authz, challenge, value) => {
              if (challenge.type === 'dns-01')
                await prover.withdraw(`_acme-challenge.${base}`, value)
            },
          })
          return `${chain.trim()}\n${key.toString().trim()}\n`
        },
        () => stage,
      )
    },
  }
}

/**
 * What the authority calls itself in records of dns-persist-01.
 *
 * @throws IssueError when the challenge does not say
 */
function issuersOf(challenge: object): string[] {
  const names = (challenge as { 'issuer-domain-names'?: unknown })['issuer-domain-names']
  const valid = (Array.isArray(names) ? names : []).filter(
    (name): name is string => typeof name === 'string' && /^[A-Za-z0-9.-]+$/.test(name),
  )
  if (valid.length > 0) return valid
  throw new IssueError(
    'GH_CERTS_ORDER',
    'the authority does not say what its name in a dns-persist-01 record is',
    'Use another authority, or another proof: "rfc2136" or "acme-dns" in gatehouse.toml',
  )
}

/** How far an attempt got: it says whose fault a refusal is. */
type Stage = 'directory' | 'account' | 'order' | 'validation' | 'finalization'

function explain(
  what: string,
  err: unknown,
  directory: string,
  answer: Answer | undefined,
  stage: Stage,
): IssueError {
  if (err instanceof IssueError) return err
  const code = (err as NodeJS.ErrnoException).code ?? ''
  const host = URL.parse(directory)?.host ?? directory
  const options = { retryAfter: answer?.retryAfter, cause: err }
  if (code === 'CERT_NOT_YET_VALID') {
    return new IssueError(
      'GH_CERTS_CLOCK',
      `the certificate of the ACME directory ${host} is not valid yet by this clock`,
      checkClock,
      { cause: err },
    )
  }
  if (/CERT|SELF_SIGNED|ISSUER|SIGNATURE/.test(code)) {
    return new IssueError(
      'GH_CERTS_AUTHORITY_DOWN',
      `the certificate of the ACME directory ${host} is not trusted (${code})`,
      'Check the clock, and ca_file in gatehouse.toml',
      { cause: err },
    )
  }
  // A system error: there was no answer at all.
  if (/^E[A-Z_]+$/.test(code) && !code.startsWith('ERR_')) {
    return new IssueError(
      'GH_CERTS_AUTHORITY_DOWN',
      `the ACME directory ${host} cannot be reached (${code})`,
      'Check the network, and directory in gatehouse.toml',
      { cause: err },
    )
  }
  const type = answer?.type?.replace(/^urn:ietf:params:acme:error:/, '')
  if (type === 'badNonce')
    return new IssueError(
      'GH_CERTS_AUTHORITY_DOWN',
      `the authority ${host} refused every nonce it gave out`,
      'Wait',
      options,
    )
  if (answer?.status === 429)
    return new IssueError(
      'GH_CERTS_RATE_LIMITED',
      `the authority ${host} limits the rate: ${reason(err)}`,
      'Wait; restarting does not help',
      options,
    )
  if (answer !== undefined && answer.status >= 500)
    return new IssueError(
      'GH_CERTS_AUTHORITY_DOWN',
      `the authority ${host} answers ${answer.status}: ${reason(err)}`,
      'Wait',
      options,
    )
  const message = `the authority ${host} ${what}: ${reason(err)}`
  if (type === 'externalAccountRequired')
    return new IssueError(
      'GH_CERTS_ACCOUNT',
      message,
      'Ask the authority for a key to bind the account with, and write eab_key_id and eab_hmac_key into gatehouse.toml',
      options,
    )
  if (stage === 'account')
    return new IssueError(
      'GH_CERTS_ACCOUNT',
      message,
      'Check email, eab_key_id and eab_hmac_key in gatehouse.toml',
      options,
    )
  // acme-client reports the challenge's own error, which the answer's status (200) does not tell
  // from others.
  if (stage === 'validation')
    return new IssueError(
      'GH_CERTS_DNS',
      message,
      'The challenge was published but not accepted; it is tried again later',
      options,
    )
  if (stage === 'directory')
    return new IssueError(
      'GH_CERTS_AUTHORITY_DOWN',
      message,
      'Check directory in gatehouse.toml',
      options,
    )
  return new IssueError(
    'GH_CERTS_ORDER',
    message,
    'Look at what the authority says. It is tried again later',
    options,
  )
}

/** Retry-After in milliseconds: seconds or an HTTP date (RFC 9110 §10.2.3). */
export function parseRetryAfter(
  value: string | undefined,
  now: number = Date.now(),
): number | undefined {
  if (value === undefined) return undefined
  if (/^\d+$/.test(value)) return Number(value) * 1000
  const date = Date.parse(value)
  return Number.isNaN(date) ? undefined : Math.max(0, date - now)
}

/**
 * The account key, made once. A damaged one is put aside, not overwritten: it may be wanted. One
 * that cannot be read is not damaged: a new account would have the authority's limits begin anew,
 * and whoever closed the old file may open it again.
 */
async function readAccountKey(state: string): Promise<string> {
  await mkdir(state, { recursive: true, mode: 0o700 })
  const path = join(state, 'account.pem')
  const there = await readFile(path, 'utf8').catch((err: NodeJS.ErrnoException) => {
    if (err.code === 'ENOENT') return undefined
    throw new IssueError(
      'GH_CERTS_TAMPERED',
      `the account key ${path} cannot be read: ${reason(err)}`,
      'Restart the device; if it stays so, the card is worn: make a backup and use another',
      { cause: err },
    )
  })
  if (there !== undefined) {
    try {
      createPrivateKey(there)
      return there
    } catch {
      await rename(path, `${path}.damaged`)
    }
  }
  const pem = (await acme.crypto.createPrivateEcdsaKey('P-256')).toString()
  await writeFileAtomic(path, pem, 0o600)
  return pem
}

/** Serial number of a certificate's leaf, for the log. */
export function serialOf(pem: string): string {
  return new X509Certificate(pem).serialNumber
}
