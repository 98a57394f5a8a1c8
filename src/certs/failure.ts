/**
 * What can go wrong with a certificate, by the code that logs, `gatehouse status` and metrics name
 * it with; and what each means for the next attempt: `soon` (nothing was asked of the authority
 * that it counts) or `later` (it said no, or validation failed).
 */
export const failures = {
  /** A record that a person is to set is not in DNS yet. */
  GH_CERTS_RECORD: 'often',
  /** The name server, or acme-dns, did not take the proof. */
  GH_CERTS_UPDATE: 'soon',
  /** A secret is neither on the card nor kept on the device. */
  GH_CERTS_SECRET: 'soon',
  /** The certificate from the card cannot be put in place. */
  GH_CERTS_FILES: 'soon',
  /** HTTPS is not enabled on the tailnet: there is no name to have a certificate for. */
  GH_CERTS_HTTPS_DISABLED: 'soon',
  /** The gateway does not answer, or has no names yet. */
  GH_CERTS_NAMES: 'soon',
  /** The control server did not publish the challenge. */
  GH_CERTS_CHALLENGE: 'soon',
  /** The authority did not find the challenge in DNS. */
  GH_CERTS_DNS: 'later',
  /** The authority cannot be reached, is not trusted, or answers with an error of its own. */
  GH_CERTS_AUTHORITY_DOWN: 'soon',
  /** The authority limits the rate, or this agent does before the authority would. */
  GH_CERTS_RATE_LIMITED: 'later',
  /** The authority refuses the account or what it is bound to. */
  GH_CERTS_ACCOUNT: 'later',
  /** The authority refuses the order, or it turned invalid. */
  GH_CERTS_ORDER: 'later',
  /** What the authority sent is not fit to be used. */
  GH_CERTS_UNFIT: 'later',
  /** No space or permission to write: nothing is asked for that could not be kept. */
  GH_CERTS_DISK: 'soon',
  /** The run was cut short: a power cut, a kill, a crash. */
  GH_CERTS_INTERRUPTED: 'soon',
  /** The file in place was no whole certificate with its key. */
  GH_CERTS_MISMATCH: 'soon',
  /** Something else than this agent changed what is in its directory. */
  GH_CERTS_TAMPERED: 'soon',
  /** The clock is behind. */
  GH_CERTS_CLOCK: 'soon',
  /** Anything else, such as settings that cannot be read. */
  GH_CERTS: 'soon',
} as const

/** Code of a failure. */
export type FailureCode = keyof typeof failures

/** Whether a text is the code of a failure: files from disk may hold anything. */
export function isFailureCode(value: unknown): value is FailureCode {
  return typeof value === 'string' && Object.hasOwn(failures, value)
}

/** An attempt to get a certificate that failed, and what that means for the next one. */
export class IssueError extends Error {
  readonly code: FailureCode
  readonly cure: string
  /** Milliseconds the authority asked to wait. */
  readonly retryAfter: number | undefined

  constructor(
    code: FailureCode,
    message: string,
    cure: string,
    options: { retryAfter?: number | undefined; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
    this.cure = cure
    this.retryAfter = options.retryAfter
  }
}
