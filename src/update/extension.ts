import { createHash, createPublicKey, verify } from 'node:crypto'
import { createReadStream } from 'node:fs'
import type { FileHandle } from 'node:fs/promises'
import { mkdir, open, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { GatehouseError, reason } from '../base/errors.ts'
import { openForeign, syncDirectory } from '../base/files.ts'
import { extensionName, parseExtensionPort } from '../config/extensions.ts'

/**
 * A program beside Node-RED in one file, as tools/extension.ts makes it: `NAME-ARCH.extension`.
 *
 * Three lines of text, then two file systems' worth of bytes:
 *
 *     gatehouse extension 1
 *     <Ed25519 signature, base64, of the third line behind {@link context}>
 *     <the manifest, JSON in one line>
 *     <the root: erofs><its hash tree: dm-verity>
 *
 * The signature is by the key that signs updates: what is believed is what whoever made the image
 * made too. It covers the root hash, and that covers every block of the root, each time it is read.
 */
export interface Manifest {
  name: string
  /** What it is, for people. */
  title: string
  version: string
  /** Debian's word for the processor. */
  arch: string
  /** The program and its arguments, in the extension's own root. */
  command: string[]
  /** Where it listens, `1883/tcp`; no other port can be. */
  ports: string[]
  /** Whether it makes machine code while it runs, as Node.js and Java do. Default: false. */
  jit?: boolean
  root: Piece
  verity: Piece
  /** Of the hash tree (veritysetup(8)), 64 hexadecimal digits. */
  rootHash: string
}

/** One of the two parts behind the manifest. */
export interface Piece {
  /** Bytes. */
  size: number
  /** SHA-256, hexadecimal. */
  sha256: string
}

/** The first line of the file: what it is, and the number of this form of it. */
export const magic = 'gatehouse extension 1'

/**
 * What stands before the manifest in the message that is signed, so that no signature of this key's
 * for something else is one of an extension.
 */
export const context = `${magic}\n`

/** Longest beginning of a file, up to its manifest's end. Bytes. */
const longestHead = 65_536

/** Largest file: two of them, and the kernel images, fit on the card's FAT partition. Bytes. */
export const largestExtension = 128 * 2 ** 20

/** Where what was downloaded waits for gatehouse-provision, in the folder of extensions: root's. */
export const incoming = '.incoming'

/** The name of an extension's file. */
export function extensionFile(name: string, arch: string): string {
  return `${name}-${arch}.extension`
}

/** Length of the beginning of a file in bytes; undefined while its third line is not whole. */
export function headLength(data: Buffer): number | undefined {
  let at = 0
  for (let line = 0; line < 3; line++) {
    at = data.indexOf(10, at) + 1
    if (at === 0) return undefined
  }
  return at
}

/** The beginning of a file, after its signature has been checked. */
export interface Head {
  manifest: Manifest
  /** As it was, to be kept: a signature is checked again at each boot. */
  text: string
}

/**
 * Reads the beginning of an extension's file.
 *
 * @param data as much of it as there is; what lies behind the manifest is not looked at
 * @param file for messages
 * @param publicKey PEM, the one that updates are signed with
 * @throws GatehouseError GH_EXTENSION_FORMAT, GH_EXTENSION_SIGNATURE
 */
export function readHead(data: Buffer, file: string, publicKey: string): Head {
  const length = headLength(data.subarray(0, longestHead))
  const text = data.subarray(0, length ?? 64).toString('latin1')
  const lines = text.split('\n')
  if (lines[0] !== magic || length === undefined) {
    const later = lines[0] !== magic && /^gatehouse extension \d+$/.test(lines[0] ?? '')
    throw new GatehouseError(
      'GH_EXTENSION_FORMAT',
      `${file} is ${later ? 'for another version of Gatehouse' : 'not an extension'}`,
      later
        ? 'Build it again from the source of the version that this device runs, or update the device first'
        : 'Copy the file that `make extension` leaves in out/ once more, whole and unchanged',
    )
  }
  const manifestText = data.subarray(length - lines[2]!.length - 1, length - 1)
  const signature = Buffer.from(lines[1]!, 'base64')
  const message = Buffer.concat([Buffer.from(context), manifestText])
  if (signature.length !== 64 || !verify(null, message, createPublicKey(publicKey), signature))
    throw new GatehouseError(
      'GH_EXTENSION_SIGNATURE',
      `${file} is not signed with the key that this device trusts`,
      'Take the extension from whoever made your image, or build it with the same keys/ folder',
    )
  return {
    manifest: checkManifest(manifestText.toString('utf8'), file),
    text: text.slice(0, length),
  }
}

function checkManifest(text: string, file: string): Manifest {
  const manifest = JSON.parse(text) as Manifest
  const piece = ({ size, sha256 }: Piece): boolean =>
    Number.isInteger(size) && size > 0 && size <= largestExtension && /^[0-9a-f]{64}$/.test(sha256)
  // Whoever has the key made it; what is checked is what would be written into a unit's file.
  const plain = (word: unknown): boolean =>
    typeof word === 'string' && /^[\x20-\x7e]{1,256}$/.test(word)
  if (
    extensionName.test(manifest.name) &&
    plain(manifest.title) &&
    plain(manifest.version) &&
    Array.isArray(manifest.command) &&
    manifest.command.every(plain) &&
    /^\/[A-Za-z0-9._/+-]+$/.test(manifest.command[0] ?? '') &&
    Array.isArray(manifest.ports) &&
    manifest.ports.every((port) => parseExtensionPort(port) !== undefined) &&
    piece(manifest.root) &&
    piece(manifest.verity) &&
    /^[0-9a-f]{64}$/.test(manifest.rootHash)
  )
    return manifest
  throw new GatehouseError(
    'GH_EXTENSION_FORMAT',
    `${file} says of itself what this device does not understand`,
    'Build it again from the source of the version that this device runs',
  )
}

/** Where an extension that was taken over is kept, in a directory of its own. */
const kept = { head: 'head', root: 'root', verity: 'verity' } as const

/** The two files of one that was taken over. */
export function keptFiles(directory: string): { root: string; verity: string } {
  return { root: join(directory, kept.root), verity: join(directory, kept.verity) }
}

/** What is asked of an extension, beside its signature. */
export interface Wanted {
  name: string
  arch: string
  publicKey: string
}

/**
 * What an extension's file says of itself, without having read all of it.
 *
 * @param path a file that somebody else wrote
 * @param file what a person calls it
 * @throws GatehouseError GH_EXTENSION_FORMAT, GH_EXTENSION_SIGNATURE, GH_EXTENSION_ARCH; the system's
 *   error (ENOENT) where there is no such file
 */
export async function readExtensionHead(path: string, file: string, wanted: Wanted): Promise<Head> {
  await using handle = await openForeign(path, largestExtension)
  return await headOf(handle, file, wanted)
}

async function headOf(
  handle: FileHandle,
  file: string,
  { name, arch, publicKey }: Wanted,
): Promise<Head> {
  const buffer = Buffer.alloc(longestHead)
  const { bytesRead } = await handle.read(buffer, 0, buffer.length, 0)
  const head = readHead(buffer.subarray(0, bytesRead), file, publicKey)
  const { manifest } = head
  if (manifest.arch !== arch)
    throw new GatehouseError(
      'GH_EXTENSION_ARCH',
      `${file} is for ${manifest.arch}, and this device is ${arch}`,
      `Take ${extensionFile(name, arch)}: make extension NAME=${name} ARCH=${arch}`,
    )
  if (manifest.name !== name)
    throw new GatehouseError(
      'GH_EXTENSION_FORMAT',
      `${file} holds ${manifest.name}`,
      `Give it the name ${extensionFile(manifest.name, arch)}, and write name = "${manifest.name}"`,
    )
  return head
}

/**
 * Takes an extension's file into a directory, whole or not at all: what is written is what was
 * summed, whatever becomes of the file meanwhile. What was there before stays until all of the new
 * one is.
 *
 * @param into the directory; its parent is there
 * @throws GatehouseError as {@link readExtensionHead}; GH_EXTENSION_DAMAGED, GH_EXTENSION_ROOM
 */
export async function takeExtension(
  path: string,
  file: string,
  into: string,
  wanted: Wanted,
): Promise<Manifest> {
  await using source = await openForeign(path, largestExtension)
  const { manifest, text } = await headOf(source, file, wanted)
  const fresh = `${into}.new`
  await rm(fresh, { recursive: true, force: true })
  try {
    await mkdir(fresh, { mode: 0o755 })
    let at = Buffer.byteLength(text, 'latin1')
    for (const name of ['root', 'verity'] as const) {
      await copyPiece(source, at, manifest[name], join(fresh, kept[name]), file)
      at += manifest[name].size
    }
    if ((await source.stat()).size !== at) throw damaged(file)
    await using head = await open(join(fresh, kept.head), 'wx', 0o644)
    await head.writeFile(text, 'latin1')
    await head.sync()
    // Gone for a moment: after a power cut then, it is taken from its file once more.
    await rm(into, { recursive: true, force: true })
    await rename(fresh, into)
    await syncDirectory(join(into, '..'))
  } catch (err) {
    await rm(fresh, { recursive: true, force: true })
    if (err instanceof GatehouseError) throw err
    throw new GatehouseError(
      'GH_EXTENSION_ROOM',
      `${file} cannot be taken over: ${reason(err)}`,
      'Make room where flows have filled the disk, and start the device again',
      { cause: err },
    )
  }
  return manifest
}

const damaged = (file: string): GatehouseError =>
  new GatehouseError(
    'GH_EXTENSION_DAMAGED',
    `${file} is truncated or damaged`,
    'Copy the file that `make extension` leaves in out/ once more',
  )

async function copyPiece(
  source: FileHandle,
  from: number,
  { size, sha256 }: Piece,
  to: string,
  file: string,
): Promise<void> {
  await using copy = await open(to, 'wx', 0o444)
  const hash = createHash('sha256')
  const buffer = Buffer.alloc(2 ** 20)
  for (let at = 0; at < size;) {
    const { bytesRead } = await source
      .read(buffer, 0, Math.min(buffer.length, size - at), from + at)
      .catch(() => {
        throw damaged(file)
      })
    if (bytesRead === 0) throw damaged(file)
    const chunk = buffer.subarray(0, bytesRead)
    hash.update(chunk)
    await copy.appendFile(chunk)
    at += bytesRead
  }
  if (hash.digest('hex') !== sha256) throw damaged(file)
  await copy.sync()
}

/**
 * The extension that was taken over before, after it has been checked once more: its signature, in
 * case the device has been given another key, and all of its bytes, so that a worn card is told of
 * in words.
 *
 * @throws GatehouseError as {@link takeExtension}; the system's error (ENOENT) where there is none
 */
export async function checkKept(directory: string, wanted: Wanted): Promise<Head> {
  const file = `the device's copy of ${extensionFile(wanted.name, wanted.arch)}`
  await using handle = await open(join(directory, kept.head))
  const head = await headOf(handle, file, wanted)
  for (const name of ['root', 'verity'] as const) {
    const hash = createHash('sha256')
    const { size, sha256 } = head.manifest[name]
    try {
      const piece = createReadStream(join(directory, kept[name]), { end: size })
      for await (const chunk of piece) hash.update(chunk as Buffer)
    } catch {
      throw damaged(file)
    }
    if (hash.digest('hex') !== sha256) throw damaged(file)
  }
  return head
}
