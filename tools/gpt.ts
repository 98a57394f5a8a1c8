/**
 * GUID partition tables (UEFI 2.10, 5.3) on disks with blocks of 512 bytes, which cards, sticks and
 * our images have: read, and made anew with other partitions.
 */
import type { FileHandle } from 'node:fs/promises'
import { crc32 } from 'node:zlib'

/** Bytes of a block. */
export const block = 512
/**
 * Blocks of the entries, 128 of 128 bytes each: behind the header at the disk's beginning, before
 * the header at its end.
 */
const entryBlocks = 32
/** Blocks at the disk's beginning that hold MBR, header and entries. */
export const headBlocks = 2 + entryBlocks
/**
 * The EFI system partition's type, in the table's mixed byte order
 * (C12A7328-F81F-11D2-BA4B-00A0C93EC93B).
 */
const espType = Buffer.from('28732ac11ff8d211ba4b00a0c93ec93b', 'hex')

/**
 * A partition: its 128 bytes in the table, and what they say. Blocks count from 0, `last` belongs
 * to it.
 */
export interface Partition {
  raw: Buffer
  first: number
  last: number
  name: string
  esp: boolean
}

/** A table: the disk's identifier (16 bytes), and the partitions as they lie on the disk. */
export interface Table {
  disk: Buffer
  partitions: Partition[]
}

/** The table in a header and its entries. Undefined where there is none, or it is damaged. */
function parse(header: Buffer, entries: Buffer): Table | undefined {
  if (
    header.toString('latin1', 0, 8) !== 'EFI PART' ||
    header.readUInt32LE(80) !== 128 ||
    header.readUInt32LE(84) !== 128
  )
    return undefined
  const bare = Buffer.from(header.subarray(0, 92))
  bare.writeUInt32LE(0, 16)
  if (crc32(bare) !== header.readUInt32LE(16) || crc32(entries) !== header.readUInt32LE(88))
    return undefined
  const partitions: Partition[] = []
  for (let at = 0; at < entries.length; at += 128) {
    const raw = entries.subarray(at, at + 128)
    if (raw.subarray(0, 16).every((byte) => byte === 0)) continue
    partitions.push({
      raw,
      first: Number(raw.readBigUInt64LE(32)),
      last: Number(raw.readBigUInt64LE(40)),
      name: raw.toString('utf16le', 56).replace(/\0.*$/s, ''),
      esp: raw.subarray(0, 16).equals(espType),
    })
  }
  return {
    disk: Buffer.from(header.subarray(56, 72)),
    partitions: partitions.toSorted((a, b) => a.first - b.first),
  }
}

/** The table in the first {@link headBlocks} blocks of a disk. */
export function tableOf(head: Buffer): Table | undefined {
  return parse(head.subarray(block, 2 * block), head.subarray(2 * block, headBlocks * block))
}

/**
 * The tables of a disk that are whole: the one at its beginning, and the copy at its end, which
 * outlives what is written to the beginning.
 */
export async function readTables(disk: FileHandle, size: number): Promise<Table[]> {
  const read = async (at: number, blocks: number): Promise<Buffer> =>
    (await disk.read(Buffer.alloc(blocks * block), 0, blocks * block, at)).buffer
  const end = await read(size - (1 + entryBlocks) * block, 1 + entryBlocks)
  return [
    tableOf(await read(0, headBlocks)),
    parse(end.subarray(entryBlocks * block), end.subarray(0, entryBlocks * block)),
  ].filter((table) => table !== undefined)
}

/**
 * A table for a disk of `size` bytes: header and entries for behind the MBR, and entries and header
 * for the disk's last blocks ({@link headBlocks} - 1 blocks each).
 */
export function makeTable(
  { disk, partitions }: Table,
  size: number,
): { start: Buffer; end: Buffer } {
  const entries = Buffer.alloc(entryBlocks * block)
  for (const [index, { raw }] of partitions.entries()) raw.copy(entries, index * 128)
  const final = size / block - 1
  const header = (own: number, other: number, table: number): Buffer => {
    const made = Buffer.alloc(block)
    made.write('EFI PART', 'latin1')
    made.writeUInt32LE(0x10000, 8)
    made.writeUInt32LE(92, 12)
    made.writeBigUInt64LE(BigInt(own), 24)
    made.writeBigUInt64LE(BigInt(other), 32)
    // Where partitions may lie: from 1 MiB on, as the image has it.
    made.writeBigUInt64LE(2048n, 40)
    made.writeBigUInt64LE(BigInt(final - entryBlocks - 1), 48)
    disk.copy(made, 56)
    made.writeBigUInt64LE(BigInt(table), 72)
    made.writeUInt32LE(128, 80)
    made.writeUInt32LE(128, 84)
    made.writeUInt32LE(crc32(entries), 88)
    made.writeUInt32LE(crc32(made.subarray(0, 92)), 16)
    return made
  }
  return {
    start: Buffer.concat([header(1, final, 2), entries]),
    end: Buffer.concat([entries, header(final, 1, final - entryBlocks)]),
  }
}
