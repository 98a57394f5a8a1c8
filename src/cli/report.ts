import { isUtf8 } from 'node:buffer'
import { spawnSync } from 'node:child_process'
import { open, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { renderUnicodeCompact } from 'uqr'
import { printable } from '../base/errors.ts'
import { stamp } from '../base/files.ts'
import { notesFile } from '../base/paths.ts'
import type { Paths } from '../base/paths.ts'
import type { GatewayStatus } from '../gateway/operate/status.ts'
import { attemptLine } from '../update/outcome.ts'
import { updateLine, updatePaths } from '../update/record.ts'
import {
  putOnCard,
  removeFromCard,
  withCard,
  withoutAuthKey,
  withoutKept,
  writeCard,
} from '../base/card.ts'
import { writeToConsoles } from '../base/consoles.ts'
import { parseConfig } from '../config/config.ts'
import { loadConfig } from '../config/load.ts'
import { authorityFile, readRecord, recordFile } from '../certs/record.ts'
import { readHanded } from '../certs/secrets.ts'
import { call, unreachable } from '../base/control-client.ts'
import { writeBuses } from '../provision/buses.ts'

/** Lines on a card for Windows' Notepad too. */
const crlf = (text: string): string => text.replaceAll('\n', '\r\n')

/**
 * How things are, for someone who has no shell on the device: what to open, what is wrong, what to
 * do. No times: a text that changes only when something happens is written to the card only then.
 */
export function report(status: GatewayStatus): string {
  const lines: string[] = []
  if (status.tailnet.loginURL !== undefined) {
    lines.push(
      'Gatehouse waits to be added to your tailnet. Open this address in a browser, on any device, and log in:',
      '',
      `  ${status.tailnet.loginURL}`,
      '',
      renderUnicodeCompact(status.tailnet.loginURL),
    )
  } else if (status.url !== undefined && status.tailnet.state === 'Running') {
    lines.push(
      'Gatehouse is on your tailnet. From a device that is too, open:',
      '',
      `  ${status.url}`,
      '',
    )
  } else {
    lines.push('Gatehouse is not on your tailnet yet.', '')
  }
  // A gateway of before an update does not say.
  const records = (status.certificate as Partial<GatewayStatus['certificate']>).records ?? []
  for (const { name, type, value, there } of records)
    if (!there)
      lines.push(
        'A certificate waits for a record in the DNS of your domain. Set there:',
        '',
        `  ${name}  ${type}  ${type === 'TXT' ? JSON.stringify(value) : value}`,
        '',
      )
  if (status.certificate.authority !== undefined && status.certificate.names.length > 0)
    lines.push(
      'Certificates are of an authority of this device alone. Let your devices trust its root once,',
      'gatehouse-ca.crt on this card or ' +
        `http://${new URL(status.url ?? 'https://gatehouse/').hostname}/ca.crt, whose SHA-256 ` +
        'fingerprint is',
      '',
      `  ${status.certificate.authority.fingerprint}`,
      '',
    )
  for (const problem of status.problems) {
    if (problem.code === 'GH_LOGIN_NEEDED') continue
    lines.push(
      `! ${problem.part}: ${problem.message}.`,
      `  What to do: ${problem.cure}. (${problem.code})`,
      '',
    )
  }
  return `${lines.join('\n').trimEnd()}\n`
}

/**
 * What a person should know of the settings on the card though they hold: the notes of
 * provisioning, but for those that a problem says already.
 */
function settings(notes: string, shown: string): string {
  const lines = notes.split('\n').filter((line) => line !== '' && !shown.includes(line))
  return lines.length === 0 ? '' : `\n${lines.map((line) => `- settings: ${line}\n`).join('')}`
}

/** When the gateway does not answer: what provisioning said, and where to look. */
function silent(problem: string, message: string): string {
  return `Gatehouse is starting, or cannot: ${message}.\n${problem === '' ? '' : `\n! configuration: ${problem}\n`}`
}

/**
 * `gatehouse report`, run as root whenever the gateway's state changes: puts how things are on the
 * consoles and into gatehouse-status.txt on the card; and once the device has joined, takes the
 * auth key off the card and out of the configuration.
 *
 * What changes while it runs it reports too: systemd does not watch a path while the unit that it
 * starts is active, and tells of nothing that happened in that time (path_enter_running() in
 * src/core/path.c).
 *
 * @param settle milliseconds that nothing may have changed in
 */
export async function runReport(paths: Paths, settle = 300): Promise<number> {
  for (let rounds = 0; rounds < 20; rounds++) {
    const before = await changed(paths)
    await reportOnce(paths)
    await sleep(settle)
    if ((await changed(paths)) === before) break
  }
  return 0
}

/** What gatehouse-report.path watches: another text when one of them has been written. */
async function changed({ told, tls }: Pick<Paths, 'told' | 'tls'>): Promise<string> {
  return await stamp([told, updatePaths().outcome, join(tls, recordFile)])
}

async function reportOnce(paths: Paths): Promise<void> {
  let text: string
  let joined = false
  let self = false
  const card = await readSettings(paths)
  try {
    const answer = await call(paths.admin, 'GET', '/v1/status')
    if (answer.status !== 200) throw new Error(`the gateway answers ${answer.status}`)
    const status = answer.body as GatewayStatus
    text = report(status)
    self = status.certificate.mode === 'self'
    const update = await updateLine()
    if (update?.failed === true) text += `\n! update: ${update.text}.\n`
    const attempt = await attemptLine(updatePaths())
    if (attempt !== undefined)
      text += `\n${attempt.failed ? '! ' : ''}update, ${attempt.source}: ${attempt.text}\n`
    joined = status.tailnet.state === 'Running' && status.tailnet.name !== undefined
  } catch (err) {
    text = silent(
      (await readFile(paths.problem, 'utf8').catch(() => '')).trim(),
      unreachable(err, paths.admin).message,
    )
  }
  // Also where the gateway does not answer: what it says of them comes from the same file.
  text += settings(await readFile(notesFile(paths), 'utf8').catch(() => ''), text)
  // Much of it is others' words: names of the tailnet, what a server or an update said.
  text = printable(text)
  const shown = join(paths.reported, 'shown')
  if ((await readFile(shown, 'utf8').catch(() => '')) !== text) {
    await writeToConsoles(text)
    await writeFile(shown, text)
  }
  await writeCard(paths.boot, join(paths.boot, 'gatehouse-status.txt'), crlf(text))
  const root = await readFile(join(paths.tls, authorityFile), 'utf8').catch(() => undefined)
  if (self && root !== undefined)
    await writeCard(paths.boot, join(paths.boot, 'gatehouse-ca.crt'), root)
  const config = await loadConfig(paths.config).catch(() => undefined)
  if (config !== undefined) await writeBuses(paths.boot, config.node_red.devices)
  if (joined) await forgetAuthKey(paths, card)
  await forgetKept(paths)
}

const settingsFile = (boot: string): string => join(boot, 'gatehouse.toml')

async function readSettings({ boot }: Pick<Paths, 'boot'>): Promise<Buffer> {
  return await readFile(settingsFile(boot)).catch(() => Buffer.alloc(0))
}

/**
 * The identity is on disk since before the node was "Running". The card comes first, since the next
 * boot would take the key from it again; provisioning then replaces the copy in /run by an empty
 * one, and a power cut between the two is put right by that boot.
 *
 * @param read the card's gatehouse.toml as it was before the node was asked: what somebody has
 * written since has not been used
 */
async function forgetAuthKey(paths: Pick<Paths, 'boot'>, read: Buffer): Promise<void> {
  // What is not UTF-8 was never read, so no key of it was used; yet it comes off, and each byte of
  // the rest stays.
  const encoding = isUtf8(read) ? 'utf8' : 'latin1'
  const without = withoutAuthKey(read.toString(encoding))
  if (without === undefined) return
  const done = await withCard(paths.boot, async () => {
    if (!(await readSettings(paths)).equals(read)) return false
    await putOnCard(settingsFile(paths.boot), Buffer.from(without, encoding))
    return true
  })
  if (done) taken('the auth key has been used and is')
}

/** Says so, and has provisioning take it out of what it has made of the card. */
function taken(what: string): void {
  process.stdout.write(`${what} taken off the card\n`)
  spawnSync('systemctl', ['--no-block', 'restart', 'gatehouse-provision.service'], {
    stdio: 'ignore',
  })
}

/**
 * Takes off the card what the certificates' agent says it has used and keeps: of this boot's
 * secrets, by their mark. A key's file is overwritten before it goes; a card's controller may keep
 * the old blocks all the same (docs/security.md).
 */
async function forgetKept(paths: Paths): Promise<void> {
  const { boot, tls } = paths
  const handed = await readHanded(paths)
  const kept = (await readRecord(tls))?.kept
  if (handed === undefined || kept?.mark !== handed.mark) return
  const keys = handed.keys.filter((key) => kept.keys.includes(key))
  const read = async (): Promise<string> => (await readSettings(paths)).toString()
  if (withoutKept(await read(), keys) === undefined) return
  const done = await withCard(boot, async () => {
    const text = await read()
    const without = withoutKept(text, keys)
    if (without === undefined) return false
    const keyFile = keys.includes('key_file') ? keyFileOf(text) : undefined
    // The line first: without its file a line would be an error at the next boot.
    await putOnCard(settingsFile(boot), without)
    if (keyFile !== undefined) await shred(join(boot, keyFile))
    return true
  })
  if (done) taken(`${keys.join(', ')} has been used and is`)
}

function keyFileOf(text: string): string | undefined {
  try {
    return parseConfig(text, 'gatehouse.toml', { lenient: true }).certificates.keyFile
  } catch {
    return undefined
  }
}

async function shred(path: string): Promise<void> {
  const size = await stat(path).then(
    (found) => found.size,
    () => 0,
  )
  if (size > 0) {
    const opened = await open(path, 'r+')
    try {
      await opened.write(Buffer.alloc(size), 0, size, 0)
      await opened.sync()
    } finally {
      await opened.close()
    }
  }
  await removeFromCard(path)
}
