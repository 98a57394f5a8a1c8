import { X509Certificate } from 'node:crypto'
import { mkdir, readFile, readdir, rm, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { Script } from 'node:vm'
import { ConfigError, defaults, parseConfig, serialize } from '../config/config.ts'
import type { Config, ParseOptions } from '../config/config.ts'
import { GatehouseError, reason } from '../base/errors.ts'
import { loadConfig } from '../config/load.ts'
import type { Moved } from '../config/migrate.ts'
import { gatewayTargets } from '../firewall/gateway-targets.ts'
import { syncDirectory, writeFileAtomic } from '../base/files.ts'
import { notesFile } from '../base/paths.ts'
import type { Paths } from '../base/paths.ts'
import { readImager } from './imager.ts'
import { makeChannelKey } from './channel.ts'
import { makeCredentialSecret } from './credential-secret.ts'
import { applyDropIn } from './drop-in.ts'
import { gatehouseDropIn } from './gatehouse-unit.ts'
import { nodeRedDropIn } from './node-red-unit.ts'
import { opensWithHostKey, sealWithHostKey } from './seal.ts'
import type { Seal } from './seal.ts'
import { updateTimerDropIn } from './update-timer.ts'
import { wifiConfig, wifiFile } from './wifi.ts'

/** Largest file read from the boot partition: what is bigger is no configuration. Bytes. */
const maxSize = 1 << 20

/** What a run did. */
export interface ProvisionResult {
  /**
   * `new`: the file was taken; `kept`: it was not, the last good configuration stays; `defaults`:
   * there is none, defaults were written.
   */
  outcome: 'new' | 'kept' | 'defaults'
  /** One line for the person, absent when all is well. */
  problem?: string
  /**
   * What Raspberry Pi Imager was asked for and this device does not do; absent when nothing was.
   */
  ignored?: string[]
  /**
   * Keys with another name now, and what a later version wrote that this one does not understand;
   * absent when there is none.
   */
  notes?: string[]
}

/**
 * Takes the person's gatehouse.toml from the boot partition into the system, at boot, as root.
 *
 * What is written: `gatehouse.toml` without the auth key, the authorities' file it names, and
 * `authkey` (0600, sealed; of an empty text when there is no key, so that systemd's
 * LoadCredentialEncrypted always finds it); `eab-hmac-key` likewise. All of it is validated before
 * the first byte is written; each file is replaced atomically and gatehouse.toml comes last.
 *
 * A file that is wrong or missing changes nothing: the last good configuration stays, and the
 * problem goes to the problem file. Only a system that cannot be written to at all makes it throw.
 *
 * @param seal how secrets are encrypted before they are written
 * @param moves keys with another name now. Default: {@link moved}
 */
export async function provision(
  paths: Pick<Paths, 'boot' | 'config' | 'problem'>,
  seal: Seal,
  moves?: readonly Moved[],
): Promise<ProvisionResult> {
  await mkdir(paths.config, { recursive: true, mode: 0o755 })
  const problem = async (err: GatehouseError): Promise<ProvisionResult> => {
    const had = await exists(join(paths.config, 'gatehouse.toml'))
    if (!had) await write(paths.config, defaults(), new Map(), seal)
    const stays = had ? 'The last good configuration stays in force' : 'Defaults are in force'
    const line = `${err.line} ${stays}.`
    await mkdir(dirname(paths.problem), { recursive: true, mode: 0o755 })
    await writeFileAtomic(paths.problem, `${line}\n`, 0o644)
    return { outcome: had ? 'kept' : 'defaults', problem: line }
  }

  let config: Config
  /** Content of the files that the configuration names. */
  const files = new Map<string, string>()
  let ignored: string[] = []
  const notes: string[] = []
  try {
    const imager = await readImager(paths.boot)
    config = await readBoot(paths.boot, {
      note: (text) => {
        notes.push(text)
      },
      ...(moves === undefined ? {} : { moves }),
    }).catch((err: unknown) => {
      // A card that Imager wrote needs no second file.
      if (imager !== undefined && err instanceof GatehouseError && err.code === 'GH_CONFIG_MISSING')
        return defaults()
      throw err
    })
    if (imager?.hostname !== undefined && config.tailnet.hostname === defaults().tailnet.hostname) {
      config.tailnet.hostname = parseConfig(
        `[tailnet]\nhostname = ${JSON.stringify(imager.hostname)}\n`,
        'user-data',
      ).tailnet.hostname
    }
    if (
      imager?.wifi !== undefined &&
      config.wifi.ssid === undefined &&
      config.wifi.password === undefined
    ) {
      config.wifi = parseConfig(
        `[wifi]\n${Object.entries(imager.wifi)
          .map(([name, value]) => `${name} = ${JSON.stringify(value)}\n`)
          .join('')}`,
        'network-config',
      ).wifi
    }
    wifiConfig(config.wifi)
    ignored = imager?.ignored ?? []
    const {
      certificates: { caFile, eabKeyId, eabHmacKey },
      node_red: { settingsFile },
    } = config
    if ((eabKeyId === undefined) !== (eabHmacKey === undefined)) {
      const [there, missing] =
        eabKeyId === undefined ? ['eab_hmac_key', 'eab_key_id'] : ['eab_key_id', 'eab_hmac_key']
      throw new GatehouseError(
        'GH_CONFIG_VALUE',
        `gatehouse.toml has ${there} without ${missing}`,
        'Write both as the authority gave them, or neither',
      )
    }
    for (const file of [config.tailnet.caFile, caFile, ...config.app.map((app) => app.caFile)])
      if (file !== undefined) files.set(file, await readAuthorities(paths.boot, file))
    if (settingsFile !== undefined)
      files.set(settingsFile, await readSettings(paths.boot, settingsFile))
  } catch (err) {
    if (err instanceof GatehouseError) return await problem(err)
    throw err
  }
  await write(paths.config, config, files, seal)
  await rm(paths.problem, { force: true })
  return {
    outcome: 'new',
    ...(ignored.length === 0 ? {} : { ignored }),
    ...(notes.length === 0 ? {} : { notes }),
  }
}

async function write(
  directory: string,
  config: Config,
  files: ReadonlyMap<string, string>,
  seal: Seal,
): Promise<void> {
  // Settings of Node-RED's are for systemd to hand over: there may be passwords in them.
  for (const [name, content] of files)
    await writeFileAtomic(
      join(directory, name),
      content,
      name === config.node_red.settingsFile ? 0o600 : 0o644,
    )
  const secrets = {
    authkey: config.tailnet.authKey ?? clientKey(config.tailnet.clientSecret),
    'eab-hmac-key': config.certificates.eabHmacKey,
  }
  for (const [name, secret] of Object.entries(secrets))
    await writeFileAtomic(join(directory, name), await seal(name, secret ?? ''), 0o600)
  const wifi = wifiConfig(config.wifi)
  // Not sealed: after a mistake in gatehouse.toml the network must be there all the same, and the
  // host key is another at each boot.
  if (wifi === undefined) await rm(join(directory, wifiFile), { force: true })
  else await writeFileAtomic(join(directory, wifiFile), wifi, 0o600)
  await writeFileAtomic(join(directory, 'gatehouse.toml'), serialize(config), 0o644)
  // Files no longer named, and what a crash left: only after the file that may name them has been
  // replaced.
  for (const name of await readdir(directory)) {
    if ((/\.(pem|js)$/.test(name) && !files.has(name)) || /^\..*\.tmp$/.test(name))
      await rm(join(directory, name), { force: true })
  }
  await syncDirectory(directory)
}

/**
 * An OAuth client secret as an auth key, which Tailscale knows by its prefix. The node is to stay
 * when it is off for a while, and nobody is to approve it: whoever wrote the secret did
 * (https://tailscale.com/kb/1215/oauth-clients, "Registering new nodes").
 */
function clientKey(secret: string | undefined): string | undefined {
  return secret === undefined || secret.includes('?')
    ? secret
    : `${secret}?ephemeral=false&preauthorized=true`
}

async function readBoot(boot: string, options: ParseOptions): Promise<Config> {
  const path = join(boot, 'gatehouse.toml')
  let data: Buffer
  try {
    data = await readSmall(path)
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
  return parseConfig(data, 'gatehouse.toml', options)
}

async function missing(boot: string): Promise<GatehouseError> {
  const names = await readdir(boot).catch(() => [] as string[])
  // Windows hides .txt, so "gatehouse.toml" saved from Notepad often is gatehouse.toml.txt.
  const near = names.find(
    (name) => /^gatehouse[^/]*\.(?:toml|txt|tml|conf)/i.test(name) || /^gatehouse\.?$/i.test(name),
  )
  return near === undefined
    ? new GatehouseError(
        'GH_CONFIG_MISSING',
        "There is no gatehouse.toml on the card's first partition",
        'Put the card into a computer and make a text file gatehouse.toml there with the lines [tailnet] and auth_key = "tskey-auth-…"; without a key, open the login URL that `gatehouse status` shows',
      )
    : new GatehouseError(
        'GH_CONFIG_MISSING',
        `There is no gatehouse.toml on the card's first partition, but a file ${JSON.stringify(near)}`,
        'Rename it to gatehouse.toml',
      )
}

async function readAuthorities(boot: string, name: string): Promise<string> {
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

async function readSettings(boot: string, name: string): Promise<string> {
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

async function readSmall(path: string): Promise<Buffer> {
  const { size } = await stat(path)
  if (size > maxSize) {
    throw new GatehouseError(
      'GH_CONFIG_READ',
      `${basename(path)} is ${size} bytes long`,
      'Put a text file of a few lines there',
    )
  }
  return await readFile(path)
}

async function exists(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    () => false,
  )
}

/**
 * `gatehouse provision`: always 0 unless the system's own directories cannot be written, or systemd
 * does not take its unit.
 */
export async function runProvision(paths: Paths, seal: Seal = sealWithHostKey): Promise<number> {
  try {
    await makeChannelKey(paths.channel)
    const { outcome, problem, ignored = [], notes = [] } = await provision(paths, seal)
    // What an earlier boot sealed keeps its units from starting once it does not open. The node has
    // its identity, and the agent its account.
    for (const name of outcome === 'kept' ? ['authkey', 'eab-hmac-key'] : []) {
      const path = join(paths.config, name)
      if (!(await opensWithHostKey(name, path)))
        await writeFileAtomic(path, await seal(name, ''), 0o600)
    }
    await makeCredentialSecret(paths.config)
    const config = await loadConfig(paths.config, (text) => {
      notes.push(text)
    })
    if (notes.length > 0)
      await writeFileAtomic(notesFile(paths), notes.map((text) => `${text}\n`).join(''), 0o644)
    else await rm(notesFile(paths), { force: true })
    for (const text of notes) process.stderr.write(`gatehouse provision: ${text}\n`)
    await flag(paths, 'console', config.console.login)
    await flag(paths, 'targets', gatewayTargets(config).length > 0)
    for (const what of ignored)
      process.stderr.write(
        `gatehouse provision: asked for in Raspberry Pi Imager, and ignored: ${what}\n`,
      )
    if (problem !== undefined) process.stderr.write(`gatehouse provision: ${problem}\n`)
  } catch (err) {
    const message = err instanceof ConfigError ? err.line : reason(err)
    process.stderr.write(
      `gatehouse provision: cannot write the configuration: ${message}. Check that ${paths.config} is writable and the disk not full. (GH_PROVISION_WRITE)\n`,
    )
    return 1
  }
  try {
    // From what is in force, which after a mistake is the last good one.
    const config = await loadConfig(paths.config)
    await applyDropIn('node-red.service', nodeRedDropIn(config.node_red, paths.config), paths.units)
    await applyDropIn('gatehouse.service', gatehouseDropIn(config.local_network), paths.units)
    await applyDropIn('gatehouse-update.timer', updateTimerDropIn(config.updates), paths.units)
    return 0
  } catch (err) {
    process.stderr.write(
      `gatehouse provision: [node_red], [local_network] or [updates] is not in force, all goes on as before: ${reason(err)}. Run systemctl restart gatehouse-provision. (GH_PROVISION_UNIT)\n`,
    )
    return 1
  }
}

/**
 * A file that is there when a unit has something to do: `console` for gatehouse-console.service
 * ([console] login), `targets` for gatehouse-firewall.service (a control server, targets of apps and forwards). In
 * /run, so that it is gone with the power.
 */
async function flag(paths: Paths, name: 'console' | 'targets', on: boolean): Promise<void> {
  const path = join(dirname(paths.problem), name)
  if (on) await writeFileAtomic(path, '', 0o644)
  else await rm(path, { force: true })
}
