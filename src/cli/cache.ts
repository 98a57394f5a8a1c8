import type { Paths } from '../base/paths.ts'
import { call, unreachable } from '../base/control-client.ts'

/**
 * `gatehouse cache purge`: empties the cache of answers.
 *
 * @returns 0, or 2 when the gateway cannot be reached
 */
export async function runPurge(paths: Paths): Promise<number> {
  try {
    const { status, body } = await call(paths.admin, 'POST', '/v1/cache/purge')
    if (status !== 200) throw new Error(`it answers ${status}`)
    const { entries, bytes } = body as { entries: number; bytes: number }
    process.stdout.write(`Forgot ${entries} answers, ${(bytes / 1024 / 1024).toFixed(1)} MiB.\n`)
    return 0
  } catch (err) {
    const { message, cure } = unreachable(err, paths.admin)
    process.stderr.write(`The gateway cannot be reached: ${message}.\n  → ${cure}.\n`)
    return 2
  }
}
