import { EventEmitter } from 'node:events'
import { watch } from 'node:fs'
import type { FSWatcher } from 'node:fs'
import { readFile, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { createSecureContext } from 'node:tls'
import type { SecureContext } from 'node:tls'
import { parseCertificate } from '../certs/pem.ts'
import type { Certificate } from '../certs/pem.ts'
import { oneLine, reason } from '../config/errors.ts'
import type { Logger } from './log.ts'

interface Loaded { certificate: Certificate, context: SecureContext }

/**
 * The certificates in a directory (`<name>.pem`), kept current: it is watched, and looked at each hour in case a change was
 * missed. A new file takes the place of the old one only when it holds together; connections that are open keep X
 */
export class Certificates extends EventEmitter {
  #directory: string
  #log: Logger
  #loaded = new Map<string, Loaded>()
  #refused = new Map<string, string>()
  #watcher: FSWatcher | undefined
  #timer: NodeJS.Timeout | undefined
  #soon: NodeJS.Timeout | undefined
  #loading: Promise<void> | undefined
  #again = false
  #closed = false

  constructor (directory: string, log: Logger) {
    super()
    this.#directory = directory
    this.#log = log
  }

  /** Loads what is there and starts watching. */
  async start (): Promise<void> {
    await this.#look()
  }

  /** Names there is a certificate for. */
  get names (): string[] { return [...this.#loaded.keys()] }

  /** The certificate of a name. */
  get (name: string): Certificate | undefined { return this.#loaded.get(name)?.certificate }

  /** What is wrong with the file of a name, when it was refused. */
  refused (name: string): string | undefined { return this.#refused.get(name) }

  /** TLS context for the name a client asks for (SNI); for an unknown or missing name that of `preferred`, else the first. */
  context (servername: string | undefined, preferred?: string): SecureContext | undefined {
    const loaded = this.#loaded.get(servername?.toLowerCase() ?? '') ?? this.#loaded.get(preferred ?? '') ?? this.#loaded.values().next().value
    return loaded?.context
  }

  close (): void {
    this.#closed = true
    this.#watcher?.close()
    clearTimeout(this.#timer)
    clearTimeout(this.#soon)
  }

  async #look (): Promise<void> {
    clearTimeout(this.#timer)
    if (this.#closed) return
    this.#watch()
    await this.reload()
    if (this.#closed) return
    // Without a watch (the directory does not exist yet) looking often is all there is.
    this.#timer = setTimeout(() => { void this.#look() }, this.#watcher === undefined ? 5_000 : 3_600_000)
    this.#timer.unref()
  }

  #watch (): void {
    if (this.#watcher !== undefined) return
    try {
      const watcher = watch(this.#directory, { persistent: false }, () => {
        clearTimeout(this.#soon)
        this.#soon = setTimeout(() => { void this.reload() }, 100)
      })
      const stop = (): void => {
        watcher.close()
        if (this.#watcher === watcher) this.#watcher = undefined
      }
      watcher.once('error', () => { stop(); void this.#look() })
      this.#watcher = watcher
    } catch {
      this.#watcher = undefined
    }
  }

  /** Looks at the directory now. Never rejects: what is wrong is logged, once, and what was loaded stays. */
  async reload (): Promise<void> {
    if (this.#loading !== undefined) {
      this.#again = true
      return await this.#loading
    }
    this.#loading = (async () => {
      do {
        this.#again = false
        await this.#read()
      } while (this.#again)
    })().finally(() => { this.#loading = undefined })
    await this.#loading
  }

  async #read (): Promise<void> {
    let files: string[]
    try {
      files = (await readdir(this.#directory)).filter((file) => file.endsWith('.pem') && !file.startsWith('.'))
    } catch (err) {
      if ((err as NodeJS.ErrnoException).code !== 'ENOENT') this.#refuse('', `${this.#directory} cannot be read: ${reason(err)}`)
      return
    }
    let changed = false
    for (const file of files) {
      const name = file.slice(0, -'.pem'.length)
      try {
        const certificate = parseCertificate(await readFile(join(this.#directory, file), 'utf8'), name)
        this.#refused.delete(name)
        if (this.#loaded.get(name)?.certificate.serial === certificate.serial) continue
        const context = createSecureContext({ cert: certificate.chain, key: certificate.key, minVersion: 'TLSv1.2' })
        this.#loaded.set(name, { certificate, context })
        changed = true
        this.#log.info({ name, serial: certificate.serial, notAfter: certificate.notAfter }, `certificate for ${name} in use, valid until ${certificate.notAfter.toISOString()}`)
      } catch (err) {
        changed = this.#refuse(name, `${file} is not used: ${reason(err)}`) || changed
      }
    }
    if (changed) this.emit('change')
    this.emit('look')
  }

  #refuse (name: string, message: string): boolean {
    if (this.#refused.get(name) === message) return false
    this.#refused.set(name, message)
    this.#log.warn({ code: 'GH_CERTIFICATE_REFUSED' }, oneLine(`${message}. ${this.#loaded.has(name) ? 'The one before stays in use' : 'Run systemctl start gatehouse-certs to get a new one'}`))
    return true
  }
}
