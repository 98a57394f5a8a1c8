import type { ShownRefusal } from '../firewall/drop-log.ts'
import type { Tested } from '../alerts/run.ts'
import type { Checked, ShownSettings, Trial } from '../broker/settings.ts'
import type { Device } from '../broker/devices.ts'
import type { JournalLine } from '../broker/journal.ts'
import type { Outcome } from '../update/outcome.ts'
import type { BackupState } from '../gateway/operate/backups.ts'
import type { Shown } from '../gateway/operate/figures.ts'
import type { GatewayStatus } from '../gateway/operate/status.ts'

export type {
  BackupState,
  Checked,
  Device,
  GatewayStatus,
  JournalLine,
  ShownRefusal,
  Shown,
  ShownSettings,
  Tested,
  Trial,
}

/** `GET /api/v1/me`: who asks, and what they may do. */
export interface Me {
  who: string
  rights: string[]
  /** Nobody has been asked yet what a new device needs to know. */
  fresh?: boolean
}

/** One key of a table of `GET /api/v1/schema`. */
export interface SchemaKey {
  /** As in the file. */
  name: string
  kind?: string
  default?: unknown
  /** A value as TOML writes it. */
  example: string
  help?: string
  secret: boolean
}

/** One table of `GET /api/v1/schema`. */
export interface SchemaTable {
  table: string
  /** Whether there may be several: `[[table]]`. */
  list: boolean
  keys: SchemaKey[]
}

/** `POST /api/v1/tailnet/renew`. */
export interface Renewed {
  renewed: boolean
  loginURL?: string
}

/** `GET /api/v1/update`. */
export interface Update {
  last?: { text: string; failed: boolean } | null
  attempt?: Outcome | null
  /** What the version that runs has changed. */
  changes?: string[]
  /** The version that could be gone back to. */
  before?: string
  offered?: Offered
}

/** A version that is offered. */
export interface Offered {
  version: string
  changes: string[]
}

/** One entry of `GET /api/v1/audit`. */
export interface AuditEntry {
  at: string
  who: string
  what: string
  detail?: unknown
}

/** `GET /api/v1/access`. */
export interface Judged {
  who: string
  rights: string[]
  from: string
  why: string
  policy?: string
}

/** A call that came to nothing: what is wrong, and what to do about it. */
export class ApiError extends Error {
  readonly code: string
  readonly cure: string
  /** HTTP status; 0 when there was no answer at all. */
  readonly status: number
  /** Lines to copy that belong to the cure: those of the policy that would allow it. */
  readonly lines: string | undefined

  constructor(status: number, code: string, message: string, cure: string, lines?: string) {
    super(message)
    this.status = status
    this.code = code
    this.cure = cure
    this.lines = lines
  }
}

/** Milliseconds that the device's clock is ahead of the browser's, by its last answer's Date. */
let ahead = 0

/** Now, by the device's clock: what it says of times is compared with this. */
export function deviceNow(): number {
  return Date.now() + ahead
}

/** How long an answer may take. Milliseconds; a trial starts services anew. */
const patience = 90_000

/**
 * Asks the API and gives the answer as it is.
 *
 * @param wait milliseconds; 0: an answer that goes on and on, or takes as long as it takes
 * @throws ApiError
 */
export async function ask(
  path: string,
  init: RequestInit = {},
  wait: number = patience,
): Promise<Response> {
  const signals = [init.signal, wait === 0 ? undefined : AbortSignal.timeout(wait)].filter(
    (one) => one instanceof AbortSignal,
  )
  let answer: Response
  try {
    answer = await fetch(`/api/v1/${path}`, {
      ...init,
      cache: 'no-store',
      redirect: 'error',
      signal: AbortSignal.any(signals),
    })
  } catch {
    throw new ApiError(
      0,
      'GH_NO_ANSWER',
      'The device does not answer',
      'Check that this computer is on the tailnet. A restart takes about a minute',
    )
  }
  const date = Date.parse(answer.headers.get('date') ?? '')
  // Date has whole seconds.
  if (!Number.isNaN(date) && Math.abs(date - deviceNow()) > 1_500) ahead = date - Date.now()
  if (answer.ok) return answer
  const body = (await answer.json().catch(() => undefined)) as
    { error?: { code?: string; message?: string; cure?: string; lines?: string } } | undefined
  throw new ApiError(
    answer.status,
    body?.error?.code ?? `HTTP ${answer.status}`,
    body?.error?.message ?? `The device answers with status ${answer.status}`,
    body?.error?.cure ?? 'Load the page again',
    body?.error?.lines,
  )
}

/** GET, JSON. */
export async function get<T>(path: string, wait?: number): Promise<T> {
  const answer = await ask(path, { headers: { accept: 'application/json' } }, wait)
  return (await answer.json()) as T
}

/** POST, JSON both ways. */
export async function post<T>(path: string, body: object = {}, wait?: number): Promise<T> {
  const answer = await ask(
    path,
    {
      method: 'POST',
      headers: { accept: 'application/json', 'content-type': 'application/json' },
      body: JSON.stringify(body),
    },
    wait,
  )
  return (await answer.json()) as T
}

/** Lines of NDJSON as they come. Ends with the answer or by the signal. */
export async function* lines<T>(path: string, signal: AbortSignal): AsyncGenerator<T[]> {
  const answer = await ask(path, { signal, headers: { accept: 'application/x-ndjson' } }, 0)
  const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ''
  try {
    for (;;) {
      const { value, done } = await reader.read()
      if (done) return
      const parts = (rest + value).split('\n')
      rest = parts.pop()!
      yield parts.filter((part) => part !== '').map((part) => JSON.parse(part) as T)
    }
  } finally {
    await reader.cancel().catch(() => {})
  }
}
