/**
 * The image that PROFILE=raspios makes against the stand-in for Raspberry Pi's archive, looked at
 * from outside: what the firmware of each board finds on it, and what the kernel finds then. It is
 * booted nowhere: `make test-raspios` builds it.
 */
import assert from 'node:assert/strict'
import { mkdtemp, open, readFile, readdir, readlink, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { after, before, test } from 'node:test'
import { zstdDecompressSync } from 'node:zlib'
import { block, readTables } from '../../tools/gpt.ts'
import type { Table } from '../../tools/gpt.ts'
import { sectionOf } from '../vm/kernel-image.ts'
import { boards, started } from '../vm/pi-firmware.ts'
import { fromTree, tool, treeEnvironment } from '../vm/tools-tree.ts'
import { wifi } from './archive.ts'

const out = resolve(import.meta.dirname, '../../out')
const image = join(out, 'gatehouse-raspios-arm64.img')
const work = await mkdtemp(join(tmpdir(), 'raspios-image-'))
const root = join(work, 'root')
after(() => rm(work, { recursive: true }))

let table: Table
/** Files of the FAT partition, by name. */
let names: string[]
const esp = (): string => `${image}@@${table.partitions.find((each) => each.esp)!.first * block}`
const mtools = async (...args: string[]): Promise<string> => {
  const [loader = '', ...first] = fromTree('mtools')
  return await tool(loader, [...first, '-c', ...args], undefined, treeEnvironment)
}
/** What is in a file of the FAT partition. */
async function onCard(name: string): Promise<Buffer> {
  const to = join(work, 'a-file')
  await mtools('mcopy', '-o', '-i', esp(), `::${name}`, to)
  return await readFile(to)
}

before(async () => {
  const disk = await open(image, 'r')
  try {
    table = (await readTables(disk, (await disk.stat()).size))[0]!
    names = (await mtools('mdir', '-/', '-b', '-i', esp(), '::'))
      .split('\n')
      .filter((line) => line.startsWith('::/') && !line.endsWith('/'))
      .map((line) => line.slice('::/'.length))
  } finally {
    await disk.close()
  }
  const [loader = '', ...first] = fromTree('fsck.erofs')
  await tool(loader, [
    ...first,
    `--extract=${root}`,
    join(out, 'mkosi/gatehouse-raspios-arm64.root.raw'),
  ])
})

test('the partitions are those of every image, and a Pi 3 finds the FAT one in the old table too', async () => {
  assert.deepEqual(
    table.partitions.map((each) => each.esp),
    [true, false, false],
  )
  const disk = await open(image, 'r')
  try {
    const { buffer: mbr } = await disk.read(Buffer.alloc(512), 0, 512, 0)
    assert.equal(mbr[446 + 4], 0x0c)
    assert.equal(mbr.readUInt32LE(446 + 8), table.partitions[0]!.first)
    assert.equal(mbr[446 + 16 + 4], 0xee)
  } finally {
    await disk.close()
  }
})

test("each board's firmware finds its own files, U-Boot and the device tree of Raspberry Pi's kernel", async () => {
  const config = (await onCard('config.txt')).toString()
  for (const board of boards) {
    const { kernel, tree, problems } = started(board, names, config)
    assert.deepEqual(problems, [], board.name)
    assert.deepEqual([kernel, tree], ['u-boot.bin', board.tree.downstream], board.name)
  }
  // Only what is needed: neither the kernel a second time, nor trees of the other kernel.
  assert.deepEqual(
    names.filter((name) => /kernel.*\.img$|initramfs|bcm2837|cmdline\.txt$/i.test(name)),
    [],
  )
  assert.ok(names.some((name) => /^EFI\/BOOT\/BOOTAA64\.EFI$/i.test(name)))
})

test("the kernel image has Raspberry Pi's kernel unpacked, as the EFI stub starts it, its serial port and no root by another name", async () => {
  const name = names.filter((each) => /^EFI\/Linux\/.*\.efi$/i.test(each))
  assert.equal(name.length, 1)
  const kernel = await onCard(name[0]!)
  const linux = sectionOf(kernel, '.linux')
  assert.equal(linux.toString('latin1', 0, 2), 'MZ')
  // arm64's boot protocol (Documentation/arch/arm64/booting.rst): the magic number at 56.
  assert.equal(linux.toString('latin1', 56, 60), 'ARMd')
  const text = (section: string): string =>
    sectionOf(kernel, section).toString('utf8').replace(/\0+$/, '')
  assert.match(text('.uname'), /\+rpt-rpi-v8$/)
  const line = text('.cmdline')
  assert.match(line, /\broothash=[0-9a-f]{64}\b/)
  for (const word of ['8250.nr_uarts=1', 'coherent_pool=1M', 'pci=pcie_bus_safe'])
    assert.ok(line.split(' ').includes(word), word)
  assert.doesNotMatch(line, /cgroup_disable/)
})

test("the initrd has what the root is read with, of this kernel's modules", async () => {
  const name = names.find((each) => /^EFI\/Linux\/.*\.efi$/i.test(each))!
  const packed = sectionOf(await onCard(name), '.initrd')
  const listed = packed.subarray(0, packed.length)
  // Several cpio archives behind each other, each packed by itself: names are found in what they hold.
  const magic = Buffer.from([0x28, 0xb5, 0x2f, 0xfd])
  let held = ''
  for (let at = listed.indexOf(magic); at >= 0; at = listed.indexOf(magic, at + 1)) {
    try {
      held += zstdDecompressSync(listed.subarray(at)).toString('latin1')
    } catch {
      // The number stands in what is packed as well.
    }
  }
  for (const module of ['fs/erofs/erofs.ko', 'drivers/md/dm-verity.ko', 'drivers/mmc/host/'])
    assert.ok(
      new RegExp(
        `usr/lib/modules/[^/\0]*\\+rpt-rpi-v8/kernel/${module.replaceAll('.', '\\.')}`,
      ).test(held),
      module,
    )
})

test("the root has this kernel's modules alone, every board's WiFi firmware, and not what installing wanted", async () => {
  const kernels = await readdir(join(root, 'usr/lib/modules'))
  assert.equal(kernels.length, 1)
  assert.match(kernels[0]!, /\+rpt-rpi-v8$/)
  const reached = async (file: string): Promise<boolean> => {
    const to = await readlink(file).catch(() => undefined)
    if (to === undefined) return (await stat(file)).isFile()
    return await reached(to.startsWith('/') ? join(root, to) : join(dirname(file), to))
  }
  for (const name of Object.keys(wifi).filter((each) => each.includes('-sdio.raspberrypi,')))
    assert.ok(await reached(join(root, 'usr/lib/firmware', name)), name)
  for (const name of [
    ...['usr/bin/rsync', 'usr/lib/systemd/system/rsync.service', 'usr/lib/raspi-firmware'],
    ...['usr/lib/u-boot', `usr/lib/linux-image-${kernels[0]}`, 'boot/firmware'],
  ])
    assert.equal(await stat(join(root, name)).catch(() => undefined), undefined, name)
  assert.match(
    await readFile(join(root, 'usr/lib/modules-load.d/gatehouse-ipv6.conf'), 'utf8'),
    /^ipv6$/m,
  )
})

test("kernel and firmware are Raspberry Pi's, everything else Debian's, and list and SBOM say so", async () => {
  const listed = await readFile(join(out, 'gatehouse-raspios-arm64.packages.txt'), 'utf8')
  const version = (name: string): string | undefined =>
    listed
      .split('\n')
      .map((line) => line.split('\t'))
      .find((fields) => fields[1] === name)?.[2]
  assert.match(version('linux-image-rpi-v8')!, /^1:.*\+rpt\d+$/)
  assert.match(version('raspi-firmware')!, /^1:1\.\d{8}-\d+$/)
  assert.match(version('firmware-brcm80211')!, /^1:.*\+rpt\d+$/)
  const foreign = listed.split('\n').filter((line) => line.includes('+rpt'))
  assert.deepEqual(
    foreign.map((line) => line.split('\t')[1]!.replace(/\d+\.\d+\.\d+/, '…')).toSorted(),
    ['firmware-brcm80211', 'linux-image-rpi-v8', 'linux-image-…+rpt-rpi-v8'],
  )
  assert.equal(version('linux-image-arm64'), undefined)
  const sbom = await readFile(join(out, 'gatehouse-raspios-arm64.spdx.json'), 'utf8')
  assert.deepEqual(
    [...sbom.matchAll(/pkg:deb\/raspberrypi\/([^@"]*)@1%3A/g)]
      .map(([, name]) => name!.replace(/\d+\.\d+\.\d+/, '…'))
      .toSorted(),
    ['firmware-brcm80211', 'linux-image-rpi-v8', 'linux-image-…+rpt-rpi-v8', 'raspi-firmware'],
  )
  const {
    os_list: [entry],
  } = JSON.parse(await readFile(join(out, 'gatehouse-raspios-arm64.imager.json'), 'utf8'))
  assert.deepEqual(entry.devices, ['pi5-64bit', 'pi4-64bit', 'pi3-64bit'])
  assert.equal((await readdir(join(out, 'update-raspios-arm64'))).length, 5)
})
