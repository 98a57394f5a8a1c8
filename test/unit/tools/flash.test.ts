/**
 * `make flash` on real block devices: loop devices over files. Needs root and loop devices, as CI
 * has; skipped where there are none.
 */
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import {
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
  closeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { after, test } from 'node:test'
import { zstdCompressSync } from 'node:zlib'
import { card, examine, write } from '../../../tools/flash.ts'
import { makeTable, type Partition } from '../../../tools/gpt.ts'

const root = mkdtempSync(join(tmpdir(), 'gh-flash-'))
const loops: string[] = []
after(() => {
  for (const loop of loops) spawnSync('losetup', ['-d', loop])
  rmSync(root, { recursive: true, force: true })
})

/** A loop device of so many MiB, with old content. */
function loop(mib: number): string {
  const file = join(root, `disk${loops.length}`)
  writeFileSync(file, 'old')
  truncateSync(file, mib << 20)
  const device = execFileSync('losetup', ['--find', '--show', file], { encoding: 'utf8' }).trim()
  loops.push(device)
  return device
}

/**
 * A sysfs that differs from the real one in this: the device is removable, as a card reader's is.
 */
function removable(device: string, attributes: Record<string, string> = {}): string {
  const sysfs = mkdtempSync(join(root, 'sys-'))
  const directory = join(sysfs, 'class/block', basename(device))
  mkdirSync(join(directory, 'device'), { recursive: true })
  const size = readFileSync(`/sys/class/block/${basename(device)}/size`, 'utf8')
  for (const [name, value] of Object.entries({ removable: '1', size, ro: '0', ...attributes }))
    writeFileSync(join(directory, name), `${value}\n`)
  return sysfs
}

const image = (): { path: string; content: Buffer } => {
  // No multiple of the chunk, nor of 512.
  const content = Buffer.concat([randomBytes(5 << 20), Buffer.alloc(3 << 20), randomBytes(1234)])
  const path = join(root, 'gatehouse-test.img')
  writeFileSync(path, content)
  writeFileSync(`${path}.zst`, zstdCompressSync(content))
  writeFileSync(
    join(root, 'gatehouse-test.SHA256SUMS'),
    `${createHash('sha256').update(content).digest('hex')}  gatehouse-test.img\n`,
  )
  return { path, content }
}

const skip =
  process.getuid?.() !== 0 || spawnSync('losetup', ['-f']).status !== 0
    ? 'needs root and loop devices'
    : false

test(
  'what is not removable, not a disk, or only a part of one is refused, and says what to do',
  { skip },
  () => {
    const device = loop(8)
    assert.throws(() => card(device), /is not removable.*not touched.*card reader/)
    assert.throws(() => card('/dev/null'), /is not a disk/)
    assert.throws(() => card(join(root, 'absent')), /does not exist.*lsblk/)
    assert.throws(
      () => card(device, removable(device, { partition: '1' })),
      /is a partition: name the whole disk/,
    )
    assert.throws(() => card(device, removable(device, { ro: '1' })), /write-protected/)
    assert.throws(() => card(device, removable(device, { size: '0' })), /holds no card/)
    symlinkSync(device, join(root, 'link'))
    assert.equal(
      card(join(root, 'link'), removable(device)).path,
      device,
      'names under /dev/disk/by-id are links',
    )
    const run = spawnSync(
      process.execPath,
      [join(import.meta.dirname, '../../../tools/flash.ts'), device],
      { encoding: 'utf8', input: `${basename(device)}\n` },
    )
    assert.equal(run.status, 1)
    assert.match(run.stderr, /^flash: .*is not removable/)
    assert.equal(
      readFileSync(join(root, 'disk0')).toString('latin1', 0, 3),
      'old',
      'nothing was written',
    )
  },
)

test(
  'a mounted card is refused by name, and by the kernel where it is mounted later',
  { skip },
  async () => {
    const device = loop(16)
    const { path } = image()
    const target = card(device, removable(device))
    execFileSync('mkfs.ext4', ['-q', device])
    const at = join(root, 'mnt')
    mkdirSync(at)
    execFileSync('mount', [device, at])
    try {
      assert.throws(() => card(device, removable(device)), new RegExp(`in use: ${at}.*umount`))
      await assert.rejects(
        write(target, path, await examine(path), () => {}),
        /taken into use meanwhile/,
      )
    } finally {
      execFileSync('umount', [at])
    }
  },
)

test(
  'an image, packed or not, is on the card byte for byte; progress ends at all of it',
  { skip },
  async () => {
    const { path, content } = image()
    for (const source of [path, `${path}.zst`]) {
      const device = loop(16)
      const seen = new Map<string, number>()
      await write(card(device, removable(device)), source, await examine(source), (what, part) =>
        seen.set(what, part),
      )
      assert.deepEqual(Object.fromEntries(seen), { writing: 1, verifying: 1 })
      const back = execFileSync('head', ['-c', String(content.length), device], {
        maxBuffer: 1 << 26,
      })
      assert.ok(back.equals(content))
    }
  },
)

test(
  'a damaged image is not written; a card that gives back other bytes is found out',
  { skip },
  async () => {
    const { path } = image()
    const expected = await examine(path)
    const device = loop(16)
    await assert.rejects(
      write(
        card(device, removable(device)),
        path,
        { ...expected, sha256: 'f'.repeat(64) },
        () => {},
      ),
      /gives back other bytes/,
    )
    const fd = openSync(path, 'r+')
    writeSync(fd, 'x', 6 << 20)
    closeSync(fd)
    await assert.rejects(examine(path), /is damaged/)
  },
)

/** A table's entry of so many MiB at so many MiB. */
function partition(name: string, at: number, mib: number): Partition {
  const raw = Buffer.alloc(128)
  // Linux root (x86-64); what of it matters here is that it is some type.
  Buffer.from('e3bc684fcde8b14d96e7fbcaf984b709', 'hex').copy(raw)
  randomBytes(16).copy(raw, 16)
  const [first, last] = [at * 2048, (at + mib) * 2048 - 1]
  raw.writeBigUInt64LE(BigInt(first), 32)
  raw.writeBigUInt64LE(BigInt(last), 40)
  raw.write(name, 56, 'utf16le')
  return { raw, first, last, name, esp: false }
}

/** A file with these partitions, in a table behind a protective MBR. */
function partitioned(file: string, mib: number, partitions: Partition[], fill = true): string {
  const disk = fill ? randomBytes(mib << 20) : Buffer.alloc(mib << 20)
  const { start, end } = makeTable({ disk: randomBytes(16), partitions }, disk.length)
  disk.fill(0, 0, 512)
  // A protective MBR (UEFI 2.10, 5.2.3).
  Buffer.from('0002 00eeffffff 01000000 ffffffff'.replaceAll(' ', ''), 'hex').copy(disk, 447)
  disk.writeUInt16LE(0xaa55, 510)
  start.copy(disk, 512)
  end.copy(disk, disk.length - end.length)
  writeFileSync(join(root, file), disk)
  return join(root, file)
}

/**
 * The partitions as util-linux finds them, which believes only sums that are right: first block,
 * number of blocks, name.
 */
function found(device: string): string[] {
  return execFileSync(
    'partx',
    ['--noheadings', '--raw', '--output', 'START,SECTORS,NAME', device],
    { encoding: 'utf8' },
  )
    .trim()
    .split('\n')
}

test(
  'KEEP=1: image and table are new, the data partition stays where it is; also after a wrong image was written over the card',
  { skip },
  async () => {
    const system = partitioned('gatehouse-new.img', 24, [
      partition('gatehouse-esp', 1, 8),
      partition('gatehouse_2', 9, 14),
    ])
    const wrong = partitioned('wrong.img', 30, [partition('something-else', 1, 28)])
    const file = partitioned(
      'card.img',
      96,
      [
        partition('gatehouse-esp', 1, 8),
        partition('gatehouse_1', 9, 16),
        partition('gatehouse_9', 25, 16),
        partition('gatehouse-var', 48, 40),
      ],
      false,
    )
    const filesystem = join(root, 'var.ext4')
    writeFileSync(filesystem, '')
    truncateSync(filesystem, 40 << 20)
    execFileSync('mkfs.ext4', ['-q', '-L', 'gatehouse-var', filesystem])
    const kept = readFileSync(filesystem)
    const device = execFileSync('losetup', ['--find', '--show', file], { encoding: 'utf8' }).trim()
    loops.push(device)
    const put = (content: Buffer, at: number): void => {
      const fd = openSync(device, 'r+')
      writeSync(fd, content, 0, content.length, at)
      closeSync(fd)
    }
    put(kept, 48 << 20)
    const target = card(device, removable(device))
    const image = await examine(system)
    for (const before of ['as it was', 'wrong image']) {
      if (before === 'wrong image') put(readFileSync(wrong), 0)
      await write(target, system, image, () => {}, { keep: true })
      const disk = readFileSync(device)
      assert.ok(disk.subarray(48 << 20, 88 << 20).equals(kept), before)
      assert.ok(
        disk.subarray(1 << 20, 23 << 20).equals(readFileSync(system).subarray(1 << 20, 23 << 20)),
        before,
      )
      assert.deepEqual(
        found(device),
        [
          [1, 8, 'gatehouse-esp'],
          [9, 14, 'gatehouse_2'],
          [25, 16, '_empty'],
          [48, 40, 'gatehouse-var'],
        ].map(([at, mib, name]) => [Number(at) * 2048, Number(mib) * 2048, name].join(' ')),
        before,
      )
    }

    const larger = partitioned('gatehouse-larger.img', 64, [
      partition('gatehouse-esp', 1, 8),
      partition('gatehouse_3', 9, 40),
    ])
    await assert.rejects(async () => {
      await write(target, larger, await examine(larger), () => {}, { keep: true })
    }, /another layout.*gatehouse backup.*gatehouse restore/)
    assert.ok(
      readFileSync(device)
        .subarray(48 << 20, 88 << 20)
        .equals(kept),
      'nothing is written where it cannot be kept',
    )
    put(Buffer.alloc(4096), 48 << 20)
    await assert.rejects(
      write(target, system, image, () => {}, { keep: true }),
      /no data partition of Gatehouse.*overwritten.*gatehouse restore/,
    )
  },
)
