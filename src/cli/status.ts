import { readFile } from 'node:fs/promises'
import { printable } from '../base/errors.ts'
import { notesFile } from '../base/paths.ts'
import type { Paths } from '../base/paths.ts'
import { table } from '../gateway/operate/status-text.ts'
import type { GatewayStatus } from '../gateway/operate/status.ts'
import { attemptLine } from '../update/outcome.ts'
import { updateLine, updatePaths } from '../update/record.ts'
import { call, unreachable } from '../base/control-client.ts'

/**
 * `gatehouse status`: how things are, problems first, each with its cure.
 *
 * @returns 0 all is well, 1 something is wrong, 2 the gateway cannot be reached
 */
export async function runStatus(paths: Paths, { json }: { json: boolean }): Promise<number> {
  let status: GatewayStatus
  try {
    const answer = await call(paths.admin, 'GET', '/v1/status')
    if (answer.status !== 200) throw new Error(`it answers ${answer.status}`)
    status = answer.body as GatewayStatus
  } catch (err) {
    const { message, cure } = unreachable(err, paths.admin)
    const configuration = (await readFile(paths.problem, 'utf8').catch(() => '')).trim()
    if (json) {
      process.stdout.write(
        `${JSON.stringify({ ok: false, problems: [{ part: 'gateway', code: 'GH_UNREACHABLE', message, cure }], configuration: configuration === '' ? {} : { problem: configuration } }, undefined, 2)}\n`,
      )
    } else {
      process.stderr.write(
        `The gateway cannot be reached: ${message}.\n  → ${cure}.\n` +
          `${configuration === '' ? '' : `Configuration: ${configuration}\n`}`,
      )
    }
    return 2
  }
  const update = await updateLine()
  const attempt = await attemptLine(updatePaths())
  const notes = (await readFile(notesFile(paths), 'utf8').catch(() => ''))
    .split('\n')
    .filter((line) => line !== '')
  const row = (name: string, { failed, text }: { failed: boolean; text: string }): string =>
    `${failed ? '! ' : ''}${name.padEnd(13)} ${text}\n`
  // The gateway has them in its table; one that is older does not know them.
  const more = notes
    .filter((text) => !table(status).includes(text))
    .map((text) => row('Settings', { failed: false, text }))
    .join('')
  process.stdout.write(
    json
      ? `${JSON.stringify({ ...status, settings: notes, update, attempt }, undefined, 2)}\n`
      : printable(
          `${table(status)}${more}${update === undefined ? '' : row('Update', update)}${attempt === undefined ? '' : row(attempt.source, attempt)}`,
        ),
  )
  return status.ok ? 0 : 1
}
