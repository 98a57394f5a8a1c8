/**
 * Writes an image to a card, for people who would rather not learn the name of the wrong disk:
 * refuses whatever is not removable or is in use, shows what will be lost, asks, writes with
 * progress, reads everything back and compares.
 *
 * Usage, as root: node tools/flash.ts [--keep] DEVICE [IMAGE] (make flash DEVICE=/dev/sdX).
 * IMAGE: .img or .img.zst; its SHA256SUMS beside it is checked first. --keep (make flash KEEP=1):
 * the card's data partition stays, and with it flows, identity, certificates and settings: the
 * device is the same node again. Exit code 0 written and verified, 1 not.
 */
import { execFileSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import {
  constants,
  createReadStream,
  existsSync,
  readFileSync,
  realpathSync,
  statSync,
} from 'node:fs'
import { open, type FileHandle } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { createInterface } from 'node:readline/promises'
import { createZstdDecompress } from 'node:zlib'
import type { Readable } from 'node:stream'
import {
  block,
  headBlocks,
  makeTable,
  readTables,
  tableOf,
  type Partition,
  type Table,
} from './gpt.ts'

/** A card that may be written to. */
export interface Card {
  path: string
  name: string
  size: number
  model: string
}

/**
 * An image that has been read through: the hash of what is unpacked, how many bytes that is, and
 * the blocks with its partition table.
 */
export interface Examined {
  sha256: string
  size: number
  head: Buffer
}

/**
 * The data partition's name in the table and as a file system
 * (overlays/usr/lib/repart.d/50-var.conf).
 */
const data = 'gatehouse-var'

/** Written and read in pieces of this many bytes: a multiple of every card's erase block. */
const chunk = 4 << 20

/**
 * The card at `device`.
 *
 * @param sysfs where sysfs is, for tests
 * @throws Error in one line, naming cause and cure, when it is not a whole, removable, unused disk
 */
export function card(device: string, sysfs = '/sys'): Card {
  if (!existsSync(device))
    throw new Error(`${device} does not exist: put the card in and look with lsblk`)
  const path = realpathSync(device)
  if (!statSync(path).isBlockDevice())
    throw new Error(`${device} is not a disk: name one such as /dev/sdb`)
  const name = basename(path)
  const attribute = (file: string): string => {
    try {
      return readFileSync(join(sysfs, 'class/block', name, file), 'utf8').trim()
    } catch {
      return ''
    }
  }
  if (attribute('partition') !== '')
    throw new Error(`${device} is a partition: name the whole disk, without the number at the end`)
  // A card reader says removable. A built-in slot does not, but names its kind: SD is a card, MMC
  // is soldered in.
  if (attribute('removable') !== '1' && attribute('device/type') !== 'SD') {
    throw new Error(
      `${device} (${attribute('device/model') || 'no model'}) is not removable, so it may be ` +
        `this computer's own disk: it is not touched. Use a card reader, or write the image ` +
        'with dd if you are sure',
    )
  }
  if (attribute('ro') === '1')
    throw new Error(`${device} is write-protected: move the small slider on the card's side`)
  const size = Number(attribute('size')) * 512
  if (!(size > 0)) throw new Error(`${device} holds no card: put one in`)
  const used = readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .filter((line) => line.split(' ')[0]!.startsWith(path))
  if (used.length > 0)
    throw new Error(
      `${device} is in use: ${used.map((line) => line.split(' ')[1]).join(', ')}. Unmount it ` +
        `first: umount ${used.map((line) => line.split(' ')[0]).join(' ')}`,
    )
  return {
    path,
    name,
    size,
    model:
      [attribute('device/vendor'), attribute('device/model') || attribute('device/name')]
        .filter(Boolean)
        .join(' ') || 'unnamed',
  }
}

/** The bytes of an image, unpacked when it is .zst. */
function bytes(image: string): Readable {
  const file = createReadStream(image, { highWaterMark: chunk })
  return image.endsWith('.zst')
    ? file.pipe(createZstdDecompress({ chunkSize: chunk })).on('close', () => file.destroy())
    : file
}

/** Reads an image through. @throws Error when SHA256SUMS beside it says otherwise */
export async function examine(image: string): Promise<Examined> {
  if (!existsSync(image)) throw new Error(`${image} does not exist: make image builds it`)
  const hash = createHash('sha256')
  let size = 0
  const head = Buffer.alloc(headBlocks * block)
  for await (const piece of bytes(image) as AsyncIterable<Buffer>) {
    if (size < head.length) piece.copy(head, size)
    hash.update(piece)
    size += piece.length
  }
  const sha256 = hash.digest('hex')
  const unpacked = basename(image).replace(/\.zst$/, '')
  const sums = join(dirname(image), unpacked.replace(/\.img$/, '.SHA256SUMS'))
  if (existsSync(sums)) {
    const listed = readFileSync(sums, 'utf8')
      .split('\n')
      .find((line) => line.endsWith(`  ${unpacked}`))
    if (listed !== undefined && !listed.startsWith(sha256))
      throw new Error(`${image} is damaged: ${sums} says otherwise. Download or build it again`)
  }
  return { sha256, size, head }
}

/**
 * The table for a card on which the image is written anew and the data partition stays: the image's
 * partitions, then what lies behind their slot on the card. What the other slot holds is forgotten:
 * nothing in the image would start it.
 *
 * @throws Error when there is no data partition, or the image would not leave it alone
 */
export async function keeping(disk: FileHandle, size: number, { head }: Examined): Promise<Table> {
  const made = tableOf(head)
  const root = made?.partitions.at(-1)
  if (made === undefined || root === undefined)
    throw new Error('the image has no partition table: it is not one of Gatehouse')
  const old = (await readTables(disk, size)).find(({ partitions }) =>
    partitions.some(({ name }) => name === data),
  )
  const kept = old?.partitions.find(({ name }) => name === data)
  // The file system's own record says it too (ext4: 1024 bytes in; magic number at 56, name at
  // 120), or only the table is left of it.
  const record =
    kept && (await disk.read(Buffer.alloc(1024), 0, 1024, kept.first * block + 1024)).buffer
  if (
    old === undefined ||
    record?.readUInt16LE(56) !== 0xef53 ||
    record.toString('latin1', 120, 136).replace(/\0.*$/s, '') !== data
  ) {
    throw new Error(
      'there is no data partition of Gatehouse on the card, or it has been overwritten: ' +
        'nothing can be kept. Write it without KEEP=1, and bring back a backup with gatehouse ' +
        'restore',
    )
  }
  const behind = old.partitions.filter(({ first }) => first > root.first)
  if (
    !old.partitions.some(({ first }) => first === root.first) ||
    behind.some(({ first }) => first <= root.last)
  ) {
    throw new Error(
      'the card has another layout than the image, so its data cannot stay where they are. ' +
        'Make a backup on the device (gatehouse backup), write the card without KEEP=1, and ' +
        'bring it back with gatehouse restore',
    )
  }
  return {
    disk: made.disk,
    partitions: [
      ...made.partitions,
      ...behind.map((partition) => (partition.name === data ? partition : emptied(partition))),
    ],
  }
}

/**
 * The same place, for systemd-sysupdate to fill: with its name for that, and another identifier, by
 * which no root hash finds it.
 */
function emptied(partition: Partition): Partition {
  const raw = Buffer.from(partition.raw)
  const id = randomBytes(16)
  // A random one says so (RFC 9562, 4).
  id[7] = (id[7]! & 0x0f) | 0x40
  id[8] = (id[8]! & 0x3f) | 0x80
  id.copy(raw, 16)
  raw.fill(0, 56)
  raw.write('_empty', 56, 'utf16le')
  return { ...partition, raw, name: '_empty' }
}

/**
 * Writes the image and compares what the card gives back.
 *
 * @param progress told what is done, and how much of it (0 to 1)
 * @param options keep: the card's data partition stays, see {@link keeping}. Default: nothing does
 */
export async function write(
  target: Card,
  image: string,
  expected: Examined,
  progress: (what: string, part: number) => void,
  { keep = false } = {},
): Promise<void> {
  // O_EXCL on a disk: the kernel refuses when somebody has mounted it since (open(2)).
  const disk = await open(target.path, constants.O_RDWR | constants.O_EXCL).catch(
    (err: NodeJS.ErrnoException) => {
      throw new Error(
        err.code === 'EBUSY'
          ? `${target.path} has been taken into use meanwhile: unmount it and start again`
          : `${target.path} cannot be written: ${err.message}`,
      )
    },
  )
  let table: { start: Buffer; end: Buffer } | undefined
  try {
    if (keep) table = makeTable(await keeping(disk, target.size, expected), target.size)
    // The beginning, which makes the card bootable, comes last: a card pulled out half way does not
    // look like a whole one.
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
    if (table !== undefined) {
      table.start.copy(first!, block)
      await writeAll(disk, table.end, target.size - table.end.length)
    }
    await writeAll(disk, first!, 0)
    await disk.sync()
  } finally {
    await disk.close()
  }
  execFileSync('blockdev', ['--flushbufs', target.path])
  const hash = createHash('sha256')
  let read = 0
  let same = true
  for await (const piece of whole(
    createReadStream(target.path, { highWaterMark: chunk, end: expected.size - 1 }),
  )) {
    if (read === 0 && table !== undefined) {
      same = piece.subarray(block, headBlocks * block).equals(table.start)
      expected.head.copy(piece, block, block)
    }
    hash.update(piece)
    progress('verifying', (read += piece.length) / expected.size)
  }
  if (!same || hash.digest('hex') !== expected.sha256)
    throw new Error(
      `${target.path} gives back other bytes than were written: the card or its reader is failing. Take another`,
    )
}

async function writeAll(disk: FileHandle, data: Buffer, at: number): Promise<void> {
  for (let done = 0; done < data.length;)
    done += (await disk.write(data, done, data.length - done, at + done)).bytesWritten
}

/** The stream in pieces of {@link chunk} bytes, the last one shorter. */
async function* whole(stream: Readable): AsyncGenerator<Buffer> {
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

async function main(device: string, image: string, keep: boolean): Promise<void> {
  const target = card(device)
  const expected = await examine(image)
  const gb = (size: number): string => `${(size / 1e9).toFixed(1)} GB`
  if (expected.size > target.size)
    throw new Error(
      `${image} needs ${gb(expected.size)} and the card has ${gb(target.size)}: take a larger one (4 GB or more)`,
    )
  if (keep) {
    const disk = await open(target.path)
    // Before anything is asked: whether it can be done.
    await keeping(disk, target.size, expected).finally(async () => {
      await disk.close()
    })
  }
  console.log(
    `${target.path}: ${target.model}, ${gb(target.size)}. All of this is ` +
      `erased${keep ? `, but for the data partition (${data})` : ''}:\n`,
  )
  console.log(
    execFileSync('lsblk', ['-o', 'NAME,SIZE,FSTYPE,LABEL,PARTLABEL', target.path], {
      encoding: 'utf8',
    }),
  )
  const terminal = createInterface({ input: process.stdin, output: process.stdout })
  const answer = await Promise.race([
    terminal.question(`Write ${image} to it? Type ${target.name} to go on: `),
    new Promise<string>((resolve) =>
      terminal.once('close', () => {
        resolve('')
      }),
    ),
  ])
  terminal.close()
  if (answer.trim() !== target.name) throw new Error('nothing was written')
  let last = ''
  await write(
    target,
    image,
    expected,
    (what, part) => {
      const line = `${what} ${String(Math.floor(part * 100)).padStart(3)} %`
      if (line !== last && process.stdout.isTTY) process.stdout.write(`\r${line}`)
      else if (line !== last && part === 1) process.stdout.write(`${line}\n`)
      last = line
    },
    { keep },
  )
  console.log(
    `\nwritten and verified: sha256 ${expected.sha256}. ` +
      `${keep ? 'Start from it: settings and identity are as they were.' : "Copy gatehouse.toml to the card's first partition, or just start from it."}`,
  )
}

if (import.meta.main) {
  const keep = process.argv[2] === '--keep'
  const [device, image] = process.argv.slice(keep ? 3 : 2)
  if (device === undefined || device === '') {
    console.error('usage: make flash DEVICE=/dev/sdX [IMAGE=out/gatehouse-arm64.img.zst] [KEEP=1]')
    process.exitCode = 2
  } else {
    await main(
      device,
      image ?? join(import.meta.dirname, '../out/gatehouse-arm64.img.zst'),
      keep,
    ).catch((err: Error) => {
      console.error(`flash: ${err.message}`)
      process.exitCode = 1
    })
  }
}
