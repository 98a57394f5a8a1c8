import { stat } from 'node:fs/promises'
import { createServer } from 'node:net'
import { GatehouseError } from '../base/errors.ts'

/**
 * Keeps a second agent from working on the same state, for as long as this process lives or until
 * the returned function is called.
 *
 * It is an abstract unix socket (unix(7)) named after the state directory: the kernel lets one
 * process bind it and frees it with that process, however it ends. So there is no stale lock to
 * detect, and nothing on the disk. It goes by network namespace, which all agents of a machine
 * share.
 *
 * @throws GatehouseError GH_CERTS_BUSY when another agent runs
 */
export async function lock(state: string): Promise<() => void> {
  const { dev, ino } = await stat(state)
  const server = createServer((socket) => {
    socket.destroy()
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', (err: NodeJS.ErrnoException) => {
      reject(
        err.code === 'EADDRINUSE'
          ? new GatehouseError(
              'GH_CERTS_BUSY',
              'certificates are being looked after already',
              'Wait until that run is done: journalctl -fu gatehouse-certs',
              { cause: err },
            )
          : err,
      )
    })
    server.listen(`\0gatehouse-certs-${dev}-${ino}`, resolve)
  })
  server.unref()
  return () => {
    server.close()
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
    'Run systemctl start gatehouse-certs',
  )
}
