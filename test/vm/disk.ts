/** What is written to disks from outside: files on an image's FAT partition, sticks. */
import { open, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { type Partition, block, readTables } from '../../tools/gpt.ts'
import { fromTree, tool, treeEnvironment } from './tools-tree.ts'

/**
 * Where a partition of an image begins, and how large it is, in bytes.
 *
 * @param what what it is called, for the error where there is none such
 */
export async function partitionOf(
  image: string,
  what: string,
  isIt: (partition: Partition) => boolean,
): Promise<{ begins: number; size: number }> {
  const file = await open(image, 'r')
  try {
    const [table] = await readTables(file, (await file.stat()).size)
    const found = table?.partitions.find(isIt)
    if (found === undefined)
      throw new Error(`machine: ${image} has no ${what}: not an image of image/build?`)
    return { begins: found.first * block, size: (found.last + 1 - found.first) * block }
  } finally {
    await file.close()
  }
}

/** mcopy(1) to or from the FAT partition of the image `disk`. */
export async function mcopy(disk: string, names: string[], input?: string | Buffer): Promise<void> {
  const { begins } = await partitionOf(disk, 'EFI system partition', ({ esp }) => esp)
  const [loader = '', ...args] = fromTree('mtools')
  await tool(
    loader,
    [...args, '-c', 'mcopy', '-o', '-i', `${disk}@@${begins}`, ...names],
    input,
    treeEnvironment,
  )
}

/**
 * Makes the image of a stick: one FAT32 partition behind an MBR, as sticks are sold, with `files`
 * (of this machine, by where they go on the stick).
 */
export async function makeStick(
  image: string,
  files: Record<string, string>,
  { megabytes = 400 } = {},
): Promise<void> {
  await rm(image, { force: true })
  const start = 2048
  const sectors = megabytes * 2048
  const mbr = Buffer.alloc(512)
  // One entry: type 0x0c (FAT32, LBA), first sector, number of sectors; then the signature.
  mbr[446 + 4] = 0x0c
  mbr.writeUInt32LE(start, 446 + 8)
  mbr.writeUInt32LE(sectors, 446 + 12)
  mbr.writeUInt16LE(0xaa55, 510)
  const file = await open(image, 'w')
  await file.write(mbr)
  await file.truncate((start + sectors) * 512)
  await file.close()
  const [mkfs = '', ...mkfsArgs] = fromTree('../sbin/mkfs.vfat')
  await tool(mkfs, [
    ...mkfsArgs,
    '-F',
    '32',
    '-n',
    'STICK',
    '--offset',
    String(start),
    image,
    String(sectors / 2),
  ])
  const [mtools = '', ...mtoolsArgs] = fromTree('mtools')
  const at = `${image}@@${start * 512}`
  for (const folder of new Set(Object.keys(files).map((name) => dirname(name)))) {
    if (folder !== '.')
      await tool(
        mtools,
        [...mtoolsArgs, '-c', 'mmd', '-i', at, `::${folder}`],
        undefined,
        treeEnvironment,
      )
  }
  for (const [name, source] of Object.entries(files))
    await tool(
      mtools,
      [...mtoolsArgs, '-c', 'mcopy', '-o', '-i', at, source, `::${name}`],
      undefined,
      treeEnvironment,
    )
}
