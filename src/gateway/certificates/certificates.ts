import { EventEmitter } from 'node:events'
import { watch } from 'node:fs'
import type { FSWatcher } from 'node:fs'
import { randomBytes } from 'node:crypto'
import { readFile, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { createSecureContext } from 'node:tls'
import type { SecureContext } from 'node:tls'
import { certificateName, parseCertificate } from '../../certs/pem.ts'
import type { Certificate } from '../../certs/pem.ts'
import { oneLine, reason } from '../../base/errors.ts'
import { ciphers } from './ciphers.ts'
import type { Logger } from '../shared/log.ts'

interface Loaded {
  certificate: Certificate
  context: SecureContext
}

/**
 * How long session tickets are sealed with the same key. Milliseconds; a ticket itself is good for
 * two hours at most (OpenSSL's default).
 */
const ticketKeyLife = 6 * 3_600_000

/**
 * The certificates in a directory (`<name>.pem`), kept current: it is watched, and looked at each
 * hour in case a change was missed. A new file takes the place of the old one only when it holds
 * together; connections that are open keep theirs. A file that vanishes takes nothing away: only a
 * name the node does not have any more is served no longer.
 *
 * Emits `change` when something else is served than before, and `look` after each look.
 */
export class Certificates extends EventEmitter {
  #directory: string
  #log: Logger
  #loaded = new Map<string, Loaded>()
  #refused = new Map<string, string>()
  #wanted: string[] = []
  /**
   * Of all names together: which one a client wants is known only after its ticket was opened. In
   * memory alone (RFC 5077 §5.5).
   */
  #ticketKeys = randomBytes(48)
  #rotation: NodeJS.Timeout | undefined
  #watcher: FSWatcher | undefined
  #timer: NodeJS.Timeout | undefined
  #soon: NodeJS.Timeout | undefined
  #loading: Promise<void> | undefined
  #again = false
  #closed = false

  constructor(directory: string, log: Logger) {
    super()
    this.#directory = directory
    this.#log = log
  }

  /** Loads what is there and starts watching. */
  async start(): Promise<void> {
    await this.#look()
    this.#rotation = setInterval(() => {
      this.rotateTicketKeys()
    }, ticketKeyLife)
    this.#rotation.unref()
  }

  /**
   * The names the node has. Others are served no longer, nor loaded; none at all says nothing: it
   * has not joined.
   */
  want(names: string[]): void {
    if (names.length === 0 || names.join() === this.#wanted.join()) return
    this.#wanted = [...names]
    for (const name of [...this.#loaded.keys(), ...this.#refused.keys()]) {
      if (names.includes(name)) continue
      this.#refused.delete(name)
      if (this.#loaded.delete(name))
        this.#log.info(
          { name },
          `certificate for ${name} served no longer: the node does not have that name any more`,
        )
    }
    void this.reload()
  }

  /**
   * New keys for session tickets from now on. A client with a ticket of before gets a full
   * handshake, which it takes for normal. Without this, whoever takes a key out of the process's
   * memory once can read what was resumed with it ever since.
   */
  rotateTicketKeys(): void {
    this.#ticketKeys = randomBytes(48)
    for (const [name, { certificate }] of this.#loaded)
      this.#loaded.set(name, { certificate, context: this.#context(certificate) })
  }

  #context({ chain, key }: Certificate): SecureContext {
    return createSecureContext({
      cert: chain,
      key,
      minVersion: 'TLSv1.2',
      ticketKeys: this.#ticketKeys,
      ...ciphers(),
    })
  }

  /** Names there is a certificate for. */
  get names(): string[] {
    return [...this.#loaded.keys()]
  }

  /** The certificate of a name. */
  get(name: string): Certificate | undefined {
    return this.#loaded.get(name)?.certificate
  }

  /** The certificate that a connection to a name is served with: its own, or a wildcard's. */
  covering(name: string): Certificate | undefined {
    return this.#covering(name)?.certificate
  }

  #covering(name: string): Loaded | undefined {
    const exact = this.#loaded.get(name)
    const dot = name.indexOf('.')
    return exact ?? (dot > 0 ? this.#loaded.get(`*${name.slice(dot)}`) : undefined)
  }

  /** What is wrong with the file of a name, when it was refused. */
  refused(name: string): string | undefined {
    return this.#refused.get(name)
  }

  /**
   * TLS context for the name a client asks for (SNI); for an unknown or missing name that of
   * `preferred`, else the first.
   */
  context(servername: string | undefined, preferred?: string): SecureContext | undefined {
    const loaded =
      this.#covering(servername?.toLowerCase() ?? '') ??
      this.#covering(preferred ?? '') ??
      this.#loaded.values().next().value
    return loaded?.context
  }

  close(): void {
    this.#closed = true
    this.#watcher?.close()
    clearTimeout(this.#timer)
    clearTimeout(this.#soon)
    clearInterval(this.#rotation)
  }

  async #look(): Promise<void> {
    clearTimeout(this.#timer)
    if (this.#closed) return
    this.#watch()
    await this.reload()
    if (this.#closed) return
    // Without a watch (the directory does not exist yet) looking often is all there is.
    this.#timer = setTimeout(
      () => {
        void this.#look()
      },
      this.#watcher === undefined ? 5_000 : 3_600_000,
    )
    this.#timer.unref()
  }

  #watch(): void {
    if (this.#watcher !== undefined) return
    try {
      const watcher = watch(this.#directory, { persistent: false }, () => {
        clearTimeout(this.#soon)
        this.#soon = setTimeout(() => {
          void this.reload()
        }, 100)
      })
      const stop = (): void => {
        watcher.close()
        if (this.#watcher === watcher) this.#watcher = undefined
      }
      watcher.once('error', () => {
        stop()
        void this.#look()
      })
      this.#watcher = watcher
    } catch {
      this.#watcher = undefined
    }
  }

  /**
   * Looks at the directory now. Never rejects: what is wrong is logged, once, and what was loaded
   * stays.
   */
  async reload(): Promise<void> {
    if (this.#loading !== undefined) {
      this.#again = true
      return await this.#loading
    }
    this.#loading = (async () => {
      do {
        this.#again = false
        await this.#read()
      } while (this.#again)
    })().finally(() => {
      this.#loading = undefined
    })
    await this.#loading
  }

  async #read(): Promise<void> {
    let files: string[]
    try {
      files = (await readdir(this.#directory)).filter((file) => certificateName(file) !== undefined)
    } catch (err) {
      if ((err as NodeJS.ErrnoException).code !== 'ENOENT')
        this.#refuse('', `${this.#directory} cannot be read: ${reason(err)}`)
      return
    }
    let changed = false
    let fresh = false
    for (const file of files) {
      const name = certificateName(file)!
      if (this.#wanted.length > 0 && !this.#wanted.includes(name)) continue
      try {
        const certificate = parseCertificate(
          await readFile(join(this.#directory, file), 'utf8'),
          name,
        )
        this.#refused.delete(name)
        const held = this.#loaded.get(name)?.certificate
        if (held?.chain === certificate.chain && held.key === certificate.key) continue
        // Proven by OpenSSL too, before it takes the place of the one before.
        this.#loaded.set(name, { certificate, context: this.#context(certificate) })
        fresh = true
        changed = true
        this.#log.info(
          { name, serial: certificate.serial, notAfter: certificate.notAfter },
          `certificate for ${name} in use, valid until ${certificate.notAfter.toISOString()}`,
        )
      } catch (err) {
        changed = this.#refuse(name, `${file} is not used: ${reason(err)}`) || changed
      }
    }
    // Sessions do not outlive the certificate they began under.
    if (fresh) this.rotateTicketKeys()
    if (changed) this.emit('change')
    this.emit('look')
  }

  #refuse(name: string, message: string): boolean {
    if (this.#refused.get(name) === message) return false
    this.#refused.set(name, message)
    this.#log.warn(
      { code: 'GH_CERTIFICATE_REFUSED' },
      oneLine(
        `${message}. ${this.#loaded.has(name) ? 'The one before stays in use' : 'The device gets a new one within the hour'}`,
      ),
    )
    return true
  }
}
