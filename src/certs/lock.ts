import { spawn } from 'node:child_process'
import { open, stat } from 'node:fs/promises'
import { once } from 'node:events'
import { GatehouseError } from '../base/errors.ts'

/**
 * Keeps a second agent from working on the same state, for as long as this process lives or until
 * the returned function is called.
 *
 * It is an flock(2) of the state directory itself. Only who may read that directory can ask for it,
 * and that is its user (0700): an abstract socket, which whoever shares the network namespace may
 * take first, would let a flow keep certificates from being renewed. The kernel frees it with the
 * process, however that ends, so there is no stale lock to detect, and nothing is on the disk.
 *
 * Node.js has no flock(2), and flock(1) takes a descriptor that it inherits: the lock belongs to
 * the open file, which both share, so it stays when flock(1) has ended.
 *
 * @param state a directory of this user's own
 * @throws GatehouseError GH_CERTS_BUSY when another agent runs
 */
export async function lock(state: string): Promise<() => Promise<void>> {
  const directory = await open(state, 'r')
  try {
    const child = spawn('flock', ['--nonblock', '--conflict-exit-code', '75', '3'], {
      stdio: ['ignore', 'ignore', 'inherit', directory.fd],
    })
    const [code] = (await once(child, 'close')) as [number | null]
    if (code === 75)
      throw new GatehouseError(
        'GH_CERTS_BUSY',
        'certificates are being looked after already',
        'Wait until that run is done: it takes ten minutes at most',
      )
    if (code !== 0) throw new Error(`${state} cannot be locked: flock ended with ${code}`)
  } catch (err) {
    await directory.close()
    throw err
  }
  return async () => {
    await directory.close()
  }
}

/**
 * Keeps anyone but the state's owner from running the agent: files made by root would lock it out
 * of its own account.
 *
 * @throws GatehouseError GH_CERTS_USER
 */
export async function ownsState(state: string): Promise<void> {
  const { uid } = await stat(state)
  if (process.getuid?.() === uid) return
  throw new GatehouseError(
    'GH_CERTS_USER',
    `certificates are looked after by user number ${uid}, not by this one`,
    'Leave it to gatehouse-certs.service, which runs every hour and when the names change',
  )
}
