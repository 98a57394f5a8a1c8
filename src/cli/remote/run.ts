import { createReadStream } from 'node:fs'
import { open, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { pipeline } from 'node:stream/promises'
import { Transform } from 'node:stream'
import { parseArgs } from 'node:util'
import { GatehouseError, printable, reason } from '../../base/errors.ts'
import { version } from '../../base/version.ts'
import type { Tested } from '../../alerts/run.ts'
import type { JournalLine } from '../../broker/journal.ts'
import type { ShownRefusal } from '../../firewall/drop-log.ts'
import type { Check } from '../../broker/checks.ts'
import type { BackupState } from '../../gateway/operate/backups.ts'
import type { Shown } from '../../gateway/operate/figures.ts'
import type { GatewayStatus } from '../../gateway/operate/status.ts'
import { table } from '../../gateway/operate/status-text.ts'
import type { Outcome } from '../../update/outcome.ts'
import { askLine, askSecret } from '../ask.ts'
import { report } from '../findings.ts'
import { Device, RemoteError, readHost } from './device.ts'
import { progress, size, withCode } from './parts.ts'
import type { Manner } from './parts.ts'
import { allow, edit, get, set } from './settings.ts'

/** What `gatehouse --host NAME help` says. */
export const usage = `Usage: gatehouse --host NAME COMMAND      (or NAME in GATEHOUSE_HOST)

NAME is the device's full name in the tailnet: gatehouse.tail1234.ts.net. This computer must be on
the tailnet; what you may do is what the device grants you. No password is asked for.

  status                 how things are, and what to do about what is wrong
  doctor                 check every link from the clock to Node-RED
  logs [-f] [--unit NAME] [--level error|warning|info|debug] [-n LINES]
                         lines of the log; -f goes on with what comes
  get [KEY]              the settings as text, or one: get node_red.timezone
  set KEY VALUE…         change one; it is taken back unless the device still answers with it
  unset KEY              remove one: its default holds
  edit                   change them all in $EDITOR
  update [look|back]     install what is offered, with its progress; look: what that is and changes;
                         back: start the version before, within 30 days of an update
  backup FILE            one encrypted file of flows, identity, certificates and settings
  backup-now             one of the nightly backups at once, kept by the peer and read back
  restore FILE           put it in place of what is there; the device restarts
  renew                  renew the device's key for the tailnet before it ends; for its owner
  restart                start Node-RED anew
  reboot                 start the device anew, and wait until it is back; --no-wait: do not wait
  power-off              switch it off: somebody beside it must switch it on again
  reset NAME             forget everything, as if new; NAME is the device's short name, typed again
  support FILE           how the device is and was, without secrets, for somebody who helps
  test-alert             send one alert to where [alerts] says
  devices                what is plugged in, that flows may be given
  refused                what Node-RED tried to reach and was not allowed to
  allow ENTRY            add one to [node_red] allow, as set does
  access WHO             what a login name or a tag could do, and why
  audit                  who changed what

  --json       for programs: JSON on standard output
  --yes        ask nothing
  --code CODE  the six digits on the device's screen, for what would hand over the device
  --ca FILE    the root certificate of a device with an authority of its own (http://NAME/ca.crt)

Exit code 0: done, or all is well; 1: something is wrong; 2: the device does not answer; 64: usage.
`

const options = {
  host: { type: 'string' },
  json: { type: 'boolean' },
  yes: { type: 'boolean', short: 'y' },
  code: { type: 'string' },
  ca: { type: 'string' },
  follow: { type: 'boolean', short: 'f' },
  unit: { type: 'string' },
  level: { type: 'string' },
  lines: { type: 'string', short: 'n' },
  'no-wait': { type: 'boolean' },
  help: { type: 'boolean', short: 'h' },
  version: { type: 'boolean' },
} as const

type Flags = ReturnType<typeof parseArgs<{ options: typeof options }>>['values']

/** Arguments that a command takes: how many at least, and at most. */
const commands: Record<string, [least: number, most: number]> = {
  ...{ status: [0, 0], doctor: [0, 0], logs: [0, 0], get: [0, 1], set: [2, 1000], unset: [1, 1] },
  ...{ edit: [0, 0], update: [0, 1], backup: [1, 1], restore: [1, 1], restart: [0, 0] },
  ...{ reboot: [0, 0], 'power-off': [0, 0], reset: [1, 1], devices: [0, 0], access: [1, 1] },
  ...{ audit: [0, 0], 'test-alert': [0, 0], refused: [0, 0], allow: [1, 1], support: [1, 1] },
  ...{ renew: [0, 0], 'backup-now': [0, 0] },
}

/**
 * `gatehouse --host NAME COMMAND`: the device's API from a laptop on the tailnet.
 *
 * @param args without the program
 * @returns the exit code
 */
export async function runRemote(
  args: string[],
  env: NodeJS.ProcessEnv = process.env,
): Promise<number> {
  const wrong = (message: string): number => {
    process.stderr.write(`gatehouse: ${message}. See gatehouse --host NAME help\n`)
    return 64
  }
  let flags: Flags
  let words: string[]
  try {
    ;({ values: flags, positionals: words } = parseArgs({
      ...{ args, options, allowPositionals: true },
    }))
  } catch (err) {
    return wrong((err as Error).message.split('. ', 1)[0]!)
  }
  const [command, ...rest] = words
  if (flags.version === true || command === 'version') {
    process.stdout.write(`${version}\n`)
    return 0
  }
  if (flags.help === true || command === undefined || command === 'help') {
    process.stdout.write(usage)
    return command === undefined && flags.help !== true ? 64 : 0
  }
  const takes = commands[command]
  if (takes === undefined) return wrong(`there is no command ${JSON.stringify(command)}`)
  if (rest.length < takes[0]) return wrong(`${command} wants more: see its line`)
  if (rest.length > takes[1]) return wrong(`unexpected ${JSON.stringify(rest[takes[1]])}`)
  const where = flags.host ?? env.GATEHOUSE_HOST
  if (where === undefined || where === '') return wrong('which device? --host NAME says')
  const json = flags.json === true
  try {
    const authority = flags.ca === undefined ? undefined : await readFile(flags.ca, 'utf8')
    const device = new Device({ ...readHost(where), authority })
    const manner: Manner = { json, yes: flags.yes === true, code: flags.code }
    return await run(device, command, rest, flags, manner)
  } catch (err) {
    const known = err instanceof GatehouseError
    const code = known ? err.code : 'GH_REMOTE'
    if (json)
      process.stdout.write(
        `${JSON.stringify({ error: { code, message: reason(err), cure: known ? err.cure : '' } }, undefined, 2)}\n`,
      )
    else
      process.stderr.write(
        printable(
          known ? `${err.message}.\n  → ${err.cure}. (${code})\n` : `gatehouse: ${reason(err)}\n`,
        ),
      )
    return err instanceof RemoteError && err.status === 0 ? 2 : 1
  }
}

async function run(
  device: Device,
  command: string,
  rest: string[],
  flags: Flags,
  manner: Manner,
): Promise<number> {
  const { json } = manner
  const [first = ''] = rest
  /** JSON for programs, else the text for people. */
  const show = (value: unknown, text: string): void => {
    process.stdout.write(json ? `${JSON.stringify(value, undefined, 2)}\n` : printable(text))
  }
  const done = (text: string): number => {
    show({ done: true }, `${text}\n`)
    return 0
  }
  switch (command) {
    case 'status':
      return await status(device, show)
    case 'doctor': {
      const { checks } = await device.get<{ checks: Check[] }>('doctor', { patience: 90_000 })
      show(checks, report(checks))
      return checks.some(({ result }) => result === 'fail') ? 1 : 0
    }
    case 'logs':
      return await logs(device, flags)
    case 'get': {
      const text = await get(device, rest[0])
      show(first === '' ? { text } : { key: first, value: text.trimEnd() }, text)
      return 0
    }
    case 'set':
      return (await set(device, first, rest.slice(1), manner)) ? 0 : 1
    case 'unset':
      return (await set(device, first, undefined, manner)) ? 0 : 1
    case 'edit':
      return (await edit(device, manner)) ? 0 : 1
    case 'update':
      if (first === 'look') return await lookForUpdate(device, manner, show)
      if (first === 'back') return await updateBack(device, manner, show)
      if (first !== '') {
        process.stderr.write('gatehouse update: look or back, or nothing, which installs\n')
        return 64
      }
      return await update(device, manner, show)
    case 'backup':
      return await backup(device, first, manner, show)
    case 'restore':
      return await restore(device, first, manner, done)
    case 'backup-now': {
      const bar = progress('making a backup, and reading it back', manner)
      const state = await device.post<BackupState>('backup/now')
      bar.end()
      show(state, `${state.last!.name} is kept at ${state.to}, and can be read.\n`)
      return 0
    }
    case 'renew': {
      const bar = progress('asking the control server', manner)
      const renewed = await device.post<{ renewed: boolean; loginURL?: string }>('tailnet/renew')
      bar.end()
      show(
        renewed,
        renewed.loginURL === undefined
          ? 'The key is renewed.\n'
          : `Log in at ${renewed.loginURL}\nWhoever logs in there owns the device; it stays reachable meanwhile.\n`,
      )
      return 0
    }
    case 'restart': {
      const bar = progress('starting Node-RED anew', manner)
      await device.post('node-red/restart')
      bar.end()
      return done('Node-RED was started anew.')
    }
    case 'reboot': {
      const before = await device.get<GatewayStatus>('status')
      await device.post('device/restart')
      if (flags['no-wait'] === true) return done('The device starts anew.')
      await back(device, before.startedAt, manner)
      return done('The device is back.')
    }
    case 'power-off':
      if (!(await agreed('Switch it off? Somebody beside it must switch it on again.', manner)))
        return 1
      await device.post('device/power-off')
      return done('The device switches off.')
    case 'reset':
      await device.post('device/reset', { name: first })
      return done('The device forgets everything and starts as new.')
    case 'test-alert': {
      const tested = await device.post<Tested>('alerts/test')
      const { results } = tested
      show(tested, results.map(({ channel, said }) => `${channel}: ${said}\n`).join(''))
      return results.every(({ ok }) => ok) ? 0 : 1
    }
    case 'support': {
      const bundle = await device.get<object>('support', { patience: 120_000 })
      const text = `${JSON.stringify(bundle, undefined, 2)}\n`
      await writeFile(first, text, { mode: 0o600, flag: 'wx' })
      show(
        { file: first, bytes: Buffer.byteLength(text) },
        `${first} is written. There are names and addresses in it, and no secrets.\n`,
      )
      return 0
    }
    case 'refused': {
      const { refused } = await device.get<{ refused: ShownRefusal[] }>('refused')
      const row = ({ host, port, protocol, times, last, entry }: ShownRefusal): string => {
        const what = port === undefined ? 'ping' : `port ${port}/${protocol}`
        return `${last}  ${entry ?? `${host} ${what}, never allowed`}  ${times}\n`
      }
      show(refused, refused.map(row).join('') || 'Nothing since the device was started.\n')
      return 0
    }
    case 'allow':
      return (await allow(device, first, manner)) ? 0 : 1
    case 'devices': {
      type Plugged = { devices: Array<{ kind: string; path: string; label: string }> }
      const { devices } = await device.get<Plugged>('devices')
      show(
        devices,
        devices.map(({ kind, path, label }) => `${kind.padEnd(9)} ${path}  ${label}\n`).join('') ||
          'Nothing is plugged in that flows could be given.\n',
      )
      return 0
    }
    case 'access': {
      const query = new URLSearchParams({ who: first })
      type Judged = { who: string; rights: string[]; why: string; policy: string }
      const found = await device.get<Judged>(`access?${query}`)
      const { who, rights, why, policy } = found
      const may = rights.length === 0 ? 'do nothing' : rights.join(', ')
      show(found, `${who} may ${may}.\n${why}.\n\nIn the tailnet's policy:\n${policy}\n`)
      return 0
    }
    default: {
      type Audited = { at: string; who: string; what: string; detail?: unknown }
      const { entries } = await device.get<{ entries: Audited[] }>('audit')
      show(
        entries,
        entries
          .map(
            ({ at, who, what, detail }) => `${at} ${who} ${what} ${JSON.stringify(detail ?? '')}\n`,
          )
          .join(''),
      )
      return 0
    }
  }
}

type Show = (value: unknown, text: string) => void

/** `GET /api/v1/update`. */
interface Updates {
  last?: { text: string; failed: boolean } | null
  attempt?: Outcome | null
}

async function lookForUpdate(device: Device, manner: Manner, show: Show): Promise<number> {
  const bar = progress('looking', manner)
  const found = await device.post<Updates & { offered?: { version: string; changes: string[] } }>(
    'update/look',
  )
  bar.end()
  const { offered, attempt } = found
  const lines = offered?.changes.map((line) => `  ${line}\n`).join('') ?? ''
  if (attempt?.failed === true) show(found, `! ${attempt.text}\n`)
  else show(found, offered ? `${offered.version} is offered.\n${lines}` : 'Nothing newer.\n')
  return attempt?.failed === true ? 1 : 0
}

async function updateBack(device: Device, manner: Manner, show: Show): Promise<number> {
  const { before } = await device.get<{ before?: string }>('update')
  const question = `Go back to ${before}? It may have holes that the newer version has closed.`
  if (before !== undefined && !(await agreed(question, manner))) return 1
  const gone = await device.post<{ version: string }>('update/back')
  show(gone, `The device starts ${gone.version}.\n`)
  return 0
}

async function status(device: Device, show: Show): Promise<number> {
  const found = await device.get<GatewayStatus>('status')
  // What updates came to is for those who may manage.
  const updates = await device.get<Updates>('update').catch((err: unknown): Updates => {
    if (err instanceof RemoteError && err.status === 403) return {}
    throw err
  })
  const row = (name: string, { failed, text }: { failed: boolean; text: string }): string =>
    `${failed ? '! ' : ''}${name.padEnd(13)} ${text}\n`
  const { last, attempt } = updates
  const { now: board } = await device.get<Shown>('figures')
  show(
    { ...found, board, update: last, attempt },
    `${table(found)}${boardRow(board)}${last ? row('Update', last) : ''}${attempt ? row(attempt.source, attempt) : ''}`,
  )
  return found.ok ? 0 : 1
}

/** Memory, disk, temperature, what is written to the card: what of them is known. */
function boardRow(board: Shown['now']): string {
  const part = (what: string, value: number | undefined): string[] =>
    value === undefined ? [] : [`${what} ${Math.round(value * 100)} % used`]
  const { memory, disk, files, temperature, writtenADay } = board
  const known = [
    ...[...part('memory', memory), ...part('disk', disk), ...part('files', files)],
    ...(temperature === undefined ? [] : [`${Math.round(temperature)} °C`]),
    ...(writtenADay === undefined ? [] : [`${size(writtenADay)} written a day`]),
  ]
  return known.length === 0 ? '' : `${'Board'.padEnd(13)} ${known.join(', ')}\n`
}

const levels: Record<string, number> = { error: 3, warning: 4, info: 6, debug: 7 }
const names = ['emerg', 'alert', 'crit', 'error', 'warning', 'notice', 'info', 'debug']

async function logs(device: Device, flags: Flags): Promise<number> {
  const level = levels[flags.level ?? 'info']
  if (level === undefined || !/^[1-9]\d{0,3}$/.test(flags.lines ?? '200')) {
    process.stderr.write(
      `gatehouse logs: --level is one of ${Object.keys(levels).join(', ')}, -n 1 to 9999\n`,
    )
    return 64
  }
  const follow = flags.follow === true
  const query = new URLSearchParams({
    ...(flags.unit === undefined ? {} : { unit: flags.unit }),
    ...{ priority: String(level), lines: flags.lines ?? '200', follow: String(follow) },
  })
  // What was shown before the device started anew is not shown again.
  let newest = ''
  for (;;) {
    try {
      for await (const line of device.lines<JournalLine>(`journal?${query}`)) {
        if (line.at < newest) continue
        newest = line.at
        const { at, unit, priority, text } = line
        process.stdout.write(
          flags.json === true
            ? `${JSON.stringify(line)}\n`
            : printable(`${at} ${unit} ${names[priority] ?? ''}: ${text}\n`),
        )
      }
      if (!follow) return 0
    } catch (err) {
      const away = !(err instanceof RemoteError) || err.status === 0
      if (!follow || !away || newest === '') throw err
    }
    process.stderr.write('gatehouse logs: the device does not answer; asked again\n')
    await sleep(3_000)
  }
}

async function agreed(question: string, { yes }: Manner): Promise<boolean> {
  if (yes) return true
  const answer = await askLine(`${question} [y/N] `)
  if (answer === undefined)
    throw new GatehouseError('GH_REMOTE_QUESTION', 'nobody is there to be asked', 'Give --yes')
  return /^y/i.test(answer)
}

/** Waits until a gateway answers that has started later. @throws RemoteError after ten minutes */
async function back(device: Device, startedAt: string, manner: Manner): Promise<GatewayStatus> {
  const bar = progress('waiting for the device to come back', manner)
  try {
    for (const end = Date.now() + 600_000; ; await sleep(2_000)) {
      const found = await device
        .get<GatewayStatus>('status', { patience: 5_000 })
        .catch((err: unknown) => {
          if (err instanceof RemoteError && (err.status === 0 || err.status >= 500))
            return undefined
          throw err
        })
      if (found !== undefined && found.startedAt !== startedAt) return found
      if (Date.now() > end)
        throw new RemoteError(
          0,
          'GH_REMOTE_SILENT',
          'the device has not come back within ten minutes',
          'Look at its screen, or at gatehouse-status.txt on its card: they say what keeps it',
        )
    }
  } finally {
    bar.end()
  }
}

/** `update`: what the updating units say comes along while it goes on. */
async function update(device: Device, manner: Manner, show: Show): Promise<number> {
  const before = await device.get<GatewayStatus>('status')
  const since = new Date(Date.now() - 1_000).toISOString()
  let going = true
  const tell = async (unit: string): Promise<void> => {
    const query = new URLSearchParams({ unit, lines: '1', follow: 'true' })
    for await (const { at, text } of device.lines<JournalLine>(`journal?${query}`)) {
      if (!going) return
      if (at > since && !manner.json) process.stderr.write(printable(`${text}\n`))
    }
  }
  for (const unit of ['gatehouse-update', 'gatehouse-update-install'])
    tell(unit).catch(() => {
      // It is only told: the outcome is asked for below.
    })
  const bar = progress('looking for an update', manner)
  let attempt: Outcome | null | undefined
  try {
    ;({ attempt } = await device.post<Updates>('update/check', {}, { patience: 1_800_000 }))
  } catch (err) {
    // An update that is installed starts at once, and takes the connection with it.
    if (!(err instanceof RemoteError) || err.status !== 0) throw err
    bar.end()
    const after = await back(device, before.startedAt, manner)
    ;({ attempt } = await device.get<Updates>('update'))
    show({ attempt, version: after.version }, `It runs version ${after.version}.\n`)
    return attempt?.failed === true ? 1 : 0
  } finally {
    going = false
    bar.end()
  }
  show({ attempt }, `${attempt?.text ?? 'Nothing is offered'}.\n`)
  return attempt?.failed === true ? 1 : 0
}

/** `backup FILE`: as it comes, under another name until it is whole. */
async function backup(device: Device, file: string, manner: Manner, show: Show): Promise<number> {
  const passphrase = await askSecret('Passphrase for the backup: ')
  if (process.stdin.isTTY && (await askSecret('Once more: ')) !== passphrase)
    throw new GatehouseError('GH_BACKUP_PASSPHRASE', 'the two differ', 'Type it again')
  const answer = await withCode(
    async (code) =>
      await device.ask('POST', 'backup', {
        json: { passphrase, ...(code === undefined ? {} : { code }) },
        patience: 300_000,
      }),
    manner,
  )
  const part = `${file}.part`
  const bar = progress(file, manner)
  let bytes = 0
  try {
    const handle = await open(part, 'wx', 0o600)
    const count = counting((piece) => {
      bytes += piece
      bar.at(bytes)
    })
    await pipeline(answer, count, handle.createWriteStream({ flush: true }))
    await rename(part, file)
  } catch (err) {
    await rm(part, { force: true })
    throw new GatehouseError(
      'GH_BACKUP_WRITE',
      `the backup broke off: ${reason(err)}`,
      'Check that there is room here and that no backup of that name is being written; then try again',
      { cause: err },
    )
  } finally {
    bar.end()
  }
  const keep = 'Keep it and its passphrase apart from the device.'
  show({ file, bytes }, `${file} is written, ${size(bytes)}. ${keep}\n`)
  return 0
}

/** `restore FILE`: the code is asked for before anything is sent. */
async function restore(
  device: Device,
  file: string,
  manner: Manner,
  done: (text: string) => number,
): Promise<number> {
  const { size: total } = await stat(file)
  const passphrase = await askSecret('Passphrase of the backup: ')
  const question =
    'Replace flows, identity, certificates and settings of the device by those in it?'
  if (process.stdin.isTTY && !(await agreed(question, manner))) return 1
  const headers = (code: string | undefined): Record<string, string> => ({
    'content-type': 'application/octet-stream',
    'x-gatehouse-passphrase': Buffer.from(passphrase).toString('base64'),
    ...(code === undefined ? {} : { 'x-gatehouse-code': code }),
  })
  await withCode(async (code) => {
    // Without a code nothing is taken, and the device shows one.
    if (code === undefined)
      return await device.ask('POST', 'restore', { headers: headers(undefined) })
    const bar = progress(file, manner)
    let bytes = 0
    try {
      return await device.ask('POST', 'restore', {
        headers: { ...headers(code), 'content-length': String(total) },
        patience: 600_000,
        send: (outgoing) => {
          const count = counting((piece) => {
            bytes += piece
            bar.at(bytes, total)
          })
          pipeline(createReadStream(file), count, outgoing).catch((err: Error) => {
            outgoing.destroy(err)
          })
        },
      })
    } finally {
      bar.end()
    }
  }, manner)
  return done(
    'The backup is whole, and is put in place now. The device restarts; do not run the other one too.',
  )
}

function counting(count: (bytes: number) => void): Transform {
  return new Transform({
    transform(piece: Buffer, _encoding, next) {
      count(piece.length)
      next(null, piece)
    },
  })
}
