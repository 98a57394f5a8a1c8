import { chmodSync, rmSync } from 'node:fs'
import type { Server } from 'node:http'

/** Where a control socket comes from: systemd (a descriptor), or a path of our own making. */
export type ListenSocket = { fd: number } | { path: string }

/**
 * The sockets systemd made (sd_listen_fds(3)): name to descriptor, from LISTEN_FDS, LISTEN_FDNAMES
 * and LISTEN_PID. The variables are removed, as sd_listen_fds does, so that children do not take
 * the sockets for theirs.
 */
export function systemdSockets(
  env: NodeJS.ProcessEnv = process.env,
  pid: number = process.pid,
): Map<string, number> {
  const { LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID } = env
  delete env.LISTEN_FDS
  delete env.LISTEN_FDNAMES
  delete env.LISTEN_PID
  if (LISTEN_FDS === undefined || Number(LISTEN_PID) !== pid) return new Map()
  const names = (LISTEN_FDNAMES ?? '').split(':')
  return new Map(
    Array.from({ length: Number(LISTEN_FDS) }, (_, i) => [names[i] ?? `fd${i}`, 3 + i]),
  )
}

/** Listens; a path gets mode 0600 and takes the place of what a crash left there. */
export async function listenOn(server: Server, where: ListenSocket): Promise<void> {
  if ('path' in where) rmSync(where.path, { force: true })
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(where, () => {
      server.off('error', reject)
      if ('path' in where) chmodSync(where.path, 0o600)
      resolve()
    })
  })
}
