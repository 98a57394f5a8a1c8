import type { Paths } from '../base/paths.ts'
import { call, unreachable } from '../base/control-client.ts'

/**
 * `gatehouse metrics`: what the gateway counts, in Prometheus's text format. For node_exporter's
 * textfile collector, say, or by hand.
 *
 * @returns 0, or 2 when the gateway cannot be reached
 */
export async function runMetrics(paths: Paths): Promise<number> {
  try {
    const { status, body } = await call(paths.admin, 'GET', '/metrics')
    if (status !== 200) throw new Error(`it answers ${status}`)
    process.stdout.write(body as string)
    return 0
  } catch (err) {
    const { message, cure } = unreachable(err, paths.admin)
    process.stderr.write(`The gateway cannot be reached: ${message}.\n  → ${cure}.\n`)
    return 2
  }
}
