import { createHash } from 'node:crypto'
import { mkdir, readFile, readdir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { GatehouseError, reason } from '../base/errors.ts'
import { readForeign, writeFileAtomic } from '../base/files.ts'
import type { Paths } from '../base/paths.ts'
import type { Config } from '../config/config.ts'
import {
  extensionIngresses,
  extensionName,
  extensionUsers,
  extensionsFile,
  parseExtensionPort,
} from '../config/extensions.ts'
import type { AttachedExtension } from '../config/extensions.ts'
import { parseIngress } from '../config/ingress.ts'
import { compareVersions } from '../update/bundle.ts'
import {
  checkKept,
  extensionFile,
  keptFiles,
  readExtensionHead,
  takeExtension,
} from '../update/extension.ts'
import type { Manifest, Wanted } from '../update/extension.ts'
import { replace, systemctl } from './drop-in.ts'

/** One [[extension]]. */
type Written = Config['extension'][number]

/** Where extensions are and who may make them. */
export interface ExtensionPaths {
  /** Folders where files of extensions are put, by what people call them; the newest counts. */
  sources: ReadonlyArray<{ folder: string; called: string }>
  /** Where they are kept: GATEHOUSE_EXTENSIONS_DIR, default /var/lib/gatehouse-extensions. */
  kept: string
  /** What they have stored, a directory each: GATEHOUSE_EXTENSION_DATA_DIR. */
  data: string
  /** The public key, PEM. */
  key: string
  /** Debian's word for this device's processor. */
  arch: string
}

/** An extension that may be attached, with what its unit needs. */
interface Attachable {
  written: Written
  manifest: Manifest
  /** Files of the person's that it gets, with a sum of each, so that a change starts it anew. */
  files: Array<{ name: string; sum: string }>
}

/** The unit of an extension, an instance of overlays' template. */
export function extensionUnit(name: string): string {
  return `gatehouse-extension@${name}.service`
}

/** Largest file of the person's that an extension gets (systemd's limit for a credential). Bytes. */
const largestFile = 1 << 20

/**
 * The part of an extension's unit that its manifest and gatehouse.toml decide, as a drop-in for
 * gatehouse-extension@.service, which has the sandbox: nothing in an extension widens it but
 * machine code that is made while it runs.
 */
export function extensionDropIn(
  { written, manifest, files }: Attachable,
  user: string,
  directory: string,
): string {
  const { name, memoryMib, listen } = written
  const { root, verity } = keptFiles(directory)
  return [
    `# Written by gatehouse provision: [[extension]] ${name} ${manifest.version}`,
    ...files.map((file) => `# ${file.name} ${file.sum}`),
    '[Unit]',
    `Description=${manifest.title.replaceAll('%', '%%')}`,
    '[Service]',
    `RootImage=${root}`,
    `RootVerity=${verity}`,
    `RootHash=${manifest.rootHash}`,
    `ExecStart=${manifest.command.map(quotedWord).join(' ')}`,
    `SyslogIdentifier=${name}`,
    `User=${user}`,
    `Group=${user}`,
    `MemoryMax=${memoryMib}M`,
    ...manifest.ports.flatMap((text) => {
      const { port, protocol } = parseExtensionPort(text)!
      return `SocketBindAllow=${protocol}:${port}`
    }),
    // The second belt, behind the firewall's list.
    ...(listen.length === 0
      ? []
      : ['IPAddressAllow=10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7']),
    ...(manifest.jit === true ? ['MemoryDenyWriteExecute=no'] : []),
    ...files.map((file) => `LoadCredential=${file.name}:${filesOf(directory)}/${file.name}`),
    '',
  ].join('\n')
}

/** A word of a command line as systemd.service(5) has it. */
function quotedWord(word: string): string {
  return `"${word.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('%', '%%').replaceAll('$', '$$$$')}"`
}

const filesOf = (directory: string): string => `${directory}.files`

/**
 * What is wrong with an extension beside others and with Node-RED's own ports; undefined when it
 * fits.
 */
export function portsFit(
  { written: { name, listen }, manifest: { ports } }: Pick<Attachable, 'written' | 'manifest'>,
  others: ReadonlyArray<Pick<AttachedExtension, 'name' | 'ports'>>,
  nodeRed: readonly string[],
): GatehouseError | undefined {
  const wrong = (message: string, cure: string): GatehouseError =>
    new GatehouseError('GH_EXTENSION_PORT', message, cure)
  for (const { ports: asked, protocol, text } of extensionIngresses({ listen }))
    if (asked[0] !== asked[1] || !ports.includes(`${asked[0]}/${protocol}`))
      return wrong(
        `[[extension]] ${name} does not listen on what listen = ["${text}"] names`,
        `It listens on ${ports.join(' and ')}: write listen = ["${ports[0] ?? '1883/tcp'} from lan"]`,
      )
  const other = others.find((one) => one.ports.some((port) => ports.includes(port)))
  if (other !== undefined)
    return wrong(
      `the extensions ${other.name} and ${name} listen on the same port`,
      `Remove one of them from gatehouse.toml`,
    )
  for (const text of nodeRed) {
    const entry = parseIngress(text)
    if ('wrong' in entry) continue
    const {
      ports: [first, last],
      protocol,
    } = entry.ingress
    const same = ports
      .flatMap((port) => parseExtensionPort(port) ?? [])
      .find((own) => own.protocol === protocol && own.port >= first && own.port <= last)
    if (same !== undefined)
      return wrong(
        `[node_red] listen gives flows the port ${same.port}/${protocol}, which the extension ${name} listens on`,
        `Remove that entry of [node_red] listen, or the [[extension]]`,
      )
  }
  return undefined
}

/**
 * The user that each extension runs as: the one that owns what it has stored, where that is one of
 * ours; else the first that nobody's is.
 *
 * @param owners by name, the owner of each directory of data there is, also of extensions that are
 *   not attached any more
 */
export function chooseUsers(
  names: readonly string[],
  owners: ReadonlyMap<string, number>,
): Map<string, string> {
  const chosen = new Map<string, string>()
  for (const name of names) {
    const own = extensionUsers.find(({ id }) => id === owners.get(name))
    if (own !== undefined && ![...chosen.values()].includes(own.name)) chosen.set(name, own.name)
  }
  const others = new Set([...owners].filter(([name]) => !names.includes(name)).map(([, id]) => id))
  for (const name of names) {
    if (chosen.has(name)) continue
    const free = extensionUsers.filter((user) => ![...chosen.values()].includes(user.name))
    const user = free.find(({ id }) => !others.has(id)) ?? free[0]
    if (user !== undefined) chosen.set(name, user.name)
  }
  return chosen
}

/**
 * Attaches the extensions that gatehouse.toml names, and detaches those that it does not: takes new
 * files over from the card or from what was downloaded, checks what is kept, writes their units and
 * has systemd start, stop or restart those that have changed.
 *
 * What is wrong with one concerns that one alone. Where a new file is refused, what was taken over
 * before goes on.
 *
 * @returns what is wrong, a line for each; and what a person should know though it is not
 */
export async function attachExtensions(
  config: Pick<Config, 'extension' | 'node_red' | 'updates'>,
  paths: Pick<Paths, 'boot' | 'problem' | 'units'>,
  where: ExtensionPaths,
): Promise<{ wrong: GatehouseError[]; notes: string[] }> {
  const wrong: GatehouseError[] = []
  const notes: string[] = []
  const attachable: Attachable[] = []
  if (config.extension.length > 0) await mkdir(where.kept, { recursive: true, mode: 0o755 })
  for (const written of config.extension) {
    const found = await find(written, paths.boot, where)
    for (const one of found.wrong)
      // It is on its way: a change of settings that names it is not to be taken back.
      if (one.code === 'GH_EXTENSION_MISSING' && config.updates.url !== undefined)
        notes.push(
          `[[extension]] ${written.name}: ${extensionFile(written.name, where.arch)} is looked ` +
            'for at updates.url with the next update, or when you look for one (page Updates)',
        )
      else wrong.push(one)
    if (found.manifest === undefined) continue
    const one = { written, manifest: found.manifest, files: found.files }
    const unfit = portsFit(
      one,
      attachable.map(({ manifest }) => manifest),
      config.node_red.listen,
    )
    if (unfit === undefined) attachable.push(one)
    else wrong.push(unfit)
  }
  const users = chooseUsers(
    attachable.map(({ written: { name } }) => name),
    await ownersIn(where.data),
  )
  const attached = attachable.map(
    ({ written: { name, listen }, manifest: { title, version, ports } }): AttachedExtension => ({
      ...{ name, title, version, ports, listen },
      user: users.get(name)!,
    }),
  )
  for (const { title, version, ports } of attached)
    notes.push(`extension: ${title}, ${version}, on ${ports.join(' and ')}`)
  const text = attached.length === 0 ? '' : `${JSON.stringify(attached)}\n`
  await replace(extensionsFile(paths), text)
  await applyUnits(
    new Map(
      attachable.map((one) => [
        one.written.name,
        extensionDropIn(one, users.get(one.written.name)!, join(where.kept, one.written.name)),
      ]),
    ),
    paths.units,
  )
  // Nobody's any more; what it has stored stays, as flows' data do.
  const names = config.extension.map(({ name }) => name)
  for (const entry of await readdir(where.kept).catch(() => []))
    // What was downloaded has been taken over now, or never will be.
    if (!names.includes(entry.replace(/\.(?:files|new)$/, '')))
      await rm(join(where.kept, entry), { recursive: true, force: true })
  return { wrong, notes }
}

/** The newest of an extension that is right, and what is wrong with others. */
async function find(
  { name, files }: Written,
  boot: string,
  { sources, kept, key, arch }: ExtensionPaths,
): Promise<{ manifest?: Manifest; files: Attachable['files']; wrong: GatehouseError[] }> {
  const directory = join(kept, name)
  const wanted: Wanted = { name, arch, publicKey: key }
  const wrong: GatehouseError[] = []
  const had = await checkKept(directory, wanted).catch((err: NodeJS.ErrnoException) => {
    if (err instanceof GatehouseError) wrong.push(err)
    return undefined
  })
  let best = had
  let from: { path: string; file: string } | undefined
  let there = false
  for (const { folder, called } of sources) {
    const path = join(folder, extensionFile(name, arch))
    const file = `${extensionFile(name, arch)} ${called}`
    try {
      const head = await readExtensionHead(path, file, wanted)
      const order =
        best === undefined ? 1 : compareVersions(head.manifest.version, best.manifest.version)
      // Built anew, one counts more than what was taken over; an older one that still lies there, less.
      if (order > 0 || (order === 0 && from === undefined && head.text !== best?.text))
        [best, from] = [head, { path, file }]
      there = true
    } catch (err) {
      if ((err as NodeJS.ErrnoException).code === 'ENOENT') continue
      there = true
      wrong.push(asRefusal(err, file))
    }
  }
  let manifest = had?.manifest
  if (from !== undefined)
    try {
      manifest = await takeExtension(from.path, from.file, directory, wanted)
      // What was wrong with the device's copy is so no longer.
      if (had === undefined) wrong.splice(0)
    } catch (err) {
      wrong.push(asRefusal(err, from.file))
    }
  if (manifest === undefined && !there && wrong.length === 0)
    wrong.push(await missing(name, arch, boot))
  if (manifest === undefined) return { files: [], wrong }
  const taken: Attachable['files'] = []
  await mkdir(filesOf(directory), { recursive: true, mode: 0o700 })
  for (const file of files) {
    const to = join(filesOf(directory), file)
    try {
      const data = await readForeign(join(boot, file), largestFile)
      const same = await readFile(to).then(
        (before) => before.equals(data),
        () => false,
      )
      // Passwords may be in them: for systemd to hand over.
      if (!same) await writeFileAtomic(to, data, 0o600)
      taken.push({ name: file, sum: createHash('sha256').update(data).digest('hex').slice(0, 16) })
    } catch (err) {
      wrong.push(
        new GatehouseError(
          'GH_EXTENSION_FILE',
          `${file}, which [[extension]] ${name} names, cannot be read from the card: ${reason(err)}`,
          'Put it beside gatehouse.toml, or take it out of files; until then the extension is off',
        ),
      )
      // Without its settings it might let in whom they keep out.
      return { files: [], wrong }
    }
  }
  for (const file of await readdir(filesOf(directory)))
    if (!files.includes(file)) await rm(join(filesOf(directory), file), { force: true })
  return { manifest, files: taken, wrong }
}

function asRefusal(err: unknown, file: string): GatehouseError {
  return err instanceof GatehouseError
    ? err
    : new GatehouseError(
        'GH_EXTENSION_DAMAGED',
        `${file} cannot be read: ${reason(err)}`,
        'Copy the file that `make extension` leaves in out/ once more',
      )
}

async function missing(name: string, arch: string, boot: string): Promise<GatehouseError> {
  const other = arch === 'arm64' ? 'amd64' : 'arm64'
  const foreign = await stat(join(boot, extensionFile(name, other))).then(
    () => true,
    () => false,
  )
  return foreign
    ? new GatehouseError(
        'GH_EXTENSION_ARCH',
        `${extensionFile(name, other)} on the card is for ${other}, and this device is ${arch}`,
        `Put ${extensionFile(name, arch)} there: make extension NAME=${name} ARCH=${arch}`,
      )
    : new GatehouseError(
        'GH_EXTENSION_MISSING',
        `[[extension]] ${name}: there is no ${extensionFile(name, arch)} beside gatehouse.toml`,
        `Put the file that make extension NAME=${name} ARCH=${arch} leaves in out/ there, and start ` +
          'the device again; or put it into the folder of updates.url, and look for an update',
      )
}

/** Owners of the directories of what extensions have stored, by name. */
async function ownersIn(data: string): Promise<Map<string, number>> {
  const owners = new Map<string, number>()
  for (const name of await readdir(data).catch(() => []))
    if (extensionName.test(name)) owners.set(name, (await stat(join(data, name))).uid)
  return owners
}

/** Has systemd run what these drop-ins say, and nothing that they do not. */
async function applyUnits(dropIns: ReadonlyMap<string, string>, units: string): Promise<void> {
  const before = (await readdir(units).catch(() => [] as string[])).flatMap(
    (entry) => /^gatehouse-extension@(.+)\.service\.d$/.exec(entry)?.[1] ?? [],
  )
  const gone: string[] = []
  const changed: string[] = []
  for (const name of before)
    if (!dropIns.has(name)) {
      await replace(join(units, `${extensionUnit(name)}.d/50-gatehouse.conf`), '')
      await rm(join(units, `${extensionUnit(name)}.d`), { recursive: true, force: true })
      gone.push(extensionUnit(name))
    }
  for (const [name, text] of dropIns)
    if (await replace(join(units, `${extensionUnit(name)}.d/50-gatehouse.conf`), text))
      changed.push(extensionUnit(name))
  if (gone.length + changed.length > 0) await systemctl('daemon-reload')
  // It may be this very program that they wait for.
  if (gone.length > 0) await systemctl('--no-block', 'stop', ...gone)
  if (changed.length > 0) await systemctl('--no-block', 'restart', ...changed)
}
