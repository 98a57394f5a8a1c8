import { randomBytes } from 'node:crypto'
import { mkdir, stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import { writeFileAtomic } from '../base/files.ts'

/**
 * Makes the key that the gateway and Node-RED share (src/gateway/access/channel.ts), where there is
 * none: once a boot, since /run is empty then. systemd hands it to the two as the credential
 * `channel`; nobody else may read it.
 */
export async function makeChannelKey(path: string): Promise<void> {
  // One that is there is in use.
  if (
    await stat(path).then(
      () => true,
      () => false,
    )
  )
    return
  await mkdir(dirname(path), { recursive: true, mode: 0o755 })
  await writeFileAtomic(path, randomBytes(32).toString('hex'), 0o600)
}
