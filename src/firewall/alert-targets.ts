import { readFile } from 'node:fs/promises'
import { alertHostsFile } from '../base/paths.ts'
import type { Paths } from '../base/paths.ts'
import type { Egress } from '../config/egress.ts'
import { egressOf } from './gateway-targets.ts'

/**
 * Where alerts are sent: the servers that [alerts] names, as provisioning wrote them down, and no
 * port anywhere else.
 */
export async function alertTargets(paths: Pick<Paths, 'problem'>): Promise<Egress[]> {
  const text = await readFile(alertHostsFile(paths), 'utf8').catch(() => '')
  return text.split('\n').flatMap((line) => (line === '' ? [] : egressOf(line, [])))
}
