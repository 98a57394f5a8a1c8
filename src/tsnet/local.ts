/** Tailscale's LocalAPI, and what is made of it: over the node's in-memory listener, no socket. */
import { TsnetError } from './errors.ts'

/** What the LocalAPI answered (a status of 2xx). */
export class LocalAnswer {
  readonly status: number
  readonly contentType: string
  readonly body: Buffer

  /** @internal Made by Server.localAPI. */
  constructor(status: number, contentType: string, body: Buffer) {
    this.status = status
    this.contentType = contentType
    this.body = body
  }

  /** The body as text (UTF-8). */
  text(): string {
    return this.body.toString()
  }

  /** The body, which must be JSON. */
  json<T = unknown>(): T {
    return JSON.parse(this.text()) as T
  }
}

/** A certificate and its key, PEM each. */
export interface CertPair {
  /** The certificate, and the chain to its authority. */
  cert: string
  key: string
}

/** The LocalAPI's answer as it crosses from the module (go/local.go, localAnswer). */
export interface RawAnswer {
  status: number
  contentType: string
  /** Base64. */
  body: string
}

/** The body of a request: text and bytes as they are, all else as JSON; base64, as Go wants it. */
export function encodeBody(body: unknown): string {
  if (body === undefined) return ''
  if (body instanceof Uint8Array) return Buffer.from(body).toString('base64')
  const text = typeof body === 'string' ? body : JSON.stringify(body)
  return Buffer.from(text).toString('base64')
}

/** Throws TSNET_BACKEND, in the LocalAPI's words, for a status other than 2xx. */
export function decodeAnswer(method: string, path: string, raw: RawAnswer): LocalAnswer {
  const answer = new LocalAnswer(raw.status, raw.contentType, Buffer.from(raw.body, 'base64'))
  if (answer.status >= 200 && answer.status < 300) return answer
  let words = answer.text().trim()
  try {
    words = answer.json<{ error?: string }>().error || words
  } catch {
    // Most of its errors are plain text.
  }
  throw new TsnetError('TSNET_BACKEND', `localAPI ${method} ${path}: ${answer.status} ${words}`)
}

/** Takes `?type=pair` apart: the key comes first. */
export function splitPair(pem: string): CertPair {
  const at = pem.indexOf('-----BEGIN CERTIFICATE-----')
  if (at <= 0 || !pem.includes('PRIVATE KEY-----'))
    throw new TsnetError('TSNET_BACKEND', 'the backend gave no certificate with its key')
  return { key: pem.slice(0, at), cert: pem.slice(at) }
}
