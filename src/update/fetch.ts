import { readFile, rm } from 'node:fs/promises'
import { GatehouseError, printable, reason } from '../base/errors.ts'
import { readForeign, writeFileAtomic } from '../base/files.ts'
import type { Config } from '../config/config.ts'
import { loadConfig } from '../config/load.ts'
import type { Paths } from '../base/paths.ts'
import { readExtensions } from '../config/extensions.ts'
import { arch } from './bundle.ts'
import type { Bundle } from './bundle.ts'
import { collect } from './collect.ts'
import { fetchExtensions } from './extension-fetch.ts'
import { writeOutcome } from './outcome.ts'
import { hardwareAddress, placeOf } from './place.ts'
import { updatePaths } from './record.ts'
import type { UpdatePaths } from './record.ts'
import { webSource } from './source.ts'

/** How somebody asks: `look` installs nothing, `force` with --force, `asked` without. */
export type Asks = 'look' | 'force' | 'asked'

/** Whether somebody asks for an update; undefined: it comes by itself. */
export async function whoAsks(paths: UpdatePaths): Promise<Asks | undefined> {
  const asked = await readFile(paths.asked, 'utf8').catch(() => undefined)
  if (asked === undefined) return undefined
  return asked === 'force' || asked === 'look' ? asked : 'asked'
}

/** A version that is offered, and what it changes. */
export interface Offered {
  version: string
  changes: string[]
}

/** What the last look found; undefined when nothing newer is offered. */
export async function readOffered({ offered }: UpdatePaths): Promise<Offered | undefined> {
  try {
    const content = await readForeign(offered, 262_144)
    const { version, changes } = JSON.parse(content.toString('utf8')) as Offered
    // The updater's user writes it: text, whatever it is.
    return {
      version: printable(String(version)).slice(0, 100),
      changes: changes.slice(0, 500).map((line) => printable(String(line)).slice(0, 300)),
    }
  } catch {
    return undefined
  }
}

/** Why [updates] keeps an update away, wherever it comes from; undefined when it does not. */
export function heldBack(
  { hold, automatic }: Pick<Config['updates'], 'hold' | 'automatic'>,
  asks: Asks | undefined,
): string | undefined {
  if (hold && asks !== 'force') return 'updates are held back by updates.hold in gatehouse.toml'
  if (!automatic && (asks === undefined || asks === 'look'))
    return 'updates.automatic in gatehouse.toml is false: gatehouse update installs what is new'
  return undefined
}

/**
 * `gatehouse update-fetch`, as gatehouse-update: 0 when all is well, whether there was something
 * new or not. By the timer it heeds updates.automatic and the percentage of devices that a version
 * is offered to; asked for by `gatehouse update` it does not.
 */
export async function runFetch(paths: Paths): Promise<number> {
  const where = updatePaths()
  const asks = await whoAsks(where)
  const say = (text: string): number => {
    process.stdout.write(`${text}\n`)
    return 0
  }
  const { updates, extension } = await loadConfig(paths.config)
  if (updates.url === undefined) return say('no updates: gatehouse.toml names no updates.url')
  const held = asks === 'look' ? undefined : heldBack(updates, asks)
  if (held !== undefined) return say(held)
  const { url, hold } = updates
  // Those that gatehouse.toml names come with a mere look, too: to write the name is to ask for it.
  const extensions = async (): Promise<{ fetched: string[]; failed: string[] }> => {
    const attached = new Map(
      (await readExtensions(paths)).map(({ name, version }) => [name, version]),
    )
    return await fetchExtensions(webSource(url), {
      names: extension.map(({ name }) => name).filter((name) => !hold || !attached.has(name)),
      ...{ attached, arch, downloads: where.downloads },
      publicKey: await readFile(where.key, 'utf8'),
    })
  }
  try {
    const machine = await hardwareAddress()
    let waiting: string | undefined
    if (asks === 'look') {
      let found: Bundle | undefined
      await rm(where.offered, { force: true })
      // Also one that was given up, which may be wanted again.
      const takes = (bundle: Bundle): boolean => {
        found = bundle
        return false
      }
      await collect(webSource(updates.url), where, { force: true, takes })
      if (found !== undefined) {
        const { version, changes } = found
        await writeFileAtomic(where.offered, JSON.stringify({ version, changes }), 0o644)
      }
      const { fetched, failed } = await extensions()
      const text = [...fetched, ...failed].join('. ')
      if (text !== '')
        await writeOutcome(where, { source: 'updates.url', text, failed: failed.length > 0 })
      const offer = found === undefined ? 'nothing newer is offered' : `${found.version} is offered`
      return say(text === '' ? offer : `${offer}; ${text}`)
    }
    const takes = (bundle: Bundle): boolean => {
      const mine = updates.place ?? placeOf(machine, bundle.version)
      if (asks !== undefined || mine < bundle.percentage) return true
      waiting =
        `${bundle.version} is offered to ${bundle.percentage} % of all devices for now; this ` +
        `one's place is ${mine}, so it waits`
      return false
    }
    const bundle = await collect(webSource(updates.url), where, {
      force: asks === 'force',
      anyLog: asks === 'force',
      takes,
    })
    const { fetched, failed } = await extensions()
    const texts = [...(bundle === undefined ? [] : [`${bundle.version} is downloaded`]), ...fetched]
    const text = [
      texts.length + failed.length === 0
        ? (waiting ?? 'nothing newer is offered')
        : texts.join('; '),
      ...failed,
    ]
      .filter((part) => part !== '')
      .join('. ')
    await writeOutcome(where, { source: 'updates.url', text, failed: failed.length > 0 })
    // What has come is installed all the same.
    return say(text)
  } catch (err) {
    const text = err instanceof GatehouseError ? err.line : reason(err)
    process.stderr.write(`gatehouse update: ${text}\n`)
    await writeOutcome(where, { source: 'updates.url', text, failed: true })
    return 1
  }
}
