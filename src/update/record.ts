import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { writeFileAtomic } from '../base/files.ts'
import { imageVersion } from './bundle.ts'

/** What the last update came to, kept over updates and fall-backs. */
export interface UpdateRecord {
  from: string
  to: string
  /** RFC 3339; when it was written to the other slot. */
  installedAt: string
  /** Why the new one was given up; absent when it was never heard from. */
  failure?: string
  /**
   * How often it was started, or was about to be; {@link mostTries} are the most. Absent where the
   * version that installed it counted otherwise.
   */
  tries?: number
  /** Of the boot in which it was installed: in another one, its own has been and gone. */
  bootID?: string
  /** True once the new one has served. */
  good?: boolean
  /** What it changed, for people. */
  changes?: string[]
}

/**
 * A version that was started and never heard from is installed again this often: the power may have
 * gone. One that says why it did not serve is not.
 */
export const mostTries = 3

/** Whether a version that was tried is not to be tried again, unless somebody asks for it. */
export const givenUp = ({ failure, good, tries = mostTries }: UpdateRecord): boolean =>
  failure !== undefined || good !== undefined || tries >= mostTries

/** What tells this boot from others; undefined in a sandbox that does not see it. */
export const bootID = async (): Promise<string | undefined> =>
  await readFile('/proc/sys/kernel/random/boot_id', 'utf8').then(
    (text) => text.trim(),
    () => undefined,
  )

/**
 * Where updates are kept: GATEHOUSE_UPDATE_DIR (downloads, default /var/lib/gatehouse-update),
 * GATEHOUSE_SLOTS_DIR (root's, default /var/lib/gatehouse-slots).
 */
export const updatePaths = (env: NodeJS.ProcessEnv = process.env) => ({
  downloads: env.GATEHOUSE_UPDATE_DIR ?? '/var/lib/gatehouse-update',
  slots: env.GATEHOUSE_SLOTS_DIR ?? '/var/lib/gatehouse-slots',
  /** GATEHOUSE_EXTENSIONS_DIR: extensions that were taken over, and downloaded ones before that. */
  extensions: env.GATEHOUSE_EXTENSIONS_DIR ?? '/var/lib/gatehouse-extensions',
  key: env.GATEHOUSE_UPDATE_KEY ?? '/usr/lib/gatehouse/update.pub',
  /**
   * There while `gatehouse update` runs: an update somebody asks for. `force` in it with --force.
   */
  asked: env.GATEHOUSE_UPDATE_ASKED ?? '/run/gatehouse-update.asked',
  /** What the last attempt came to (src/update/outcome.ts). */
  outcome: env.GATEHOUSE_UPDATE_OUTCOME ?? '/run/gatehouse-update/outcome',
  /** What somebody's look has found (src/update/fetch.ts). */
  offered: env.GATEHOUSE_UPDATE_OFFERED ?? '/run/gatehouse-update/offered.json',
  osRelease: env.GATEHOUSE_OS_RELEASE ?? '/usr/lib/os-release',
})
export type UpdatePaths = ReturnType<typeof updatePaths>

export async function readUpdateRecord({ slots }: UpdatePaths): Promise<UpdateRecord | undefined> {
  try {
    return JSON.parse(await readFile(join(slots, 'record.json'), 'utf8')) as UpdateRecord
  } catch {
    return undefined
  }
}

export async function writeUpdateRecord(
  { slots }: UpdatePaths,
  record: UpdateRecord,
): Promise<void> {
  await writeFileAtomic(join(slots, 'record.json'), `${JSON.stringify(record)}\n`, 0o644)
}

/** The running version. @throws when this is no image */
export async function runningVersion({ osRelease }: UpdatePaths): Promise<string> {
  const version = imageVersion(await readFile(osRelease, 'utf8'))
  if (version === undefined)
    throw new Error(`${osRelease} names no IMAGE_VERSION: updates are for the image`)
  return version
}

/**
 * One line on the last update, for `gatehouse status` and the card; undefined where there was none.
 */
export async function updateLine(
  paths: UpdatePaths = updatePaths(),
): Promise<{ text: string; failed: boolean } | undefined> {
  const record = await readUpdateRecord(paths)
  if (record === undefined) return undefined
  const running = await runningVersion(paths).catch(() => undefined)
  const day = record.installedAt.slice(0, 10)
  if (running === record.to)
    return {
      failed: false,
      text:
        record.good === true
          ? `${record.to}, since ${day}; before ${record.from}`
          : `${record.to} is on trial: it stays once it has served`,
    }
  if (record.good === true || running !== record.from) return undefined
  const boot = await bootID()
  const over =
    record.bootID === undefined || boot === undefined
      ? Date.parse(record.installedAt) < Date.now() - 3_600_000
      : record.bootID !== boot
  return { failed: record.failure !== undefined || over, text: fate(record, day, over) }
}

/** What became of a version that does not run. */
function fate(record: UpdateRecord, day: string, over: boolean): string {
  const { from, to, failure, tries } = record
  if (failure !== undefined) return `${to} of ${day} was given up, and ${from} is back: ${failure}`
  if (!over) return `${to} of ${day} has not reported yet; ${from} runs`
  const silent = 'it was started, and did not get far enough to say what was wrong'
  return givenUp(record)
    ? `${to} of ${day} was given up, and ${from} is back: ${silent}`
    : `${to} of ${day} did not stay, and ${from} is back: ${silent}, or the power went; it was ` +
        `tried ${tries === 1 ? 'once' : `${tries} times`}, and is tried ${mostTries} times`
}
