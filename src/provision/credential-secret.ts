import { randomBytes } from 'node:crypto'
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { writeFileAtomic } from '../base/files.ts'

/**
 * Makes this device's key for the credentials in Node-RED's flows, where there is none: once in the
 * life of a card. One that is there is never replaced: with another key Node-RED would throw the
 * stored credentials away.
 *
 * Not sealed with systemd's host key: systemd makes a new one when the machine ID is another, and
 * with a read-only /etc it is another at each boot. A sealed key could be opened until the next
 * one, and never again.
 */
export async function makeCredentialSecret(directory: string): Promise<void> {
  const path = join(directory, 'credential-secret')
  if (
    await stat(path).then(
      () => true,
      () => false,
    )
  )
    return
  await writeFileAtomic(path, randomBytes(32).toString('hex'), 0o600)
}
