import { readlink, statfs } from 'node:fs/promises'
import type * as FFI from 'node:ffi'
import { basename, join } from 'node:path'
import { GatehouseError } from '../base/errors.ts'
import { writeFileAtomic } from '../base/files.ts'
import { reservedBytes, reservedFiles } from '../base/room.ts'
import { extensionUsers } from '../config/extensions.ts'
import { updatePaths } from '../update/record.ts'

/** Of a file system: files and folders, and bytes. */
export interface Amount {
  files: number
  bytes: number
}

/** What Node-RED gets beyond its usual limit when it could write nothing. */
const more: Amount = { files: 64, bytes: 2 * 2 ** 20 }

/**
 * How much Node-RED may have.
 *
 * @param all what the file system has room for, without the bytes that it reserves itself
 * @param has what Node-RED has; given when it could write nothing any more, and its flows are
 *   stopped: then it gets a little of the reserve, of which half is never given away
 */
export function limits(all: Amount, has?: Amount): Amount {
  const limit = (what: keyof Amount, reserved: number): number => {
    const usual = all[what] - reserved
    return has === undefined
      ? usual
      : Math.max(usual, Math.min(has[what] + more[what], all[what] - Math.ceil(reserved / 2)))
  }
  return { files: limit('files', reservedFiles(all.files)), bytes: limit('bytes', reservedBytes) }
}

/**
 * Whether Node-RED's flows stay stopped: it could write nothing, or could again write nothing with
 * its usual limit. What it was given at the start before would else be taken away at this one, and
 * the flows that fill the disk would go on.
 */
export function short(all: Amount, has: Amount): boolean {
  const usual = limits(all)
  return has.files + more.files > usual.files || has.bytes + more.bytes > usual.bytes
}

/** How much an extension may store: an eighth of the file system, and no more than this. */
const mostOfExtension: Amount = { files: 10_000, bytes: 256 * 2 ** 20 }

/** @param all what the file system has room for */
export function extensionLimit(all: Amount): Amount {
  return {
    files: Math.min(mostOfExtension.files, Math.floor(all.files / 8)),
    bytes: Math.min(mostOfExtension.bytes, Math.floor(all.bytes / 8)),
  }
}

type Quotactl = (command: number, device: string, id: number, block: bigint) => number

/**
 * Quotas of users of one file system: quotactl(2) through node:ffi, as root. The numbers are
 * linux/quota.h's.
 */
export class Quotas {
  readonly #ffi: typeof FFI
  readonly #quotactl: Quotactl
  readonly #errno: () => bigint
  readonly #device: string

  private constructor(ffi: typeof FFI, device: string) {
    this.#ffi = ffi
    this.#device = device
    const { functions } = ffi.dlopen(null, {
      quotactl: { arguments: ['int32', 'string', 'int32', 'uint64'], return: 'int32' },
      __errno_location: { arguments: [], return: 'pointer' },
    })
    this.#quotactl = functions.quotactl as unknown as Quotactl
    this.#errno = functions.__errno_location as unknown as () => bigint
  }

  /** @param device the block device that the file system is on */
  static async open(device: string): Promise<Quotas> {
    return new Quotas(await import('node:ffi'), device)
  }

  /** @param command of users. @param block struct if_dqblk, read or written */
  #call(command: number, id: number, block: Buffer<ArrayBuffer>): void {
    const address = this.#ffi.getRawPointer(block)
    if (this.#quotactl((command << 8) | 0, this.#device, id, address) === 0) return
    throw new GatehouseError(
      'GH_ROOM_QUOTA',
      `${this.#device} does not count what users have: error ${this.#ffi.getInt32(this.#errno())}`,
      'Restart the device',
    )
  }

  /** What a user has. @throws GatehouseError GH_ROOM_QUOTA where the file system does not count it */
  has(id: number): Amount {
    const block = Buffer.alloc(72)
    this.#call(0x80_00_07, id, block) // Q_GETQUOTA
    return {
      bytes: Number(block.readBigUInt64LE(16)),
      files: Number(block.readBigUInt64LE(40)),
    }
  }

  /** Sets what a user may have at most. @throws GatehouseError GH_ROOM_QUOTA */
  limit(id: number, { files, bytes }: Amount): void {
    const block = Buffer.alloc(72)
    block.writeBigUInt64LE(BigInt(Math.floor(bytes / 1024)), 0)
    block.writeBigUInt64LE(BigInt(files), 24)
    block.writeUInt32LE(1 | 4, 64) // QIF_BLIMITS, QIF_ILIMITS
    this.#call(0x80_00_08, id, block) // Q_SETQUOTA
  }
}

/**
 * What node-red-limit says of the usual limits; node-red-room knows it. Another word than that of
 * versions that knew no extensions, so that theirs are set once on a device that is updated.
 */
const usualMark = 'usual for all'

/** node-red, as overlays/usr/lib/sysusers.d/gatehouse.conf has it. */
const nodeRed = 603
const partition = '/dev/disk/by-partlabel/gatehouse-var'

/**
 * `gatehouse room [--full]`, as root, before Node-RED starts (overlays/usr/lib/gatehouse/
 * node-red-room): sets what Node-RED and extensions may have of the data partition. The file system
 * keeps that; whether it is the usual or more is kept in node-red-limit.
 *
 * @param full Node-RED could not write
 * @returns 0; 3 where its flows are to stay stopped
 */
export async function runRoom({ full }: { full: boolean }): Promise<number> {
  const { files, blocks, bfree, bavail, bsize } = await statfs('/var')
  const all = { files, bytes: (blocks - (bfree - bavail)) * bsize }
  const quotas = await Quotas.open(join('/dev', basename(await readlink(partition))))
  for (const { id } of extensionUsers) quotas.limit(id, extensionLimit(all))
  const has = quotas.has(nodeRed)
  const stopped = full || short(all, has)
  const limit = limits(all, stopped ? has : undefined)
  quotas.limit(nodeRed, limit)
  const usual = limits(all)
  await writeFileAtomic(
    join(updatePaths().slots, 'node-red-limit'),
    limit.files === usual.files && limit.bytes === usual.bytes ? `${usualMark}\n` : 'more\n',
    0o644,
  )
  process.stdout.write(
    `Node-RED has ${has.files} files and ${Math.ceil(has.bytes / 2 ** 20)} MiB, and may have ` +
      `${limit.files} and ${Math.floor(limit.bytes / 2 ** 20)} MiB\n`,
  )
  return stopped ? 3 : 0
}
