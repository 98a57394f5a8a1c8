import { randomBytes } from 'node:crypto'
import { mkdir, readFile, readdir, rm, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { ConfigError, defaults, parseConfig, serialize } from '../config/config.ts'
import type { Config } from '../config/config.ts'
import { activeConsoles } from '../base/consoles.ts'
import { GatehouseError, oneLine, reason } from '../base/errors.ts'
import { loadConfig } from '../config/load.ts'
import type { Moved } from '../config/migrate.ts'
import { chainFile } from '../certs/chain.ts'
import { credentials, handedFile, readHanded } from '../certs/secrets.ts'
import type { SecretKey } from '../certs/secrets.ts'
import { certsTargets } from '../firewall/certs-targets.ts'
import { gatewayTargets } from '../firewall/gateway-targets.ts'
import { syncDirectory, writeFileAtomic } from '../base/files.ts'
import { arch } from '../update/bundle.ts'
import { incoming } from '../update/extension.ts'
import { updatePaths } from '../update/record.ts'
import { alertHostsFile, notesFile, secretFile } from '../base/paths.ts'
import type { Paths, Secret } from '../base/paths.ts'
import {
  Misnamed,
  readAuthorities,
  readNodeRedSettings,
  readSettingsFile,
  readSmall,
} from './beside.ts'
import { readCertificate } from './certificate-files.ts'
import { readImager } from './imager.ts'
import type { ImagerSettings } from './imager.ts'
import { busNotes } from './buses.ts'
import { makeChannelKey } from './channel.ts'
import { makeCredentialSecret } from './credential-secret.ts'
import { applyDropIn, applyNetwork, systemctl } from './drop-in.ts'
import { attachExtensions } from './extensions.ts'
import type { ExtensionPaths } from './extensions.ts'
import { gatehouseDropIn } from './gatehouse-unit.ts'
import { kernelPathFiles } from './kernel-path.ts'
import { networkDropIns } from './network.ts'
import { consoleLines, nodeRedDropIn } from './node-red-unit.ts'
import { updateTimerDropIn } from './update-timer.ts'
import { isHashed, wifiConfig, wifiFile } from './wifi.ts'

/** What a run did. */
export interface ProvisionResult {
  /**
   * `new`: the card's settings were taken; `part`: those of them that are right were, for there are
   * none from before; `kept`: they were not, the last good configuration stays; `defaults`: there
   * is neither, defaults were written.
   */
  outcome: 'new' | 'part' | 'kept' | 'defaults'
  /** One line for the person, absent when all is well. */
  problem?: string
  /**
   * What Raspberry Pi Imager was asked for and this device does not do; absent when nothing was.
   */
  ignored?: string[]
  /**
   * Keys with another name now, what a later version wrote that this one does not understand, what
   * of Imager's was changed or left out; absent when there is none.
   */
  notes?: string[]
}

/**
 * How a secret is put into /run. There it is gone with the power, and for root alone; sealed with a
 * key that lies on the card it would be no safer, and with /var full could not be sealed at all.
 */
export type Seal = (name: Secret, secret: string) => Promise<Uint8Array | string>

const asItIs: Seal = async (_name, secret) => await Promise.resolve(secret)

/**
 * Takes the person's settings from the boot partition into the system, at boot, as root:
 * gatehouse.toml first, and what it does not say from Raspberry Pi Imager's files.
 *
 * What is written: into /run the secrets that are good for one boot ({@link secretFile}: `authkey`,
 * `eab-hmac-key`, 0600; of an empty text when there is none); into the configuration's directory
 * the files that gatehouse.toml names, wpa_supplicant's, and `gatehouse.toml` without secrets, each
 * replaced atomically and gatehouse.toml last, and none that is there already as it should be.
 *
 * A gatehouse.toml that is wrong changes nothing: the last good configuration stays, but for the
 * key that adds the device to the tailnet. Where there is none from before, what is right in it is
 * taken. A value of Imager's that is wrong takes no other with it. The problem goes to the problem
 * file; so does a configuration that cannot be written, as on a full disk.
 *
 * @param seal what is done to secrets before they are written
 * @param moves keys with another name now. Default: {@link moved}
 * @throws the system's error when not even /run can be written to
 */
export async function provision(
  paths: Pick<Paths, 'boot' | 'config' | 'problem'>,
  seal: Seal = asItIs,
  moves?: readonly Moved[],
): Promise<ProvisionResult> {
  const card = await readCard(paths, moves)
  await mkdir(dirname(paths.problem), { recursive: true, mode: 0o755 })
  await hand(paths, card)
  for (const [name, secret] of Object.entries(card.secrets) as Array<[Secret, string | undefined]>)
    // Of what cannot be read whole, a key that is not in it may still be there from before.
    if (secret !== undefined || card.config !== undefined)
      await writeFileAtomic(secretFile(paths, name), await seal(name, secret ?? ''), 0o600)
  await nameAlertHosts(paths, card)

  let { outcome } = card
  const problems = [...card.problems]
  if (card.config !== undefined) {
    try {
      await write(paths.config, card.config, card.files, card.keepWifi)
    } catch (err) {
      const had = await exists(join(paths.config, 'gatehouse.toml'))
      outcome = had ? 'kept' : 'defaults'
      problems.unshift(
        new GatehouseError(
          'GH_PROVISION_WRITE',
          `the settings on the card cannot be taken over: ${reason(err)}`,
          'Make room where flows have filled the disk, and start the device again',
        ),
      )
    }
  }
  const [first, ...rest] = problems
  if (first === undefined) await rm(paths.problem, { force: true })
  const more = rest.map((problem) => ` ${problem.line}`).join('')
  const problem = first === undefined ? undefined : `${first.line}${more}${stays(outcome, card)}`
  if (problem !== undefined) await writeFileAtomic(paths.problem, `${problem}\n`, 0o644)
  return {
    outcome,
    ...(problem === undefined ? {} : { problem }),
    ...(card.ignored.length === 0 ? {} : { ignored: card.ignored }),
    ...(card.notes.length === 0 ? {} : { notes: card.notes }),
  }
}

/**
 * Says which secrets the certificates' agent is handed, with a mark by which it can say that it has
 * them. The mark stays while they stay, so that what it said meanwhile goes on being true.
 */
async function hand(
  paths: Pick<Paths, 'problem'>,
  { secrets }: Pick<Card, 'secrets'>,
): Promise<void> {
  const pairs = Object.entries(credentials) as Array<[SecretKey, Secret]>
  const keys = pairs.filter(([, name]) => secrets[name] !== undefined).map(([key]) => key)
  if (keys.length === 0) {
    await rm(handedFile(paths), { force: true })
    return
  }
  const before = await readHanded(paths)
  const same = await Promise.all(
    pairs.map(async ([, name]) => {
      const had = await readFile(secretFile(paths, name), 'utf8').catch(() => '')
      return had === (secrets[name] ?? '')
    }),
  )
  if (before !== undefined && before.keys.join() === keys.join() && same.every(Boolean)) return
  const handed = { mark: randomBytes(16).toString('hex'), keys }
  await writeFileAtomic(handedFile(paths), JSON.stringify(handed), 0o644)
}

function stays(outcome: ProvisionResult['outcome'], { imager }: Card): string {
  if (outcome === 'kept') return ' The last good configuration stays in force.'
  if (outcome === 'part') return ' All else in it is in force.'
  if (outcome === 'new') return ''
  return imager ? ' Defaults are in force for the rest.' : ' Defaults are in force.'
}

/** What is on the card, judged. */
interface Card {
  outcome: ProvisionResult['outcome']
  /** What is to be in force; undefined: what is. */
  config: Config | undefined
  /** Content of the files that the configuration names. */
  files: Map<string, string>
  /** Undefined where none is on the card. */
  secrets: Record<Secret, string | undefined>
  /** Whether the WiFi network from before stays, since what is there now cannot be used. */
  keepWifi: boolean
  /** Whether Imager's values are among what is in force. */
  imager: boolean
  problems: GatehouseError[]
  notes: string[]
  ignored: string[]
}

async function readCard(
  paths: Pick<Paths, 'boot' | 'config'>,
  moves: readonly Moved[] | undefined,
): Promise<Card> {
  const imager = await readImager(paths.boot)
  const last = await lastGood(paths.config)
  const notes: string[] = []
  const own = await readOwn(paths.boot, moves, notes, imager.wifi.length > 0)
  const card: Card = {
    outcome: 'new',
    config: undefined,
    files: new Map(),
    secrets: secretsOf(own),
    keepWifi: false,
    imager: imager.present,
    problems: [],
    notes,
    ignored: imager.ignored,
  }
  const wrong = [...own.wrong]
  const missing = wrong[0]?.code === 'GH_CONFIG_MISSING'
  const nothing = defaults()
  // One that holds nothing is not worth keeping, when a first gatehouse.toml has a mistake.
  const had = last !== undefined && (missing || !isDeepStrictEqual(last, nothing))
  const usable = imager.present && (imager.wrong.length === 0 || holdsSomething(imager))

  if (missing && usable) {
    // A card that Imager wrote needs no second file.
    if (!(wrong[0] instanceof Misnamed)) wrong.shift()
  } else if (wrong.length > 0 && had) {
    card.outcome = 'kept'
    card.problems = missing ? [...imager.wrong, ...wrong] : [...wrong, ...imager.wrong]
    card.notes.push(...imager.notes)
    // A key is meant for the control server that is written beside it.
    if (own.config?.tailnet.controlURL !== last.tailnet.controlURL) card.secrets.authkey = undefined
    return card
  } else if (wrong.length > 0) {
    card.outcome = own.config === undefined ? 'defaults' : 'part'
  }
  const config = own.config ?? nothing
  // Where the file it is written in has mistakes, [wifi] is not the last word on countries.
  card.keepWifi = merge(config, imager, card.notes) && config.wifi.length === 0
  card.config = config
  card.files = own.files
  card.problems = missing ? [...imager.wrong, ...wrong] : [...wrong, ...imager.wrong]
  card.notes.push(...imager.notes)
  if (card.problems.length > 1) card.notes.push(...card.problems.map(({ line }) => line))
  return card
}

/** Whether anything in Imager's files was understood that is done here. */
function holdsSomething({ hostname, timezone, wifi, network }: ImagerSettings): boolean {
  return (hostname ?? timezone) !== undefined || wifi.length + network.length > 0
}

/**
 * Puts Imager's values where gatehouse.toml says nothing.
 *
 * @returns whether a WiFi network of Imager's was left out
 */
function merge(config: Config, imager: ImagerSettings, notes: string[]): boolean {
  const { hostname, timezone, wifi, network, wrong, countryless } = imager
  const { tailnet, node_red: nodeRed } = config
  if (hostname !== undefined && tailnet.hostname === defaults().tailnet.hostname)
    tailnet.hostname = hostname
  nodeRed.timezone ??= timezone
  const proxy = config.network.find((entry) => entry.proxy !== undefined)?.proxy
  // A proxy alone says nothing of addresses.
  if (
    network.length > 0 &&
    config.network.every(
      ({ addresses, dns, search, dhcp }) =>
        addresses.length + dns.length + search.length === 0 && dhcp === undefined,
    )
  )
    config.network = network.map((entry) => ({ ...entry, proxy }))
  const own = config.wifi.some(
    ({ ssid, ssidHex, password }) => (ssid ?? ssidHex ?? password) !== undefined,
  )
  if (own) return false
  const country = config.wifi.find((entry) => entry.country !== undefined)?.country
  if (wifi.length > 0)
    config.wifi = wifi.map((entry) => ({ ...entry, country: country ?? entry.country }))
  if (country === undefined && countryless !== undefined) notes.push(countryless)
  return wrong.some(({ message }) => message.startsWith('network-config'))
}

/** gatehouse.toml: what it says, and what is wrong with it. */
interface Own {
  /** As far as it is right; undefined when nothing of it can be read. */
  config: Config | undefined
  /** The files it names. */
  files: Map<string, string>
  /** PEM of key_file's key; undefined where the card has none (any more). */
  certificateKey?: string | undefined
  /** Empty: `config` is all of it. */
  wrong: GatehouseError[]
}

async function readOwn(
  boot: string,
  moves: readonly Moved[] | undefined,
  notes: string[],
  otherWifi: boolean,
): Promise<Own> {
  const own: Own = { config: undefined, files: new Map(), wrong: [] }
  const options = moves === undefined ? {} : { moves }
  let data: Buffer
  try {
    data = await readSettingsFile(boot)
    const note = (text: string): void => {
      notes.push(text)
    }
    own.config = parseConfig(data, 'gatehouse.toml', { ...options, note })
  } catch (err) {
    if (!(err instanceof GatehouseError)) throw err
    own.wrong.push(err)
    if (!(err instanceof ConfigError)) return own
    try {
      own.config = parseConfig(data!, 'gatehouse.toml', { ...options, lenient: true })
    } catch {
      return own
    }
    // A key for a control server whose address is not understood is not sent to another.
    if (
      err.issues.some(
        ({ message, cure }) =>
          message.includes('control_url') || cure.startsWith('Did you mean control_url'),
      )
    )
      Object.assign(own.config.tailnet, { authKey: undefined, clientSecret: undefined })
  }
  await checkWhole(boot, own.config, own, notes, otherWifi)
  return own
}

/** What one key alone does not tell; what is wrong is taken out of `config`. */
async function checkWhole(
  boot: string,
  config: Config,
  own: Own,
  notes: string[],
  otherWifi: boolean,
): Promise<void> {
  const { files, wrong } = own
  const { certificates, node_red: nodeRed } = config
  const step = async (work: () => void | Promise<void>, without: () => void): Promise<void> => {
    try {
      await work()
    } catch (err) {
      if (!(err instanceof GatehouseError)) throw err
      wrong.push(err)
      without()
    }
  }
  await step(
    () => {
      // A country alone may be meant for a network that Imager has written.
      const networks = config.wifi.filter(
        ({ ssid, ssidHex, password }) => !otherWifi || (ssid ?? ssidHex ?? password) !== undefined,
      )
      wifiConfig(networks)
    },
    () => {
      // Half a network is none; one without a country alone is one (wifiConfig's `world`).
      config.wifi = config.wifi.filter(({ ssid, ssidHex }) => (ssid ?? ssidHex) !== undefined)
    },
  )
  for (const { ssid, ssidHex, password } of config.wifi)
    if (password !== undefined && isHashed(password))
      notes.push(
        `the WiFi network ${JSON.stringify(ssid ?? ssidHex)} (gatehouse.toml) has a key ` +
          'instead of its password; where it speaks WPA3 alone, the password itself is needed',
      )
  const { eabKeyId, eabHmacKey } = certificates
  await step(
    () => {
      if ((eabKeyId === undefined) === (eabHmacKey === undefined)) return
      const [there, missing] =
        eabKeyId === undefined ? ['eab_hmac_key', 'eab_key_id'] : ['eab_key_id', 'eab_hmac_key']
      throw new GatehouseError(
        'GH_CONFIG_VALUE',
        `gatehouse.toml has ${there} without ${missing}`,
        'Write both as the authority gave them, or neither',
      )
    },
    () => {
      Object.assign(certificates, { eabKeyId: undefined, eabHmacKey: undefined })
    },
  )
  for (const holder of [config.tailnet, certificates, ...config.app]) {
    const { caFile } = holder
    if (caFile !== undefined)
      await step(
        async () => {
          files.set(caFile, await readAuthorities(boot, caFile))
        },
        () => {
          holder.caFile = undefined
        },
      )
  }
  await step(
    async () => {
      const taken = await readCertificate(boot, certificates, readSmall)
      if (taken === undefined) return
      files.set(chainFile, taken.chain)
      own.certificateKey = taken.key
      certificates.name = taken.names
    },
    () => {
      const { certificates: usual } = defaults()
      Object.assign(certificates, { mode: usual.mode, name: [], certFile: undefined })
      certificates.keyFile = undefined
    },
  )
  const { settingsFile } = nodeRed
  if (settingsFile !== undefined)
    await step(
      async () => {
        files.set(settingsFile, await readNodeRedSettings(boot, settingsFile))
      },
      () => {
        nodeRed.settingsFile = undefined
      },
    )
}

function secretsOf({
  config,
  certificateKey,
}: Pick<Own, 'config' | 'certificateKey'>): Card['secrets'] {
  return {
    'tsig-key': config?.certificates.tsigKey,
    'acme-dns-password': config?.certificates.acmeDnsPassword,
    'certificate-key': certificateKey,
    authkey: config?.tailnet.authKey ?? clientKey(config?.tailnet.clientSecret),
    'eab-hmac-key': config?.certificates.eabHmacKey,
    alerts: alertsOf(config),
    'node-red-env':
      config?.node_red.env === undefined ? undefined : JSON.stringify(config.node_red.env),
  }
}

/** [alerts] as the one who sends them reads it; undefined when there is nowhere to send. */
function alertsOf(config: Config | undefined): string | undefined {
  const alerts = config?.alerts
  return (alerts?.webhook ?? alerts?.ntfy) === undefined ? undefined : JSON.stringify(alerts)
}

/** Tells the firewall which servers those are, and nothing more of their URLs. */
async function nameAlertHosts(
  paths: Pick<Paths, 'problem'>,
  { config }: Pick<Card, 'config'>,
): Promise<void> {
  if (config === undefined) return
  const file = alertHostsFile(paths)
  const { webhook, ntfy } = config.alerts
  const origins = [webhook, ntfy].flatMap((url) => (url === undefined ? [] : new URL(url).origin))
  const text = [...new Set(origins)].map((origin) => `${origin}\n`).join('')
  const before = await readFile(file, 'utf8').catch(() => '')
  if (text === before) return
  // The firewall's path unit sees it go, too.
  if (text === '') await rm(file, { force: true })
  else await writeFileAtomic(file, text, 0o644)
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

/** The configuration from before, without its secrets; undefined when there is none that is right. */
async function lastGood(directory: string): Promise<Config | undefined> {
  return await loadConfig(directory).catch(() => undefined)
}

async function write(
  directory: string,
  config: Config,
  files: ReadonlyMap<string, string>,
  keepWifi: boolean,
): Promise<void> {
  await mkdir(directory, { recursive: true, mode: 0o755 })
  // Settings of Node-RED's are for systemd to hand over: there may be passwords in them.
  for (const [name, content] of files)
    await put(join(directory, name), content, name === config.node_red.settingsFile ? 0o600 : 0o644)
  const wifi = wifiConfig(config.wifi, { world: true })
  // On the card's other partition, as it is on this one: after a mistake in gatehouse.toml the
  // network must be there all the same.
  if (wifi !== undefined) await put(join(directory, wifiFile), wifi, 0o600)
  else if (!keepWifi) await rm(join(directory, wifiFile), { force: true })
  await put(join(directory, 'gatehouse.toml'), serialize(config), 0o644)
  // Files no longer named, what a crash left, and secrets that earlier versions kept here: only
  // after the file that may name them has been replaced.
  let removed = false
  for (const name of await readdir(directory)) {
    if (
      (/\.(pem|js|crt)$/.test(name) && !files.has(name)) ||
      /^\..*\.tmp$/.test(name) ||
      ['authkey', 'eab-hmac-key'].includes(name)
    ) {
      await rm(join(directory, name), { force: true })
      removed = true
    }
  }
  if (removed) await syncDirectory(directory)
}

/** Writes a file, but not one that is there as it should be: it spares the card, and a full disk. */
async function put(path: string, content: string, mode: number): Promise<void> {
  const same = await Promise.all([readFile(path, 'utf8'), stat(path)]).then(
    ([text, { mode: had }]) => text === content && (had & 0o777) === mode,
    () => false,
  )
  if (!same) await writeFileAtomic(path, content, mode)
}

async function exists(path: string): Promise<boolean> {
  return await stat(path).then(
    () => true,
    () => false,
  )
}

/**
 * `gatehouse provision`: 0 when there is a configuration to go by, be it one from before; what is
 * wrong with the card is in the problem file, for status, consoles and card. 1 when there is none,
 * or systemd does not take its units: also then all that can be done is, and the gateway starts and
 * says so.
 */
export async function runProvision(paths: Paths, seal: Seal = asItIs): Promise<number> {
  const failures: GatehouseError[] = []
  const attempt = async (
    work: () => Promise<void>,
    code: string,
    message: string,
    cure: string,
  ): Promise<void> => {
    try {
      await work()
    } catch (err) {
      const why = err instanceof GatehouseError ? err.line : reason(err)
      failures.push(new GatehouseError(code, `${message}: ${why}`, cure))
    }
  }
  const again = 'Start the device again; if it stays, the card is worn: write the image to another'
  await attempt(
    async () => {
      await makeChannelKey(paths.channel)
    },
    'GH_PROVISION_WRITE',
    'the key that gateway and Node-RED share cannot be written',
    again,
  )
  const notes: string[] = []
  let problem: string | undefined
  await attempt(
    async () => {
      const result = await provision(paths, seal)
      problem = result.problem
      notes.push(...(result.notes ?? []))
      for (const what of result.ignored ?? [])
        notes.push(`asked for in Raspberry Pi Imager, and ignored: ${what}`)
    },
    'GH_PROVISION_WRITE',
    'the settings on the card cannot be taken over',
    again,
  )
  await attempt(
    async () => {
      await makeCredentialSecret(paths.config)
    },
    'GH_PROVISION_WRITE',
    "the key for credentials in Node-RED's flows cannot be written, so Node-RED does not start",
    'Make room where flows have filled the disk, and start the device again',
  )
  // From what is in force, which after a mistake is the last good one.
  let config = defaults()
  await attempt(
    async () => {
      config = await loadConfig(paths.config, (text) => {
        notes.push(text)
      })
    },
    'GH_PROVISION_WRITE',
    'there are no settings to go by',
    again,
  )
  notes.push(...(await busNotes(paths.boot, config.node_red.devices)))
  const inForce: Array<[part: string, work: () => Promise<void>]> = [
    [
      '[console]',
      async () => {
        await flag(paths, 'console', config.console.login)
      },
    ],
    [
      'control_url, [[app]] or [[forward]]',
      async () => {
        await flag(
          paths,
          'targets',
          gatewayTargets(config).length + certsTargets(config).length > 0,
        )
      },
    ],
    [
      '[network] or [tailnet] data_path',
      async () => {
        const files = [...networkDropIns(config.network), ...kernelPathFiles(config.tailnet)]
        await applyNetwork(new Map(files), join(dirname(paths.units), 'network'))
      },
    ],
    [
      '[node_red]',
      async () => {
        const text = nodeRedDropIn(
          config.node_red,
          paths.config,
          config.console.login ? await consoles() : [],
        )
        await applyDropIn('node-red.service', text, paths.units)
      },
    ],
    [
      '[local_network] or [tailnet] data_path',
      async () => {
        await applyDropIn('gatehouse.service', gatehouseDropIn(config), paths.units)
      },
    ],
    [
      '[updates]',
      async () => {
        const text = updateTimerDropIn(config.updates, config.node_red.timezone)
        await applyDropIn('gatehouse-update.timer', text, paths.units)
      },
    ],
  ]
  for (const [part, work] of inForce)
    await attempt(
      work,
      'GH_PROVISION_UNIT',
      `${part} is not in force, all goes on as before`,
      'Start the device again',
    )

  // Each concerns one program beside Node-RED: told, and no failure of this one.
  const refused: GatehouseError[] = []
  await attempt(
    async () => {
      const result = await attachExtensions(config, paths, await extensionPaths(paths))
      refused.push(...result.wrong)
      notes.push(...result.notes)
    },
    'GH_PROVISION_UNIT',
    '[[extension]] is not in force, all goes on as before',
    'Start the device again',
  )
  // Not by a path unit: what it has seen and not yet acted on is lost where systemd is told to read
  // its units anew at the same time, as it is above. At boot the start is queued already.
  await attempt(
    async () => {
      await systemctl('--no-block', 'start', 'gatehouse-firewall.service')
    },
    'GH_PROVISION_UNIT',
    'the lists of who may call whom are not in force, those before stay',
    'Start the device again',
  )

  const lines = [problem, ...[...failures, ...refused].map(({ line }) => line)].filter(
    (line) => line !== undefined,
  )
  const said = [...notes.filter((note) => !(problem ?? '').includes(note)), ...lines]
  for (const text of said) process.stderr.write(`gatehouse provision: ${oneLine(text)}\n`)
  try {
    if (failures.length + refused.length > 0) {
      await mkdir(dirname(paths.problem), { recursive: true, mode: 0o755 })
      await writeFileAtomic(paths.problem, `${lines.join(' ')}\n`, 0o644)
    }
    const text = notes.map((note) => `${oneLine(note)}\n`).join('')
    if (notes.length > 0) await writeFileAtomic(notesFile(paths), text, 0o644)
    else await rm(notesFile(paths), { force: true })
  } catch (err) {
    process.stderr.write(`gatehouse provision: nothing can be written: ${reason(err)}\n`)
    return 1
  }
  return failures.length === 0 ? 0 : 1
}

/** Where extensions are, and whose are believed. */
async function extensionPaths(
  { boot }: Pick<Paths, 'boot'>,
  env: NodeJS.ProcessEnv = process.env,
): Promise<ExtensionPaths> {
  const { extensions, key } = updatePaths(env)
  return {
    sources: [
      { folder: boot, called: 'on the card' },
      { folder: join(extensions, incoming), called: 'from updates.url' },
    ],
    kept: extensions,
    data: env.GATEHOUSE_EXTENSION_DATA_DIR ?? '/var/lib/gatehouse-extension-data',
    key: await readFile(key, 'utf8').catch(() => ''),
    arch,
  }
}

/** The lines on which [console] login has root's shell. */
async function consoles(): Promise<string[] | 'unknown'> {
  return await activeConsoles().then(consoleLines, () => 'unknown' as const)
}

/**
 * A file that is there when a unit has something to do: `console` for gatehouse-console.service
 * ([console] login), `targets` for gatehouse-firewall.service (a control server, targets of apps
 * and forwards). In /run, so that it is gone with the power.
 */
async function flag(paths: Paths, name: 'console' | 'targets', on: boolean): Promise<void> {
  const path = join(dirname(paths.problem), name)
  if (on) await writeFileAtomic(path, '', 0o644)
  else await rm(path, { force: true })
}
