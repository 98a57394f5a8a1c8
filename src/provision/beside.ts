import { X509Certificate } from 'node:crypto'
import { readFile, readdir, stat } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { Script } from 'node:vm'
import { GatehouseError, reason } from '../base/errors.ts'

/** Largest file read from the boot partition: what is bigger is no configuration. Bytes. */
const maxSize = 1 << 20

/**
 * gatehouse.toml as it is on the card.
 *
 * @throws GatehouseError GH_CONFIG_MISSING when there is none, GH_CONFIG_READ when it cannot be read
 */
export async function readSettingsFile(boot: string): Promise<Buffer> {
  const path = join(boot, 'gatehouse.toml')
  try {
    return await readSmall(path)
  } catch (err) {
    if ((err as NodeJS.ErrnoException).code === 'ENOENT') throw await missing(boot)
    if (err instanceof GatehouseError) throw err
    throw new GatehouseError(
      'GH_CONFIG_READ',
      `${path} cannot be read: ${reason(err)}`,
      "Check the card's first partition for errors on another computer and write the file again",
      { cause: err },
    )
  }
}

/** There is no gatehouse.toml, but a file that seems to be meant. */
export class Misnamed extends GatehouseError {}

/** What this device puts beside it itself, and macOS beside every file. */
const ours = /^(?:\.|gatehouse\.toml\.example$|gatehouse-status\.txt$|gatehouse-reset)/i

async function missing(boot: string): Promise<GatehouseError> {
  const names = await readdir(boot).catch(() => [] as string[])
  // Windows hides .txt, so "gatehouse.toml" saved from Notepad often is gatehouse.toml.txt.
  const near = names.find(
    (name) =>
      !ours.test(name) &&
      (/^gatehouse[^/]*\.(?:toml|txt|tml|conf|rtf|ya?ml|docx?)/i.test(name) ||
        /^gatehouse\.?$/i.test(name)),
  )
  return near === undefined
    ? new GatehouseError(
        'GH_CONFIG_MISSING',
        "There is no gatehouse.toml on the card's first partition",
        'Put the card into a computer and make a text file gatehouse.toml there with the ' +
          'lines [tailnet] and auth_key = "tskey-auth-…"; without a key, open the login URL ' +
          'that the screen and gatehouse-status.txt on the card show',
      )
    : new Misnamed(
        'GH_CONFIG_MISSING',
        `There is no gatehouse.toml on the card's first partition, but a file ${JSON.stringify(near)}`,
        /\.(?:rtf|docx?)$/i.test(near)
          ? 'Save it again as plain text with the name gatehouse.toml'
          : 'Rename it to gatehouse.toml',
      )
}

/**
 * The authorities' certificates of a PEM file beside gatehouse.toml.
 *
 * @throws GatehouseError GH_CONFIG_CA_FILE
 */
export async function readAuthorities(boot: string, name: string): Promise<string> {
  const path = join(boot, name)
  const wrong = (message: string, cure: string, cause?: unknown): GatehouseError =>
    new GatehouseError('GH_CONFIG_CA_FILE', message, cure, { cause })
  let text: string
  try {
    text = (await readSmall(path)).toString('utf8')
  } catch (err) {
    if (err instanceof GatehouseError) throw err
    throw wrong(
      `ca_file ${name} named in gatehouse.toml cannot be read: ${reason(err)}`,
      'Put the file beside gatehouse.toml, or remove the ca_file line',
      err,
    )
  }
  const blocks = text.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []
  if (blocks.length === 0)
    throw wrong(
      `ca_file ${name} holds no certificate`,
      "Write the authority's certificate into it in PEM form (it begins with -----BEGIN CERTIFICATE-----)",
    )
  try {
    // Written anew from what was parsed: a private key that stands in the same file is not carried
    // into a readable one.
    return blocks.map((block) => new X509Certificate(block).toString()).join('')
  } catch (err) {
    throw wrong(
      `ca_file ${name} holds a damaged certificate: ${reason(err)}`,
      'Export it again in PEM form',
      err,
    )
  }
}

/**
 * A file with settings of Node-RED's beside gatehouse.toml.
 *
 * @throws GatehouseError GH_CONFIG_SETTINGS_FILE
 */
export async function readNodeRedSettings(boot: string, name: string): Promise<string> {
  const wrong = (message: string, cure: string, cause: unknown): GatehouseError =>
    new GatehouseError('GH_CONFIG_SETTINGS_FILE', message, cure, { cause })
  let text: string
  try {
    text = (await readSmall(join(boot, name))).toString('utf8').replace(/^\uFEFF/, '')
  } catch (err) {
    if (err instanceof GatehouseError) throw err
    throw wrong(
      `settings_file ${name} named in gatehouse.toml cannot be read: ${reason(err)}`,
      'Put the file beside gatehouse.toml, or remove the settings_file line',
      err,
    )
  }
  try {
    // Parsed as a module of Node.js is, and not run.
    void new Script(`(function (exports, require, module) {${text}\n})`, { filename: name })
    return text
  } catch (err) {
    const line = new RegExp(`^${RegExp.escape(name)}:(\\d+)`).exec((err as Error).stack ?? '')?.[1]
    throw wrong(
      `settings_file ${name} is not JavaScript: ${line === undefined ? '' : `line ${line}: `}${reason(err)}`,
      'Correct it there; it has the form module.exports = { … }',
      err,
    )
  }
}

/** Reads a file of the card, which is no larger than settings are. */
export async function readSmall(path: string): Promise<Buffer> {
  const file = await stat(path)
  const { size } = file
  // A pipe or a device would never end.
  if (!file.isFile() && !file.isDirectory()) throw new Error(`${basename(path)} is not a file`)
  if (size > maxSize) {
    throw new GatehouseError(
      'GH_CONFIG_READ',
      `${basename(path)} is ${size} bytes long`,
      'Put a text file of a few lines there',
    )
  }
  return await readFile(path)
}
