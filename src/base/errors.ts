/**
 * The one error type a person is meant to read: what is wrong, and what to do about it.
 */
export class GatehouseError extends Error {
  override readonly name: string = 'GatehouseError'
  /** Stable identifier, `GH_…`: what logs, status and tests go by. */
  readonly code: string
  /** What to do about it, in the imperative. */
  readonly cure: string

  constructor(code: string, message: string, cure: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
    this.cure = cure
  }

  /** Cause and cure in one line, fit for the journal. */
  get line(): string {
    return `${oneLine(this.message)}. ${oneLine(this.cure)} (${this.code})`
  }
}

/**
 * Folds white space, so that text from elsewhere cannot break a one-line record (or forge a second
 * one).
 */
export function oneLine(text: string): string {
  // eslint-disable-next-line no-control-regex
  return text.replace(/[\s\u0000-\u001f\u007f]+/g, ' ').trim()
}

/**
 * Text that another user has written, for a terminal: line breaks stay, and what a terminal would
 * obey, or show as something else than it is (control characters, those of direction), is `\uFFFD`.
 */
export function printable(text: string): string {
  return text.replaceAll(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (character) =>
    character === '\n' ? '\n' : '\uFFFD',
  )
}

/**
 * Message of whatever was thrown; the code of a system error (ENOENT and the like) comes first when
 * the message lacks it.
 */
export function reason(err: unknown): string {
  if (!(err instanceof Error)) return oneLine(String(err))
  const code = (err as NodeJS.ErrnoException).code
  const inner =
    err.cause instanceof Error &&
    err.cause.message !== '' &&
    !err.message.includes(err.cause.message)
      ? `: ${reason(err.cause)}`
      : ''
  // AggregateError of a failed connect (happy eyeballs) has an empty message; its first error says
  // it.
  const text =
    err.message === '' && err instanceof AggregateError && err.errors.length > 0
      ? reason(err.errors[0])
      : err.message
  return oneLine(
    (code !== undefined && !text.includes(code) && /^E[A-Z0-9]+$/.test(code)
      ? `${code}: ${text}`
      : text) + inner,
  )
}
