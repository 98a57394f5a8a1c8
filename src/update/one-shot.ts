import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { crc32 } from 'node:zlib'
import { putOnCard, withCard } from '../base/card.ts'

/** The vendor of the variables that systemd-boot reads (systemd.io/BOOT_LOADER_INTERFACE). */
const loader = '4a67b082-0a4c-41cf-b6c7-440b29bb8c4f'
/** Non-volatile, for the boot loader, for the system (UEFI 2.10, 8.2). */
const kept = 7
/** The file in which U-Boot keeps variables (its include/efi_variable.h), and its limit in bytes. */
const store = 'ubootefi.var'
const largestStore = 0x4000
/** "UbEfiVa" and version 1. */
const magic = 0x0161566966456255n
const headerSize = 24
const entrySize = 32

/** A variable as U-Boot keeps it. */
interface Variable {
  attributes: number
  /** Of a signed variable; 0 for others. */
  time: bigint
  /** As it is in memory, 16 bytes. */
  vendor: Buffer
  name: string
  data: Buffer
}

/** A GUID as it lies in memory: its first three numbers are little-endian (UEFI 2.10, appendix A). */
function guid(text: string): Buffer {
  const bytes = Buffer.from(text.replaceAll('-', ''), 'hex')
  bytes.subarray(0, 4).reverse()
  bytes.subarray(4, 6).reverse()
  bytes.subarray(6, 8).reverse()
  return bytes
}

const text16 = (text: string): Buffer => Buffer.from(`${text}\0`, 'utf16le')
const aligned = (size: number): number => Math.ceil(size / 8) * 8

/**
 * The variables in U-Boot's file. None where it is not whole: U-Boot takes such a file for empty
 * too.
 */
function readStore(file: Buffer): Variable[] {
  if (
    file.length < headerSize ||
    file.length > largestStore ||
    file.readBigUInt64LE(8) !== magic ||
    file.readUInt32LE(16) !== file.length ||
    file.readUInt32LE(20) !== crc32(file.subarray(headerSize))
  )
    return []
  const variables: Variable[] = []
  for (let at = headerSize; at + entrySize < file.length;) {
    const length = file.readUInt32LE(at)
    let end = at + entrySize
    while (end + 2 <= file.length && file.readUInt16LE(end) !== 0) end += 2
    const data = end + 2
    if (data + length > file.length) return []
    variables.push({
      attributes: file.readUInt32LE(at + 4),
      time: file.readBigUInt64LE(at + 8),
      vendor: file.subarray(at + 16, at + 32),
      name: file.toString('utf16le', at + entrySize, end),
      data: file.subarray(data, data + length),
    })
    at = aligned(data + length)
  }
  return variables
}

function writeStore(variables: Variable[]): Buffer {
  const entries = variables.map(({ attributes, time, vendor, name, data }) => {
    const head = Buffer.alloc(16)
    head.writeUInt32LE(data.length, 0)
    head.writeUInt32LE(attributes, 4)
    head.writeBigUInt64LE(time, 8)
    const entry = Buffer.concat([head, vendor, text16(name), data])
    return Buffer.concat([entry], aligned(entry.length))
  })
  const content = Buffer.concat(entries)
  const header = Buffer.alloc(headerSize)
  header.writeBigUInt64LE(magic, 8)
  header.writeUInt32LE(headerSize + content.length, 16)
  header.writeUInt32LE(crc32(content), 20)
  return Buffer.concat([header, content])
}

/**
 * What the boot loader is told to start once. systemd-boot 257 takes the counter out of an entry's
 * name, others do not; and it does not make its letters small, which it does with what it is told.
 * Of two versions on one card, the newer of which is meant, no other fits.
 */
export const onlyOnce = (version: string): string =>
  `gatehouse_${version.replaceAll(/[A-Z]/g, '?')}[+.]*`

/**
 * U-Boot's file of variables with LoaderEntryOneShot in it, and all else that was there.
 *
 * @param before its content, undefined where there is none
 * @param version of which the kernel image is to be started, once
 * @throws Error where there is no room for it
 */
export function withOneShot(before: Buffer | undefined, version: string): Buffer {
  const vendor = guid(loader)
  const name = 'LoaderEntryOneShot'
  const others = readStore(before ?? Buffer.alloc(0)).filter(
    (variable) => variable.name !== name || !variable.vendor.equals(vendor),
  )
  const data = text16(onlyOnce(version))
  const file = writeStore([...others, { attributes: kept, time: 0n, vendor, name, data }])
  if (file.length > largestStore)
    throw new Error(`${store} has ${file.length} bytes with it, and U-Boot reads ${largestStore}`)
  return file
}

/**
 * Has the next start, and only that, take `version`, whose kernel image is not taken otherwise:
 * whatever becomes of it, the start after that takes what runs now.
 *
 * systemd-boot forgets the variable before it starts what it names. U-Boot lets no variable be set
 * once the system runs; it keeps them in a file on the FAT partition, which is written here.
 *
 * @param boot where the FAT partition is mounted
 * @param efivars where the kernel shows the firmware's variables
 * @throws Error that says why it cannot be set; nothing is changed then
 */
export async function startOnce(
  version: string,
  boot: string,
  efivars = '/sys/firmware/efi/efivars',
): Promise<void> {
  // Four bytes of attributes come first.
  const firmware = (await readFile(join(efivars, `LoaderFirmwareInfo-${loader}`)))
    .subarray(4)
    .toString('utf16le')
  if (!firmware.startsWith('Das U-Boot')) {
    await promisify(execFile)('bootctl', ['set-oneshot', onlyOnce(version)])
    return
  }
  const file = join(boot, store)
  await withCard(boot, async () => {
    const before = await readFile(file).catch((err: NodeJS.ErrnoException) => {
      if (err.code === 'ENOENT') return undefined
      throw err
    })
    await putOnCard(file, withOneShot(before, version))
  })
}
