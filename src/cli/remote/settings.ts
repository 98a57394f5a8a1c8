import { spawnSync } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { GatehouseError, printable } from '../../base/errors.ts'
import type { Checked, ShownSettings, Trial } from '../../broker/settings.ts'
import { fieldOf, setKey, valuesOf, withWord, written } from '../../console/form.ts'
import { askLine } from '../ask.ts'
import { RemoteError } from './device.ts'
import type { Device } from './device.ts'
import { progress, withCode } from './parts.ts'
import type { Manner } from './parts.ts'

/** A table of `GET /api/v1/schema`, as far as it is needed here. */
interface Table {
  table: string
  list: boolean
  keys: Array<{ name: string; example: string }>
}

/** `gatehouse --host NAME get [KEY]`: the settings as text, or one key's value as TOML writes it. */
export async function get(device: Device, key: string | undefined): Promise<string> {
  const { text } = await device.get<ShownSettings>('settings')
  if (key === undefined) return text
  await described(device, key)
  return `${valuesOf(text).get(key)?.written ?? '# not set'}\n`
}

/**
 * `set KEY VALUE…` and `unset KEY`: one key, all else of the file as it was. A value may be written
 * as TOML does, or plainly: `set node_red.timezone Europe/Berlin`, `set access.view alice@… bob@…`.
 *
 * @param values undefined: the key is removed
 * @returns whether it is kept
 */
export async function set(
  device: Device,
  key: string,
  values: readonly string[] | undefined,
  manner: Manner,
): Promise<boolean> {
  const { table, name, example } = await described(device, key)
  const { text, digest } = await device.get<ShownSettings>('settings')
  const value = values === undefined ? undefined : valueFor(example, values)
  return await change(device, { text: setKey(text, table, name, value), digest }, manner)
}

/** `allow ENTRY`: one more in [node_red] allow. @returns whether it is kept */
export async function allow(device: Device, entry: string, manner: Manner): Promise<boolean> {
  const { text, digest } = await device.get<ShownSettings>('settings')
  return await change(device, { text: withWord(text, 'node_red', 'allow', entry), digest }, manner)
}

/** A value for a key as TOML writes it, by the key's example. */
export function valueFor(example: string, values: readonly string[]): string {
  const field = fieldOf(example)
  const [only] = values
  // As TOML writes it, where it is of the same kind.
  if (values.length === 1 && /^\s*[["']/.test(only!) && fieldOf(only!) === field) return only!
  if (field !== 'list' && values.length !== 1)
    throw new GatehouseError(
      'GH_REMOTE_VALUE',
      `the key takes one value, and ${values.length} were given`,
      'Put quotation marks around a value with spaces',
    )
  return written(values.join('\n'), field) ?? '""'
}

async function described(
  device: Device,
  key: string,
): Promise<{ table: string; name: string; example: string }> {
  const { tables } = await device.get<{ tables: Table[] }>('schema')
  const [table = '', name = ''] = key.split('.')
  const known = tables.find((one) => one.table === table)
  const found = known?.keys.find((one) => one.name === name)
  if (found !== undefined && known?.list === false) return { table, name, example: found.example }
  if (known?.list === true)
    throw new GatehouseError(
      'GH_SETTINGS_KEY',
      `[[${table}]] may come several times, so a key of it cannot be set alone`,
      'Change it as text: gatehouse --host NAME edit',
    )
  const near = (known?.keys ?? []).map((one) => `${table}.${one.name}`)
  throw new GatehouseError(
    'GH_SETTINGS_KEY',
    `there is no setting ${JSON.stringify(key)}`,
    near.length > 0
      ? `[${table}] has ${near.join(', ')}`
      : `Write table and key, such as node_red.timezone; tables are ${tables.map((one) => one.table).join(', ')}`,
  )
}

/**
 * `edit`: the settings in the person's editor ($VISUAL, $EDITOR). Mistakes are said, and the editor
 * opened again; the file is in a directory that only they may read, and removed afterwards.
 */
export async function edit(device: Device, manner: Manner): Promise<boolean> {
  const { text, digest } = await device.get<ShownSettings>('settings')
  const directory = await mkdtemp(join(tmpdir(), 'gatehouse-'))
  const file = join(directory, 'gatehouse.toml')
  try {
    await writeFile(file, text, { mode: 0o600 })
    for (;;) {
      openEditor(file)
      const next = await readFile(file, 'utf8')
      if (next === text) {
        process.stderr.write('Nothing was changed.\n')
        return true
      }
      const { issues } = await device.post<Checked>('settings/check', { text: next })
      if (issues.length === 0) return await change(device, { text: next, digest }, manner, true)
      process.stderr.write(mistakes(issues))
      const again = await askLine('Edit it again? [Y/n] ')
      if (again === undefined || /^n/i.test(again)) return false
    }
  } finally {
    await rm(directory, { recursive: true, force: true })
  }
}

function openEditor(file: string): void {
  const usual = process.platform === 'win32' ? 'notepad' : 'vi'
  const editor = process.env.VISUAL ?? process.env.EDITOR ?? usual
  // By the shell, as git does: what people have in $EDITOR has arguments and quotation marks.
  const { status, error } = spawnSync(`${editor} "${file}"`, { shell: true, stdio: 'inherit' })
  if (status !== 0)
    throw new GatehouseError(
      'GH_REMOTE_EDITOR',
      `the editor ${editor} ended with ${error?.message ?? `code ${status}`}; nothing was changed`,
      'Name another one in EDITOR',
    )
}

/** Shows what a change changes, tries it, and confirms it once the device has answered with it. */
async function change(
  device: Device,
  next: { text: string; digest: string },
  manner: Manner,
  ask = false,
): Promise<boolean> {
  const { changes, issues, guarded } = await device.post<Checked>('settings/check', {
    text: next.text,
  })
  if (issues.length > 0) {
    process.stderr.write(mistakes(issues))
    return false
  }
  const say = (text: string): void => {
    if (!manner.json) process.stderr.write(printable(text))
  }
  for (const { key, before, after } of changes) say(`${key}: ${shown(before)} → ${shown(after)}\n`)
  if (guarded.length > 0)
    say(`This hands over the device, so it asks for the code that its screen shows.\n`)
  if (ask && !manner.yes && /^n/i.test((await askLine('Try it? [Y/n] ')) ?? 'y')) return false
  const { who } = await device.get<{ who: string }>('me')
  const bar = progress('trying it', manner)
  let trial: Trial | undefined
  try {
    trial = await withCode(
      async (code) =>
        await device.post<Trial>('settings/try', {
          ...next,
          ...(code === undefined ? {} : { code }),
        }),
      manner,
    )
  } catch (err) {
    // The change may have had the gateway itself start anew: whether it is on trial is asked.
    if (!(err instanceof RemoteError) || err.status !== 0) throw err
  }
  const kept = await confirm(device, trial, who)
  bar.end()
  if (manner.json) process.stdout.write(`${JSON.stringify({ kept, changes }, undefined, 2)}\n`)
  else if (kept) say('It is in force and kept: the device has answered with it.\n')
  if (!kept)
    throw new GatehouseError(
      'GH_REMOTE_TAKEN_BACK',
      'the device did not answer with the change in force, and takes it back by itself',
      'Wait a minute until it answers again, then look at the value and at gatehouse logs',
    )
  return true
}

/** How long the device is asked beyond the end of the trial. Milliseconds. */
const beyond = 30_000

/**
 * Confirms a change over a new connection: that it got there is the proof that the device can still
 * be reached with it.
 *
 * @param begun undefined: whether there is a trial is not known
 */
async function confirm(device: Device, begun: Trial | undefined, who: string): Promise<boolean> {
  let end = Date.now() + 90_000
  if (begun !== undefined) end = Math.min(end, Date.now() + beyond + left(begun))
  while (Date.now() < end) {
    try {
      const { trial } = await device.get<ShownSettings>('settings', { patience: 5_000 })
      if (trial === undefined) return false
      if (trial.id === begun?.id || (begun === undefined && trial.by === who)) {
        await device.post('settings/confirm', { id: trial.id }, { patience: 20_000 })
        return true
      }
      return false
    } catch (err) {
      // Not there yet, or not with these rights: that is what the trial is for.
      if (!(err instanceof RemoteError)) throw err
      await sleep(1_000)
    }
  }
  return false
}

const left = (trial: Trial): number =>
  Math.max(0, Math.min(60_000, Date.parse(trial.until) - Date.now()))

const shown = (value: unknown): string => (value === undefined ? 'not set' : JSON.stringify(value))

function mistakes(issues: Checked['issues']): string {
  return issues
    .map(({ line, code, message, cure }) =>
      printable(`! line ${line}: ${message}\n  → ${cure} (${code})\n`),
    )
    .join('')
}
