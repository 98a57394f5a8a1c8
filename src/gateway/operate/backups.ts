import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { request as httpRequest } from 'node:http'
import type { IncomingMessage, RequestOptions } from 'node:http'
import { join } from 'node:path'
import { PassThrough, Transform } from 'node:stream'
import type { Duplex, Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { connect as tlsConnect } from 'node:tls'
import { GatehouseError, reason } from '../../base/errors.ts'
import { writeFileAtomic } from '../../base/files.ts'
import { day } from '../../base/time.ts'
import type { Config } from '../../config/config.ts'
import type { Logger } from '../shared/log.ts'
import type { Problems } from '../shared/problems.ts'

/** Answer of `GET /api/v1/backup`. Times are RFC 3339. */
export interface BackupState {
  /** Whether [backup] asks for one each night. */
  nightly: boolean
  /** The folder where they are kept. */
  to?: string
  /** The last one that was kept and read back. */
  last?: Kept
  /** What went wrong since. */
  failure?: { at: string; message: string }
  /** One is being made now. */
  busy: boolean
}

/** A backup that a peer keeps. */
export interface Kept {
  at: string
  name: string
  /** Bytes. */
  size: number
  /** Files and folders that the rehearsal found in it. */
  entries: number
}

/** Options of {@link Backups}. */
export interface BackupsOptions {
  /** Where the state is kept; undefined: in memory. */
  state: string | undefined
  /** The broker's socket. */
  broker: string
  problems: Problems
  log: Logger
  /** The device's full name. */
  name: () => string | undefined
  /** A connection over the tailnet. */
  dial: (host: string, port: number) => Promise<Duplex>
}

/** One that is not there after this long is late. Milliseconds. */
const late = 1.5 * day

/** After a failure it is tried again after this long. Milliseconds. */
const pause = 3_600_000

/** A peer that neither takes nor gives anything for so long has gone. Milliseconds. */
const patience = 120_000

const weekdays = ['sun', 'mon', 'tue', 'wed', 'thu', 'fri', 'sat']

/**
 * A backup each night, between two and four o'clock (UTC), encrypted by the broker for [backup]
 * recipient, kept by a peer of the tailnet: one file for each day of the week, by PUT. What was kept
 * is read back and decrypted to its end, by the broker with a key of its own (broker/server.ts):
 * a backup counts when that was well.
 */
export class Backups {
  readonly #options: BackupsOptions
  #settings: Partial<Config['backup']> = {}
  #last: Kept | undefined
  #failure: { at: string; message: string } | undefined
  /** Since when there are to be backups, milliseconds; the first is late from then on. */
  #since = 0
  #loaded = false
  #busy: Promise<void> | undefined

  constructor(options: BackupsOptions) {
    this.#options = options
  }

  /** Takes over [backup]. */
  configure(settings: Partial<Config['backup']>): void {
    const { recipient, to } = this.#settings
    if (settings.recipient !== recipient || settings.to !== to) this.#failure = undefined
    this.#settings = settings
  }

  get #nightly(): boolean {
    return this.#settings.recipient !== undefined && this.#settings.to !== undefined
  }

  /** For the console. */
  show(): BackupState {
    const { to } = this.#settings
    return {
      ...{ nightly: this.#nightly, busy: this.#busy !== undefined },
      ...(to === undefined ? {} : { to }),
      ...(this.#last === undefined ? {} : { last: this.#last }),
      ...(this.#failure === undefined ? {} : { failure: this.#failure }),
    }
  }

  /** Makes one if it is time, and says what is wrong. `now`: milliseconds since the epoch. */
  async look(now = Date.now()): Promise<void> {
    await this.#load(now)
    const { recipient, to } = this.#settings
    if (this.#nightly && this.#due(now)) void this.run().catch(() => {})
    if ((recipient === undefined) !== (to === undefined))
      this.#options.problems.set(
        'backup',
        new GatehouseError(
          'GH_BACKUP_HALF',
          `[backup] has no ${to === undefined ? 'to' : 'recipient'}, so there are no nightly backups`,
          'Set both or none (page Settings)',
        ),
      )
    else this.#judge(now)
  }

  /**
   * Makes one now.
   *
   * @throws GatehouseError why it was not kept, or cannot be read
   */
  async run(): Promise<void> {
    this.#busy ??= this.#run().finally(() => {
      this.#busy = undefined
    })
    await this.#busy
  }

  #due(now: number): boolean {
    if (this.#busy !== undefined) return false
    if (this.#failure !== undefined && now - Date.parse(this.#failure.at) < pause) return false
    if (this.#last === undefined) return true
    // Not all devices of a tailnet in one minute.
    const sum = createHash('sha256')
      .update(this.#options.name() ?? '')
      .digest()
    const moment = (2 + (2 * sum.readUInt16BE()) / 65_536) * 3_600_000
    const newest = Math.floor((now - moment) / day) * day + moment
    return Date.parse(this.#last.at) < newest
  }

  #judge(now: number): void {
    const { problems } = this.#options
    const begun = this.#last === undefined ? this.#since : Date.parse(this.#last.at)
    const age = now - begun
    if (!this.#nightly || (this.#failure === undefined && age < late)) {
      problems.clear('backup', 'the last backup is of last night, and can be read')
      return
    }
    const since =
      this.#last === undefined
        ? 'there is no backup yet'
        : `the last backup is of ${this.#last.at.slice(0, 10)}`
    let severity: 'info' | 'warning' | 'error' = 'info'
    if (age >= late) severity = 'warning'
    if (age >= 7 * day) severity = 'error'
    problems.set(
      'backup',
      new GatehouseError(
        age >= late ? 'GH_BACKUP_LATE' : 'GH_BACKUP_FAILED',
        `${since}: ${this.#failure?.message ?? 'none was made since'}`,
        'It is tried again every hour; the page Backup tries it at once',
      ),
      severity,
    )
  }

  async #run(): Promise<void> {
    const { log } = this.#options
    await this.#load(Date.now())
    try {
      if (!this.#nightly)
        throw new GatehouseError(
          'GH_BACKUP_NONE',
          'nobody is named whom backups are for, or where they are kept',
          'Set recipient and to in [backup] (page Settings)',
        )
      const at = new Date()
      const short = this.#options.name()?.split('.', 1)[0] ?? 'gatehouse'
      const name = `${short}-${weekdays[at.getUTCDay()]}.age`
      const to = new URL(name, this.#settings.to!.replace(/\/*$/, '/'))
      const sent = await this.#send(to)
      const { entries, sum } = await this.#readBack(to)
      if (sum !== sent.sum)
        throw new GatehouseError(
          'GH_BACKUP_UNREAD',
          'the server gives back something else than it was given',
          'Look at the server that keeps it',
        )
      this.#last = { at: at.toISOString(), name, size: sent.size, entries }
      this.#failure = undefined
      log.info({ code: 'GH_BACKUP', ...this.#last }, `a backup is kept as ${name}, and can be read`)
    } catch (err) {
      this.#failure = { at: new Date().toISOString(), message: reason(err) }
      log.warn({ code: 'GH_BACKUP_FAILED' }, `the backup failed: ${reason(err)}`)
      throw err instanceof GatehouseError
        ? err
        : new GatehouseError(
            'GH_BACKUP_FAILED',
            `the backup was not kept: ${reason(err)}`,
            'Check that the server in [backup] is on and on the tailnet, and that the policy lets this device reach it',
            { cause: err },
          )
    } finally {
      await this.#save()
      this.#judge(Date.now())
    }
  }

  /** Has the broker make one, and the peer keep it. */
  async #send(to: URL): Promise<{ size: number; sum: string }> {
    const made = await this.#ask(
      { method: 'POST', path: '/v1/backup/scheduled' },
      '{"by":"schedule"}',
    )
    const counted = new Counted()
    const upload = await this.#peer(to, 'PUT')
    const [answer] = await Promise.all([answerTo(upload), pipeline(made, counted, upload)])
    answer.resume()
    if (!ok(answer)) throw new Error(`PUT ${to.href} is answered with ${answer.statusCode}`)
    return counted.done()
  }

  /** Has the peer give it back, and the broker read it. */
  async #readBack(from: URL): Promise<{ entries: number; sum: string }> {
    const download = await this.#peer(from, 'GET')
    download.end()
    const kept = await answerTo(download)
    if (!ok(kept)) {
      kept.resume()
      throw new Error(`GET ${from.href} is answered with ${kept.statusCode}`)
    }
    const counted = new Counted()
    const path = '/v1/backup/rehearse'
    const read = await this.#ask(
      { method: 'POST', path, headers: { 'content-type': 'application/octet-stream' } },
      kept.pipe(counted).pipe(new PassThrough()),
    )
    const { entries } = JSON.parse(await textOf(read)) as { entries: number }
    return { entries, sum: counted.done().sum }
  }

  /** A request of the broker. @throws GatehouseError in its words */
  async #ask(
    options: Pick<RequestOptions, 'method' | 'path'> & { headers?: Record<string, string> },
    body: string | Readable,
  ): Promise<IncomingMessage> {
    const outgoing = httpRequest({
      ...{ socketPath: this.#options.broker, timeout: 600_000 },
      ...options,
      headers: { host: 'b', 'content-type': 'application/json', ...options.headers },
    })
    const answered = answerTo(outgoing)
    if (typeof body === 'string') outgoing.end(body)
    else body.on('error', (err) => outgoing.destroy(err)).pipe(outgoing)
    const answer = await answered
    if (ok(answer)) return answer
    const { error } = JSON.parse(await textOf(answer)) as {
      error: { code: string; message: string; cure: string }
    }
    throw new GatehouseError(error.code, error.message, error.cure)
  }

  async #peer(url: URL, method: string): Promise<ReturnType<typeof httpRequest>> {
    const secure = url.protocol === 'https:'
    const host = url.hostname.replace(/^\[|\]$/g, '')
    const conn = await this.#options.dial(host, Number(url.port) || (secure ? 443 : 80))
    conn.on('error', () => {})
    const socket = secure ? tlsConnect({ socket: conn, servername: host }) : conn
    const outgoing = httpRequest(url, {
      ...{ method, headers: { 'content-type': 'application/octet-stream' } },
      // A Duplex will do (net.Socket's own methods are asked for only where they are there).
      createConnection: () => socket as never,
    })
    const idle = setTimeout(() => {
      outgoing.destroy(new Error(`${url.host} has not gone on for ${patience / 1000} s`))
    }, patience)
    conn.on('data', () => idle.refresh())
    outgoing.on('drain', () => idle.refresh())
    outgoing.once('close', () => {
      clearTimeout(idle)
      conn.destroy()
    })
    return outgoing
  }

  async #load(now: number): Promise<void> {
    if (this.#loaded) return
    this.#loaded = true
    this.#since = now
    if (this.#options.state === undefined) return
    try {
      const kept = JSON.parse(await readFile(join(this.#options.state, 'backup.json'), 'utf8')) as {
        last?: Kept
        failure?: { at: string; message: string }
        since?: number
      }
      if (kept.since !== undefined) this.#since = kept.since
      if (kept.last !== undefined) this.#last = kept.last
      if (kept.failure !== undefined) this.#failure = kept.failure
    } catch {
      // There was none yet.
    }
  }

  async #save(): Promise<void> {
    if (this.#options.state === undefined) return
    const text = JSON.stringify({
      ...{ last: this.#last, failure: this.#failure, since: this.#since },
    })
    await writeFileAtomic(join(this.#options.state, 'backup.json'), text, 0o600).catch(
      (err: unknown) => {
        this.#options.log.warn(`backup.json cannot be written: ${reason(err)}`)
      },
    )
  }
}

/** Counts bytes and their sum on their way. */
class Counted extends Transform {
  #size = 0
  readonly #hash = createHash('sha256')

  override _transform(
    piece: Buffer,
    _encoding: BufferEncoding,
    done: (err: null, piece: Buffer) => void,
  ): void {
    this.#size += piece.length
    this.#hash.update(piece)
    done(null, piece)
  }

  done(): { size: number; sum: string } {
    return { size: this.#size, sum: this.#hash.digest('hex') }
  }
}

const ok = ({ statusCode = 0 }: IncomingMessage): boolean => statusCode >= 200 && statusCode < 300

async function answerTo(outgoing: ReturnType<typeof httpRequest>): Promise<IncomingMessage> {
  return await new Promise((resolve, reject) => {
    outgoing.once('response', resolve).once('error', reject)
  })
}

async function textOf(answer: IncomingMessage): Promise<string> {
  let text = ''
  for await (const piece of answer.setEncoding('utf8')) text += piece
  return text
}
