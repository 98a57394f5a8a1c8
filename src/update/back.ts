import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { renameOnCard, withCard } from '../base/card.ts'
import { GatehouseError } from '../base/errors.ts'
import { day } from '../base/time.ts'
import { readUpdateRecord, runningVersion, writeUpdateRecord } from './record.ts'
import type { UpdatePaths } from './record.ts'

/**
 * For so long after an update the version before can be had back. Later it has holes that are
 * known, and what runs has shown that it works. Milliseconds.
 */
const goneAfter = 30 * day

/** Kernel images of a version on the card, tries that are left in their names or not. */
export async function entriesOf(boot: string, version: string): Promise<string[]> {
  const names = await readdir(join(boot, 'EFI/Linux')).catch(() => [] as string[])
  return names.filter(
    (name) => name === `gatehouse_${version}.efi` || name.startsWith(`gatehouse_${version}+`),
  )
}

/**
 * Says in the name of a version's kernel image what systemd-boot is to make of it.
 *
 * @param counter `''`: it is started when it is the newest; `+0`: only when no other is there
 */
export async function nameEntry(boot: string, version: string, counter: '' | '+0'): Promise<void> {
  const to = `gatehouse_${version}${counter}.efi`
  await withCard(boot, async () => {
    for (const name of await entriesOf(boot, version))
      if (name !== to)
        await renameOnCard(join(boot, 'EFI/Linux', name), join(boot, 'EFI/Linux', to))
  })
}

/** The version that was there before the last update, while it can be had back. */
export async function versionBefore(
  paths: UpdatePaths,
  boot: string,
  now = Date.now(),
): Promise<string | undefined> {
  const record = await readUpdateRecord(paths)
  const running = await runningVersion(paths).catch(() => undefined)
  if (record?.good !== true || record.to !== running) return undefined
  if (now - Date.parse(record.installedAt) > goneAfter) return undefined
  const entries = await entriesOf(boot, record.from)
  // Without tries left it would not be started.
  return entries.some((name) => !name.includes('+0')) ? record.from : undefined
}

/**
 * Has the next start take the version before: the kernel image of the one that runs gets no tries,
 * as one has that is on trial or was given up (systemd-boot sorts it last).
 * It counts as given up then: the nightly look does not install it again.
 *
 * @param by who asks, for what is told of it afterwards
 * @returns the version that the next start takes
 * @throws GatehouseError GH_UPDATE_BACK when there is none to go back to
 */
export async function goBack(paths: UpdatePaths, boot: string, by: string): Promise<string> {
  const version = await versionBefore(paths, boot)
  const record = await readUpdateRecord(paths)
  if (version === undefined || record === undefined)
    throw new GatehouseError(
      'GH_UPDATE_BACK',
      'there is no version before that could be started: none was updated within the last 30 days',
      'Nothing was changed',
    )
  await nameEntry(boot, record.to, '+0')
  await writeUpdateRecord(paths, { ...record, good: false, failure: `${by} went back to it` })
  return version
}
