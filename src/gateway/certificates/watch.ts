import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { reason } from '../../base/errors.ts'
import { writeFileAtomic } from '../../base/files.ts'
import { readRecord } from '../../certs/record.ts'
import type { CertsRecord } from '../../certs/record.ts'
import type { Logger } from '../shared/log.ts'
import type { Problems } from '../shared/problems.ts'
import type { Certificates } from './certificates.ts'
import { judgeCertificates, wantedAt } from './health.ts'
import { certificateNames } from './names.ts'
import type { NameSources } from './names.ts'

/** Options of {@link CertificateWatch}. */
export interface CertificateWatchOptions {
  log: Logger
  problems: Problems
  certificates: Certificates
  /** Directory of the certificates and of what the agent's last run left. */
  tls: string
  /** Directory for `names`, the list of names to have certificates for. */
  runtime: string
  /** What the names follow from. */
  sources: () => NameSources
  /** When the gateway was started. */
  startedAt: Date
}

/**
 * Watches over the certificates and the agent that gets them: tells it the names by a file, which
 * starts it (gatehouse-certs.path), reads what its last run left, and says what is wrong.
 */
export class CertificateWatch {
  #options: CertificateWatchOptions
  #record: CertsRecord | undefined
  /** What the file has; empty when it is to be written whatever it has. */
  #written = ''
  #writing = Promise.resolve()
  /** The record that the agent was started for. */
  #woken: string | undefined

  constructor(options: CertificateWatchOptions) {
    this.#options = options
  }

  /** What the agent's last run left; undefined before the first. */
  get record(): CertsRecord | undefined {
    return this.#record
  }

  /** Names there are to be certificates for. */
  get names(): string[] {
    return certificateNames(this.#options.sources())
  }

  /** Reads what the agent's last run left. */
  async read(): Promise<void> {
    this.#record = await readRecord(this.#options.tls)
  }

  /** Judges the certificates, and has the agent run when its record says that it is wanted. */
  async judge(): Promise<void> {
    const { certificates, problems, sources, startedAt } = this.#options
    const { names } = this
    if (names.length === 0) return
    const finding = judgeCertificates({
      names,
      certificates,
      record: this.#record,
      now: new Date(),
      uptime: Date.now() - startedAt.getTime(),
      mode: sources().settings.mode,
    })
    if (finding === undefined)
      problems.clear('certificate', 'there is a certificate for every name')
    else problems.set('certificate', finding.error, finding.severity)
    await this.#wake()
  }

  /** The next list of names is written even if it is the same: the agent is to look anew. */
  forget(): void {
    this.#written = ''
  }

  /** Tells the agent the names, if they have changed. */
  async tell(): Promise<void> {
    // One after the other: they have one temporary file.
    this.#writing = this.#writing.then(async () => {
      await this.#write()
    })
    await this.#writing
  }

  /** Once for each record. */
  async #wake(): Promise<void> {
    const at = wantedAt(this.#record)
    if (at === undefined || Date.now() < at.getTime() || this.#woken === this.#record?.checkedAt)
      return
    this.#woken = this.#record?.checkedAt
    this.forget()
    await this.tell()
  }

  async #write(): Promise<void> {
    const { log, runtime } = this.#options
    const { names } = this
    const text = names.map((name) => `${name}\n`).join('')
    if (names.length === 0 || text === this.#written) return
    this.#written = text
    try {
      await mkdir(runtime, { recursive: true })
      await writeFileAtomic(join(runtime, 'names'), text, 0o644)
    } catch (err) {
      this.#written = ''
      log.error(
        { code: 'GH_NAMES_WRITE' },
        `the list of names cannot be written, so no certificate is asked for: ${reason(err)}. ` +
          'Restart the device',
      )
    }
  }
}
