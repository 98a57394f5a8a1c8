import { X509Certificate } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { writeFileAtomic } from '../base/files.ts'
import { renewAt } from './pem.ts'
import type { Certificate } from './pem.ts'
import { minute } from '../base/time.ts'

/** When an authority would have a certificate renewed (RFC 9773 §4.2). */
export interface RenewalInfo {
  start: Date
  end: Date
  /** Page that says why, when the authority gives one. */
  explanation: string | undefined
  /** Milliseconds until it may be asked again, as it says. */
  retryAfter: number | undefined
}

/**
 * What an authority calls a certificate (RFC 9773 §4.1): key identifier of its issuer and its
 * serial number, both base64url. Undefined when it names no key of its issuer.
 */
export function certificateId(certificate: X509Certificate): string | undefined {
  try {
    // Certificate → TBSCertificate → [0] version, serialNumber, signature, issuer, validity,
    // subject, key, … [3] extensions.
    const fields = children(children(children(certificate.raw)[0]!.content)[0]!.content)
    const serial = fields.find(({ tag }) => tag === 0x02)!.content
    const extensions = children(
      children(fields.find(({ tag }) => tag === 0xa3)!.content)[0]!.content,
    )
    for (const extension of extensions) {
      const parts = children(extension.content)
      // 2.5.29.35, authorityKeyIdentifier
      if (!parts[0]!.content.equals(Buffer.from('551d23', 'hex'))) continue
      const identifier = children(children(parts.at(-1)!.content)[0]!.content).find(
        ({ tag }) => tag === 0x80,
      )
      if (identifier !== undefined)
        return `${identifier.content.toString('base64url')}.${serial.toString('base64url')}`
    }
  } catch {
    // No certificate an authority of RFC 5280 issues: it is renewed by its lifetime.
  }
  return undefined
}

interface Element {
  tag: number
  content: Buffer
}

/** The DER elements side by side in some bytes. */
function children(data: Buffer): Element[] {
  const elements: Element[] = []
  for (let at = 0; at < data.length;) {
    const tag = data[at]!
    let length = data[at + 1]!
    let begin = at + 2
    if (length > 0x80) {
      const size = length - 0x80
      length = data.readUIntBE(begin, size)
      begin += size
    }
    if (begin + length > data.length) throw new RangeError('DER ends early')
    elements.push({ tag, content: data.subarray(begin, begin + length) })
    at = begin + length
  }
  return elements
}

/** How often an authority is asked: as it says, between a minute and a day (RFC 9773 §4.3.2). */
const [soonest, latest] = [minute, 24 * 60 * minute]
/** Where it does not say, or gives an error that will not pass (§4.3.2, §4.3.3). */
const usual = 6 * 60 * minute

interface Plan {
  directory: string
  id: string
  /** The window the moment was chosen from; none when the authority has said nothing yet. */
  window?: { start: number; end: number; at: number }
  /** When the authority is to be asked again. */
  check: number
}

/** A moment to renew at. */
export interface Moment {
  at: Date
  /** What it comes from. */
  from: 'authority' | 'lifetime'
}

/**
 * When each certificate is to be renewed, kept on disk: a moment once chosen stays, or each restart
 * would throw the dice again and the certificates of all gatehouses would be renewed early in their
 * windows.
 */
export class Plans {
  #path: string
  #directory: string
  #plans: Record<string, Plan>
  #gone: Record<string, number>

  private constructor(
    path: string,
    directory: string,
    plans: Record<string, Plan>,
    gone: Record<string, number>,
  ) {
    this.#path = path
    this.#directory = directory
    this.#plans = plans
    this.#gone = gone
  }

  /**
   * @param state the agent's state directory
   * @param directory URL of the ACME directory
   */
  static async open(state: string, directory: string): Promise<Plans> {
    const path = join(state, 'renewals.json')
    const plans: Record<string, Plan> = {}
    const gone: Record<string, number> = {}
    try {
      const parsed = JSON.parse(await readFile(path, 'utf8')) as {
        plans?: Record<string, Plan>
        gone?: Record<string, number>
      }
      for (const [name, plan] of Object.entries(parsed.plans ?? {})) {
        const { window } = plan
        if (typeof plan.id !== 'string' || !Number.isFinite(plan.check)) continue
        if (
          window !== undefined &&
          !(
            Number.isFinite(window.start) &&
            Number.isFinite(window.end) &&
            Number.isFinite(window.at)
          )
        )
          continue
        plans[name] = plan
      }
      for (const [name, since] of Object.entries(parsed.gone ?? {}))
        if (Number.isFinite(since)) gone[name] = since
    } catch {
      // Missing or damaged: the authority is asked anew.
    }
    return new Plans(path, directory, plans, gone)
  }

  /**
   * The moment to renew a certificate at. The authority is asked when it is time to; whatever goes
   * wrong with that, there is an answer: what it said before, or else two thirds of the lifetime.
   *
   * @param ask gets the authority's word; undefined when it gives none to anybody
   * @param said told what was chosen, and what went wrong
   */
  async moment(
    certificate: Certificate,
    now: number,
    ask: (id: string) => Promise<RenewalInfo | undefined>,
    said: (line: string) => void,
  ): Promise<Moment> {
    const { name } = certificate
    const id = certificateId(new X509Certificate(certificate.chain))
    const fallback: Moment = { at: renewAt(certificate), from: 'lifetime' }
    if (id === undefined) return fallback
    let plan = Object.hasOwn(this.#plans, name) ? this.#plans[name] : undefined
    if (plan !== undefined && (plan.id !== id || plan.directory !== this.#directory))
      plan = undefined
    // A check further off than any wait comes from a clock that was wrong.
    if (plan === undefined || plan.check <= now || plan.check > now + latest) {
      plan = { ...plan, directory: this.#directory, id, check: now + usual }
      try {
        const info = await ask(id)
        if (info === undefined) {
          delete plan.window
          plan.check = now + latest
        } else {
          const [start, end] = [info.start.getTime(), info.end.getTime()]
          if (plan.window?.start !== start || plan.window.end !== end) {
            plan.window = { start, end, at: Math.round(start + Math.random() * (end - start)) }
            said(
              `${name}: the authority would have its certificate renewed between ` +
                `${info.start.toISOString()} and ${info.end.toISOString()}, which is done at ` +
                `${cap(plan.window.at, certificate).toISOString()}${info.explanation === undefined ? '' : `: see ${info.explanation}`}`,
            )
          }
          plan.check = now + Math.min(latest, Math.max(soonest, info.retryAfter ?? usual))
        }
      } catch (err) {
        const { retryAfter, message } = err as { retryAfter?: number; message: string }
        // An hour later at the latest, which is when the timer comes round.
        plan.check = now + Math.min(latest, Math.max(soonest, retryAfter ?? 60 * minute))
        said(
          `${name}: the authority does not say when to renew (${message}): ` +
            `${plan.window === undefined ? 'two thirds of the lifetime count' : 'what it said before counts'}`,
        )
      }
      this.#plans[name] = plan
      await this.#write()
    }
    return plan.window === undefined
      ? fallback
      : { at: cap(plan.window.at, certificate), from: 'authority' }
  }

  /** Forgets the plan for a certificate that was replaced. */
  async forget(name: string): Promise<void> {
    if (!Object.hasOwn(this.#plans, name)) return
    delete this.#plans[name]
    await this.#write()
  }

  /**
   * Notes which names have certificates but are wanted no more.
   *
   * @returns milliseconds each has been away
   */
  async away(names: string[], now: number): Promise<Record<string, number>> {
    const before = JSON.stringify(this.#gone)
    // A time to come is from a clock that was wrong.
    this.#gone = Object.fromEntries(
      names.map((name) => [
        name,
        Math.min(now, Object.hasOwn(this.#gone, name) ? this.#gone[name]! : now),
      ]),
    )
    if (JSON.stringify(this.#gone) !== before) await this.#write()
    return Object.fromEntries(
      Object.entries(this.#gone).map(([name, since]) => [name, now - since]),
    )
  }

  async #write(): Promise<void> {
    await writeFileAtomic(
      this.#path,
      `${JSON.stringify({ plans: this.#plans, gone: this.#gone })}\n`,
      0o600,
    )
  }
}

/**
 * No authority is waited for beyond four fifths of the lifetime: there must be time left to fail
 * in, and at five sixths the gateway calls a certificate not renewed.
 */
function cap(
  at: number,
  { notBefore, notAfter }: Pick<Certificate, 'notBefore' | 'notAfter'>,
): Date {
  const from = notBefore.getTime()
  return new Date(Math.min(at, from + ((notAfter.getTime() - from) * 4) / 5))
}
