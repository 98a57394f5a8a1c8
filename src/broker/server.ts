import fastify from 'fastify'
import type { FastifyInstance, FastifyReply } from 'fastify'
import { createWriteStream } from 'node:fs'
import { mkdir, readFile, rm, statfs, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { PassThrough, Transform } from 'node:stream'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { GatehouseError, oneLine, printable, reason } from '../base/errors.ts'
import { putOnCard, withCard } from '../base/card.ts'
import { readForeign, writeFileAtomic } from '../base/files.ts'
import { loadConfig } from '../config/load.ts'
import type { Paths } from '../base/paths.ts'
import type { Tested } from '../alerts/run.ts'
import { attemptLine } from '../update/outcome.ts'
import { goBack, versionBefore } from '../update/back.ts'
import { readOffered } from '../update/fetch.ts'
import { readUpdateRecord, runningVersion, updateLine, updatePaths } from '../update/record.ts'
import { readApplied } from '../firewall/apply.ts'
import { refusedIn, shownOf } from '../firewall/drop-log.ts'
import { readRefused } from '../firewall/refused.ts'
import { generateX25519Identity, identityToRecipient } from 'age-encryption'
import { archive, checkPassphrase, partsOf, quiet, rehearse, stage } from './archive.ts'
import { examineSystem } from './checks.ts'
import { devices } from './devices.ts'
import { journal, journalUnits } from './journal.ts'
import type { JournalQuery } from './journal.ts'
import type { Settings } from './settings.ts'
import type { System } from './system.ts'

/** Options of {@link createBroker}. */
export interface BrokerOptions {
  paths: Pick<Paths, 'boot' | 'problem' | 'data'> & Partial<Pick<Paths, 'firewall' | 'config'>>
  settings: Settings
  system: System
  /** One line for the journal: every verb that changes something says who asked for it. */
  say: (line: string) => void
  /** State directory of who sends alerts. Default: /var/lib/gatehouse-alerts. */
  alerts?: string
  /** Where an upload waits until it is whole. Default: /var/lib/gatehouse-broker. */
  uploads?: string
  /** Runs work with the services stopped. Default: by systemd. */
  quiet?: <T>(work: () => Promise<T>) => Promise<T>
}

/** How long an answer has to reach whoever asked before the gateway is stopped. Milliseconds. */
const answerTime = 2_000

/** Has gatehouse-reset.service format the data partition at the next start. */
export async function askForReset(boot: string): Promise<void> {
  await withCard(boot, async () => {
    // Empty, it has no space that could be free already when its name is still there.
    await putOnCard(join(boot, 'gatehouse-reset'), '')
  })
}

// Who asks, as the gateway says: it is written to the journal and compared, and means no more.
const by = { type: 'string', minLength: 1, maxLength: 254, pattern: '^[\\x21-\\x7e]+$' }
const text = { type: 'string', maxLength: 1 << 20 }
const code = { type: 'string', pattern: '^[0-9]{6}$' }
const id = { type: 'string', pattern: '^[A-Za-z0-9_-]{12}$' }
const body = (required: string[], properties: Record<string, object>): object => ({
  type: 'object',
  additionalProperties: false,
  required,
  properties,
})

/**
 * The broker's verbs, over HTTP on a unix socket that the gateway alone may open. They are all that
 * a gateway that has been broken into can do beyond its own user's rights, so each checks its
 * arguments as if an attacker had sent them: by a JSON schema first, then by what it does. There is
 * no verb that runs a program of the caller's choice, writes a file of its choice, reads a secret,
 * changes the firewall's own rules or replaces the key that updates are signed with.
 *
 * | verb | does |
 * |---|---|
 * | GET /v1/settings | gatehouse.toml without secrets, and the change on trial |
 * | POST /v1/settings/check, /try, /confirm, /revert | see {@link Settings} |
 * | POST /v1/node-red/restart | starts Node-RED anew |
 * | POST /v1/device/restart, /power-off, /reset | the whole device; reset wants its name |
 * | POST /v1/update/check | asks for an update, and installs what is offered |
 * | POST /v1/alerts/test | sends one alert to where [alerts] says |
 * | POST /v1/update/look | what is offered, without installing it |
 * | POST /v1/update/back | starts the version before, within 30 days of an update |
 * | GET /v1/update | what the last update came to, and what can be had |
 * | POST /v1/backup | an encrypted backup, as a stream; needs the console's code |
 * | POST /v1/backup/scheduled | one for [backup] recipient alone, as the settings in force say |
 * | POST /v1/backup/rehearse | whether that one, as it was kept, can be read to its end |
 * | POST /v1/restore | takes one, likewise; the device restarts when it is in place |
 * | GET /v1/journal | lines of Gatehouse's own units, NDJSON |
 * | GET /v1/devices | what is plugged in |
 * | GET /v1/refused | what Node-RED tried to reach and was not allowed to |
 * | POST /v1/learn | for ten minutes, by name too: nothing is let through |
 * | GET /v1/doctor | whether clock, resolver and services are well |
 */
export async function createBroker(options: BrokerOptions): Promise<FastifyInstance> {
  const { settings, system, say } = options
  const app = fastify({
    logger: false,
    bodyLimit: 2 << 20,
    // As they are: coercing and dropping would let through what no schema describes.
    ajv: { customOptions: { coerceTypes: false, removeAdditional: false, allErrors: false } },
  })
  app.setErrorHandler(async (err: Error & { statusCode?: number }, _request, reply) => {
    const known = err instanceof GatehouseError
    const status = known ? 422 : (err.statusCode ?? 500)
    if (status >= 500) say(`broker: ${reason(err)}`)
    const code = status >= 500 ? 'GH_BROKER' : 'GH_BROKER_REQUEST'
    const { message } = err
    const error = known ? err : { code, message, cure: 'Load the page again' }
    return await reply
      .code(status)
      .send({ error: { code: error.code, message: oneLine(message), cure: error.cure } })
  })
  // An upload is a stream, whatever its type says.
  app.addContentTypeParser('application/octet-stream', (_request, payload, done) => {
    done(null, payload)
  })

  app.get('/v1/settings', async () => await settings.show())
  app.post<{ Body: { text: string } }>(
    '/v1/settings/check',
    { schema: { body: body(['text'], { text }) } },
    async ({ body: { text } }) => await settings.check(text),
  )
  app.post<{ Body: { text: string; digest: string; by: string; code?: string } }>(
    '/v1/settings/try',
    {
      schema: {
        body: body(['text', 'digest', 'by'], {
          text,
          by,
          digest: { type: 'string', pattern: '^[0-9a-f]{64}$' },
          code,
        }),
      },
    },
    async ({ body }) => await settings.try(body),
  )
  for (const verb of ['confirm', 'revert'] as const)
    app.post<{ Body: { id: string; by: string } }>(
      `/v1/settings/${verb}`,
      { schema: { body: body(['id', 'by'], { id, by }) } },
      async ({ body: { id, by } }) => {
        await settings[verb](id, by)
        return await settings.show()
      },
    )

  const reboot = async (): Promise<void> => {
    await system.systemctl('--no-block', 'reboot')
  }
  /**
   * Does what stops the gateway once the answer has had the time to get through it: whoever asked
   * hears of it by no other way.
   */
  const afterAnswer = (reply: FastifyReply, work: () => Promise<void>): void => {
    reply.raw.once('close', () => {
      setTimeout(() => {
        work().catch((err: unknown) => {
          say(`broker: what was asked for could not be done: ${reason(err)}`)
        })
      }, answerTime)
    })
  }

  const asked = { schema: { body: body(['by'], { by }) } }
  app.post<{ Body: { by: string } }>('/v1/node-red/restart', asked, async ({ body: { by } }) => {
    say(`node-red is restarted, as ${by} asks`)
    await system.systemctl('restart', 'node-red.service')
    return { done: true }
  })
  for (const [verb, command] of [
    ['restart', 'reboot'],
    ['power-off', 'poweroff'],
  ] as const)
    app.post<{ Body: { by: string } }>(`/v1/device/${verb}`, asked, async (request, reply) => {
      say(`the device does ${command}, as ${request.body.by} asks`)
      afterAnswer(reply, async () => {
        await system.systemctl('--no-block', command)
      })
      return { done: true }
    })
  app.post<{ Body: { by: string } }>('/v1/device/reset', asked, async ({ body: { by } }, reply) => {
    say(`the device forgets everything and starts as new, as ${by} asks`)
    await askForReset(options.paths.boot)
    afterAnswer(reply, reboot)
    return { done: true }
  })

  app.post<{ Body: { by: string } }>('/v1/alerts/test', asked, async ({ body: { by } }) => {
    say(`alerts are tried, as ${by} asks`)
    const begun = new Date().toISOString()
    await system.systemctl('start', 'gatehouse-alerts@test.service')
    const tested = await readTested(options.alerts ?? '/var/lib/gatehouse-alerts')
    // Without [alerts] systemd starts nothing.
    if (tested === undefined || tested.at < begun)
      throw new GatehouseError(
        'GH_ALERTS_NONE',
        'there is nobody to tell',
        'Set webhook or ntfy in [alerts] (page Settings)',
      )
    return tested
  })

  app.get('/v1/update', async () => {
    const where = updatePaths()
    const record = await readUpdateRecord(where)
    const running = await runningVersion(where).catch(() => undefined)
    return {
      last: await updateLine(),
      attempt: await attemptLine(where),
      // Of the version that runs.
      changes: record !== undefined && record.to === running ? record.changes : undefined,
      before: await versionBefore(where, options.paths.boot),
      offered: await readOffered(where),
    }
  })
  app.post<{ Body: { by: string } }>('/v1/update/look', asked, async ({ body: { by } }) => {
    say(`what is offered is looked at, as ${by} asks`)
    const where = updatePaths()
    await writeFile(where.asked, 'look')
    try {
      await rm(where.offered, { force: true })
      await system.systemctl('start', 'gatehouse-update.service')
    } finally {
      await rm(where.asked, { force: true })
    }
    return { offered: await readOffered(where), attempt: await attemptLine(where) }
  })
  app.post<{ Body: { by: string } }>('/v1/update/back', asked, async ({ body: { by } }, reply) => {
    const version = await goBack(updatePaths(), options.paths.boot, by)
    say(`the device goes back to ${version}, as ${by} asks`)
    afterAnswer(reply, reboot)
    return { version }
  })
  app.post<{ Body: { by: string } }>('/v1/update/check', asked, async ({ body: { by } }) => {
    say(`an update is looked for, as ${by} asks`)
    await writeFile(updatePaths().asked, '')
    try {
      // Success starts the unit that installs; --wait ends with the download.
      await system.systemctl('start', 'gatehouse-update.service')
      await system.systemctl('start', 'gatehouse-update-install.service')
    } finally {
      await rm(updatePaths().asked, { force: true })
    }
    return { attempt: await attemptLine(updatePaths()) }
  })

  app.post<{ Body: { by: string; passphrase: string; code?: string } }>(
    '/v1/backup',
    {
      schema: {
        body: body(['by', 'passphrase'], {
          ...{ by, code },
          passphrase: { type: 'string', maxLength: 1024 },
        }),
      },
    },
    async ({ body: { by, passphrase, code } }, reply) => {
      checkPassphrase(passphrase)
      // It holds the secrets of all three parts, and the gateway sees the passphrase.
      await settings.demandCode('a backup', code)
      say(`a backup is made, as ${by} asks`)
      const output = new PassThrough()
      archive(options.paths.data, { passphrase }, output).catch((err: unknown) => {
        say(`a backup broke off: ${reason(err)}`)
        output.destroy(err as Error)
      })
      return await reply.type('application/octet-stream').send(output)
    },
  )
  // For the recipient in gatehouse.toml, which the gateway cannot change without the console's code:
  // it sees bytes that it cannot read. A second recipient is a key that never leaves this device,
  // made for this one backup: with it the rehearsal reads what the peer has kept.
  const rehearsal = join(options.uploads ?? '/var/lib/gatehouse-broker', 'rehearsal.json')
  app.post<{ Body: { by: string } }>(
    '/v1/backup/scheduled',
    asked,
    async ({ body: { by } }, reply) => {
      const { backup } = await loadConfig(options.paths.config ?? '/var/lib/gatehouse-config')
      if (backup.recipient === undefined)
        throw new GatehouseError(
          'GH_BACKUP_RECIPIENT',
          'nobody is named whom backups are for',
          'Set recipient in [backup] (page Settings)',
        )
      say(`a backup is made for ${backup.recipient}, as ${by} asks`)
      const root = options.paths.data
      const identity = await generateX25519Identity()
      const names = await partsOf(root)
      await mkdir(dirname(rehearsal), { recursive: true, mode: 0o700 })
      await writeFileAtomic(rehearsal, JSON.stringify({ identity, names }), 0o600)
      const output = new PassThrough()
      const recipients = [backup.recipient, await identityToRecipient(identity)]
      archive(root, { recipients }, output).catch((err: unknown) => {
        say(`a backup broke off: ${reason(err)}`)
        output.destroy(err as Error)
      })
      return await reply.type('application/octet-stream').send(output)
    },
  )
  app.post(
    '/v1/backup/rehearse',
    { bodyLimit: Number.MAX_SAFE_INTEGER },
    async ({ body: file }) => {
      const made = await readFile(rehearsal, 'utf8').catch(() => undefined)
      if (made === undefined)
        throw new GatehouseError(
          'GH_BACKUP_UNREAD',
          'there is no backup to compare it with',
          'Make one now (page Backup)',
        )
      const { identity, names } = JSON.parse(made) as { identity: string; names: string[] }
      const unread = (why: string): GatehouseError =>
        new GatehouseError(
          'GH_BACKUP_UNREAD',
          `the backup that is kept cannot be read: ${why}`,
          'Look at the server that keeps it, and make one now (page Backup)',
        )
      const found = await rehearse(file as Readable, identity).catch((err: unknown) => {
        throw unread(reason(err))
      })
      const missing = names.filter((name) => !found.names.includes(name.split('/', 1)[0]!))
      if (missing.length > 0) throw unread(`${missing.join(', ')} is not in it`)
      return { entries: found.entries }
    },
  )
  app.post(
    '/v1/restore',
    {
      // Flows with pictures in them are large; what is too large for the disk is refused below.
      bodyLimit: Number.MAX_SAFE_INTEGER,
      schema: {
        headers: {
          type: 'object',
          required: ['x-gatehouse-by', 'x-gatehouse-passphrase'],
          properties: {
            'x-gatehouse-by': by,
            // Base64, since a header holds ASCII alone.
            'x-gatehouse-passphrase': { type: 'string', maxLength: 2048 },
            'x-gatehouse-code': code,
          },
        },
      },
    },
    async (request, reply) => {
      const name = request.headers['x-gatehouse-by'] as string
      const secret = request.headers['x-gatehouse-passphrase'] as string
      const passphrase = Buffer.from(secret, 'base64').toString()
      const given = request.headers['x-gatehouse-code'] as string | undefined
      await settings.demandCode('what a backup puts in place', given)
      const { put, drop } = await takeUpload(
        request.body as Readable,
        options,
        async (file) => await stage(options.paths.data, file, passphrase),
      )
      say(`a backup is put in place, as ${name} asks`)
      afterAnswer(reply, async () => {
        // Restarted in any case: that finishes what could not be done.
        try {
          await (options.quiet ?? quiet)(put)
        } finally {
          await drop()
          await reboot()
        }
      })
      return { done: true }
    },
  )

  app.get<{ Querystring: { unit?: string; priority?: string; lines?: string; follow?: string } }>(
    '/v1/journal',
    {
      schema: {
        querystring: body([], {
          unit: { enum: journalUnits },
          priority: { type: 'string', pattern: '^[0-7]$' },
          lines: { type: 'string', pattern: '^[1-9][0-9]{0,3}$' },
          follow: { enum: ['true', 'false'] },
        }),
      },
    },
    async ({ query: { unit, priority, lines, follow } }, reply) =>
      await reply.type('application/x-ndjson').send(
        journal(system, {
          ...(unit === undefined ? {} : { unit: unit as NonNullable<JournalQuery['unit']> }),
          ...(priority === undefined ? {} : { priority: Number(priority) }),
          ...(lines === undefined ? {} : { lines: Number(lines) }),
          follow: follow === 'true',
        }),
      ),
  )
  app.get('/v1/refused', async () => {
    const directory = options.paths.firewall ?? '/run/gatehouse-firewall'
    const child = system.stream('journalctl', [
      ...['--dmesg', '--boot', '--quiet', '--output=json', '--output-fields=MESSAGE'],
      // Not --grep=: with --lines= it turns the order.
      '--lines=5000',
    ])
    const lines: string[] = []
    for await (const line of createInterface({ input: child.stdout!, crlfDelay: Infinity }))
      lines.push(line)
    const applied = await readApplied(directory)
    const { learning, refused } = await readRefused(directory)
    const learned = shownOf(refused)
    const known = new Set(learned.map(({ entry }) => entry))
    // By name where that was learned, else as the firewall's lines say.
    const logged = refusedIn(lines, applied?.names).filter(({ entry }) => !known.has(entry))
    const all = [...learned, ...logged].toSorted((x, y) => (x.last < y.last ? 1 : -1))
    return { refused: all, ...(learning === undefined ? {} : { learning }) }
  })
  app.post<{ Body: { by: string } }>('/v1/learn', asked, async ({ body: { by } }) => {
    say(`what flows want is learned for ten minutes, as ${by} asks`)
    await system.systemctl('--no-block', 'start', 'gatehouse-learn.service')
    return { done: true }
  })
  app.get('/v1/devices', async () => ({ devices: await devices() }))
  app.get('/v1/doctor', async () => ({ checks: await examineSystem(options.paths) }))
  return app
}

/** What the last try came to. Its user's file: nothing is followed, and no more read than there may be. */
async function readTested(directory: string): Promise<Tested | undefined> {
  try {
    const content = await readForeign(join(directory, 'tested.json'), 8_192)
    const { at, results } = JSON.parse(content.toString('utf8')) as Tested
    return {
      at: String(at),
      results: results.slice(0, 2).map(({ channel, ok, said }) => ({
        ...{ channel: String(channel), ok: ok === true },
        said: printable(String(said)).slice(0, 500),
      })),
    }
  } catch {
    return undefined
  }
}

/** Keeps an upload until it has been used, no larger than half of what is free. */
async function takeUpload<T>(
  upload: Readable,
  { uploads = '/var/lib/gatehouse-broker' }: BrokerOptions,
  use: (file: string) => Promise<T>,
): Promise<T> {
  await mkdir(uploads, { recursive: true, mode: 0o700 })
  const { bavail, bsize } = await statfs(uploads)
  const most = (bavail * bsize) / 2
  const file = join(uploads, 'upload.age')
  let size = 0
  const bounded = new Transform({
    transform(piece: Buffer, _encoding, done) {
      size += piece.length
      if (size <= most) done(null, piece)
      else
        done(
          new GatehouseError(
            'GH_RESTORE_SIZE',
            `the file is larger than half of what is free (${Math.floor(most / 2 ** 20)} MiB)`,
            'Make room: remove what flows have stored',
          ),
        )
    },
  })
  try {
    await pipeline(upload, bounded, createWriteStream(file, { mode: 0o600 }))
    return await use(file)
  } finally {
    await rm(file, { force: true })
  }
}
