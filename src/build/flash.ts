/**
 * Writes an image to a card, for people who would rather not learn the name of the wrong disk: refuses whatever is not removable or is
 * in use, shows what will be lost, asks, writes with progress, reads everything back and compares.
 *
 * Usage, as root: node src/build/flash.ts DEVICE [IMAGE]   (make flash DEVICE=/dev/sdX). IMAGE: .img or .img.zst; its SHA256SUMS beside
 * it is checked first. Exit code 0 written and verified, 1 not.
 */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { constants, createReadStream, existsSync, readFileSync, realpathSync, statSync } from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { createInterface } from 'node:readline/promises'
import { createZstdDecompress } from 'node:zlib'
import type { Readable } from 'node:stream'

/** A card that may be written to. */
export interface Card { path: string, name: string, size: number, model: string }

/** Written and read in pieces of this many bytes: a multiple of every card's erase block. */
const chunk = 4 << 20

/**
 * The card at `device`.
 *
 * @param sysfs where sysfs is, for tests
 * @throws Error in one line, naming cause and cure, when it is not a whole, removable, unused disk
 */
export function card (device: string, sysfs = '/sys'): Card {
  if (!existsSync(device)) throw new Error(`${device} does not exist: put the card in and look with lsblk`)
  const path = realpathSync(device)
  if (!statSync(path).isBlockDevice()) throw new Error(`${device} is not a disk: name one such as /dev/sdb`)
  const name = basename(path)
  const attribute = (file: string): string => { try { return readFileSync(join(sysfs, 'class/block', name, file), 'utf8').trim() } catch { return '' } }
  if (attribute('partition') !== '') throw new Error(`${device} is a partition: name the whole disk, without the number at the end`)
  // A card reader says removable. A built-in slot does not, but names its kind: SD is a card, MMC is soldered in.
  if (attribute('removable') !== '1' && attribute('device/type') !== 'SD') {
    throw new Error(`${device} (${attribute('device/model') || 'no model'}) is not removable, so it may be this computer's own disk: it is not touched. Use a card reader, or write the image with dd if you are sure`)
  }
  if (attribute('ro') === '1') throw new Error(`${device} is write-protected: move the small slider on the card's side`)
  const size = Number(attribute('size')) * 512
  if (!(size > 0)) throw new Error(`${device} holds no card: put one in`)
  const used = readFileSync('/proc/self/mounts', 'utf8').split('\n').filter((line) => line.split(' ')[0]!.startsWith(path))
  if (used.length > 0) throw new Error(`${device} is in use: ${used.map((line) => line.split(' ')[1]).join(', ')}. Unmount it first: umount ${used.map((line) => line.split(' ')[0]).join(' ')}`)
  return { path, name, size, model: [attribute('device/vendor'), attribute('device/model') || attribute('device/name')].filter(Boolean).join(' ') || 'unnamed' }
}

/** The bytes of an image, unpacked when it is .zst. */
function bytes (image: string): Readable {
  const file = createReadStream(image, { highWaterMark: chunk })
  return image.endsWith('.zst') ? file.pipe(createZstdDecompress({ chunkSize: chunk })).on('close', () => file.destroy()) : file
}

/** Hash and length of the unpacked image. @throws Error when SHA256SUMS beside it says otherwise */
export async function examine (image: string): Promise<{ sha256: string, size: number }> {
  if (!existsSync(image)) throw new Error(`${image} does not exist: make image builds it`)
  const hash = createHash('sha256')
  let size = 0
  for await (const piece of bytes(image) as AsyncIterable<Buffer>) { hash.update(piece); size += piece.length }
  const sha256 = hash.digest('hex')
  const unpacked = basename(image).replace(/\.zst$/, '')
  const sums = join(dirname(image), unpacked.replace(/\.img$/, '.SHA256SUMS'))
  if (existsSync(sums)) {
    const listed = readFileSync(sums, 'utf8').split('\n').find((line) => line.endsWith(`  ${unpacked}`))
    if (listed !== undefined && !listed.startsWith(sha256)) throw new Error(`${image} is damaged: ${sums} says otherwise. Download or build it again`)
  }
  return { sha256, size }
}

/** Writes the image and compares what the card gives back. @param progress told what is done, and how much of it (0 to 1) */
export async function write (target: Card, image: string, expected: { sha256: string, size: number }, progress: (what: string, part: number) => void): Promise<void> {
  // O_EXCL on a disk: the kernel refuses when somebody has mounted it since (open(2)).
  const disk = await open(target.path, constants.O_RDWR | constants.O_EXCL).catch((err: NodeJS.ErrnoException) => {
    throw new Error(err.code === 'EBUSY' ? `${target.path} has been taken into use meanwhile: unmount it and start again` : `${target.path} cannot be written: ${err.message}`)
  })
  try {
    // The beginning, which makes the card bootable, comes last: a card pulled out half way does not look like a whole one.
    let first: Buffer | undefined
    let at = 0
    for await (const piece of whole(bytes(image))) {
      if (at === 0) first = piece
      else await writeAll(disk, piece, at)
      at += piece.length
      // Without it the kernel takes everything at once and the last percent takes minutes.
      await disk.datasync()
      progress('writing', at / expected.size)
    }
    await writeAll(disk, first!, 0)
    await disk.sync()
  } finally {
    await disk.close()
  }
  execFileSync('blockdev', ['--flushbufs', target.path])
  const hash = createHash('sha256')
  let read = 0
  for await (const piece of createReadStream(target.path, { highWaterMark: chunk, end: expected.size - 1 }) as AsyncIterable<Buffer>) {
    hash.update(piece)
    progress('verifying', (read += piece.length) / expected.size)
  }
  if (hash.digest('hex') !== expected.sha256) throw new Error(`${target.path} gives back other bytes than were written: the card or its reader is failing. Take another`)
}

async function writeAll (disk: FileHandle, data: Buffer, at: number): Promise<void> {
  for (let done = 0; done < data.length;) done += (await disk.write(data, done, data.length - done, at + done)).bytesWritten
}

/** The stream in pieces of {@link chunk} bytes, the last one shorter. */
async function * whole (stream: Readable): AsyncGenerator<Buffer> {
  let held: Buffer[] = []
  let length = 0
  for await (const piece of stream as AsyncIterable<Buffer>) {
    held.push(piece)
    length += piece.length
    if (length < chunk) continue
    const all = Buffer.concat(held)
    let at = 0
    for (; all.length - at >= chunk; at += chunk) yield all.subarray(at, at + chunk)
    held = [all.subarray(at)]
    length = all.length - at
  }
  if (length > 0) yield Buffer.concat(held)
}

async function main (device: string, image: string): Promise<void> {
  const target = card(device)
  const expected = await examine(image)
  const gb = (size: number): string => `${(size / 1e9).toFixed(1)} GB`
  if (expected.size > target.size) throw new Error(`${image} needs ${gb(expected.size)} and the card has ${gb(target.size)}: take a larger one (4 GB or more)`)
  console.log(`${target.path}: ${target.model}, ${gb(target.size)}. All of this is erased:\n`)
  console.log(execFileSync('lsblk', ['-o', 'NAME,SIZE,FSTYPE,LABEL,PARTLABEL', target.path], { encoding: 'utf8' }))
  const terminal = createInterface({ input: process.stdin, output: process.stdout })
  const answer = await Promise.race([terminal.question(`Write ${image} to it? Type ${target.name} to go on: `), new Promise<string>((resolve) => terminal.once('close', () => { resolve('') }))])
  terminal.close()
  if (answer.trim() !== target.name) throw new Error('nothing was written')
  let last = ''
  await write(target, image, expected, (what, part) => {
    const line = `${what} ${String(Math.floor(part * 100)).padStart(3)} %`
    if (line !== last) process.stdout.write(process.stdout.isTTY ? `\r${line}` : part === 1 ? `${line}\n` : '')
    last = line
  })
  console.log(`\nwritten and verified: sha256 ${expected.sha256}. Copy gatehouse.toml to the card's first partition, or just start from it.`)
}

if (import.meta.main) {
  const [device, image] = process.argv.slice(2)
  if (device === undefined || device === '') {
    console.error('usage: make flash DEVICE=/dev/sdX [IMAGE=out/gatehouse-arm64.img.zst]')
    process.exitCode = 2
  } else {
    await main(device, image ?? join(import.meta.dirname, '../../out/gatehouse-arm64.img.zst')).catch((err: Error) => {
      console.error(`flash: ${err.message}`)
      process.exitCode = 1
    })
  }
}
