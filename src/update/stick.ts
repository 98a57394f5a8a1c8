import { lstat } from 'node:fs/promises'
import { join } from 'node:path'
import { GatehouseError, reason } from '../base/errors.ts'
import { loadConfig } from '../config/load.ts'
import type { Paths } from '../base/paths.ts'
import { collect } from './collect.ts'
import { heldBack, whoAsks } from './fetch.ts'
import { stickName, writeOutcome } from './outcome.ts'
import type { Outcome } from './outcome.ts'
import { updatePaths } from './record.ts'
import type { UpdatePaths } from './record.ts'
import { folderSource } from './source.ts'

/**
 * File systems that are mounted from a stick: those this system mounts anyway. What else the kernel
 * could read is a way in.
 */
export const fileSystems = ['vfat', 'ext4']

/** Folders of a stick that are looked into, the first that holds an update counts. */
const folders = ['.', 'gatehouse']

/**
 * Takes an update from a stick that is mounted at `folder`, as from a web server: same checks, same
 * place. Whoever plugs it in asks for it, so no percentage of devices holds it back; [updates]
 * does.
 *
 * @param type its file system, as blkid(8) names it; others than {@link fileSystems} are not
 *   mounted, and it is said here
 * @returns what became of it
 */
export async function takeFromStick(
  folder: string,
  type: string,
  paths: UpdatePaths,
  { held, force }: { held: string | undefined; force: boolean },
): Promise<Outcome> {
  const outcome = (text: string, failed = false): Outcome => ({ source: stickName, text, failed })
  if (!fileSystems.includes(type))
    return outcome(
      `its file system (${type === '' ? 'unknown' : type}) is not read here. Format it as ` +
        'FAT32, and copy the update there again (GH_UPDATE_FILE_SYSTEM)',
      true,
    )
  let found: string | undefined
  for (const name of folders) {
    // A folder is one, no link to one.
    if (
      found !== undefined ||
      !(await lstat(join(folder, name)).catch(() => undefined))?.isDirectory()
    )
      continue
    if (
      await lstat(join(folder, name, 'SHA256SUMS')).then(
        () => true,
        () => false,
      )
    )
      found = join(folder, name)
  }
  if (found === undefined)
    return outcome(
      'no update on it: there is no SHA256SUMS in its top folder nor in a folder gatehouse',
    )
  if (held !== undefined) return outcome(held)
  try {
    let why = 'nothing newer is on it'
    const bundle = await collect(folderSource(found, `the ${stickName}`), paths, {
      force,
      skipped: (reason, { version }, running) => {
        why =
          reason === 'old'
            ? `${version} is on it, which is not newer than ${running}, which runs`
            : `${version} is on it, which was given up before: gatehouse update --force usb tries it again`
      },
    })
    return bundle === undefined
      ? outcome(why)
      : outcome(`${bundle.version} is copied; the stick may be pulled out`)
  } catch (err) {
    return outcome(err instanceof GatehouseError ? err.line : reason(err), true)
  }
}

/**
 * `gatehouse update-stick FOLDER TYPE`, as gatehouse-update, by gatehouse-stick@.service: 0
 * whatever is on the stick. The next unit installs it.
 */
export async function runStick(
  paths: Paths,
  [folder = '/mnt', type = '']: string[],
): Promise<number> {
  const where = updatePaths()
  const asks = await whoAsks(where)
  const { updates } = await loadConfig(paths.config)
  if (!updates.usb && asks === undefined) return 0
  const outcome = await takeFromStick(folder, type, where, {
    held: heldBack(updates, asks),
    force: asks === 'force',
  })
  process.stdout.write(`${stickName}: ${outcome.text}\n`)
  await writeOutcome(where, outcome)
  return 0
}
