import { randomBytes } from 'node:crypto'
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { writeFileAtomic } from '../config/files.ts'
import type { Seal } from './seal.ts'

/**
 * Makes this device's key for the credentials in Node-RED's flows, where there is none: once in the life of a card. One that is there
 * is never replaced, even if it cannot be opened: with another key Node-RED would throw the stored credentials away.
 */
export async function makeCredentialSecret (directory: string, seal: Seal): Promise<void> {
  const path = join(directory, 'credential-secret')
  if (await stat(path).then(() => true, () => false)) return
  await writeFileAtomic(path, await seal('credential-secret', randomBytes(32).toString('hex')), 0o600)
}
