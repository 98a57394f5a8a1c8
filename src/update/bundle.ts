import { createPublicKey, verify } from 'node:crypto'
import { GatehouseError, printable } from '../base/errors.ts'

/** The files of one version, as SHA256SUMS lists them: kernel image, hash tree, root. */
export interface Bundle {
  version: string
  files: Array<{ name: string; sha256: string }>
  /**
   * Of all devices, those that are to take it by themselves now: the line `# percentage N` of
   * SHA256SUMS, 100 without.
   */
  percentage: number
  /** What it changes and which advisories it closes, for people: lines `# changes TEXT`. */
  changes: string[]
}

/** Lines of what an update changes that are shown, and how long each may be. */
const most = { lines: 500, length: 300 }

/** GPT's and the firmware's name for this processor, in Debian's words. */
export const arch = process.arch === 'arm64' ? 'arm64' : 'amd64'

/**
 * What an update folder holds for this machine, after its signature has been checked.
 *
 * @param sums content of SHA256SUMS, in the form of sha256sum(1)
 * @param signature content of SHA256SUMS.sig: a raw Ed25519 signature (RFC 8032)
 * @param publicKey PEM, from the image that runs: an update is believed if whoever made this image
 *   made it too
 * @throws GatehouseError GH_UPDATE_SIGNATURE, GH_UPDATE_FORMAT
 */
export function readBundle(sums: Buffer, signature: Buffer, publicKey: string): Bundle {
  if (!verify(null, sums, createPublicKey(publicKey), signature)) {
    throw new GatehouseError(
      'GH_UPDATE_SIGNATURE',
      'the update is not signed with the key that this device trusts',
      'Nothing was changed. Take the update from whoever made your image, or build it with the same keys/ folder',
    )
  }
  const lines = sums
    .toString('utf8')
    .split('\n')
    .flatMap((line) => {
      const match = /^([0-9a-f]{64}) [ *]([A-Za-z0-9._~^-]+)$/.exec(line)
      return match === null ? [] : [{ sha256: match[1]!, name: match[2]! }]
    })
  // gatehouse_<version>_<partition UUID>_<arch>.root: see overlays/usr/lib/sysupdate.d.
  const mine = lines.flatMap((file) => {
    const match = new RegExp(
      `^gatehouse_([0-9A-Za-z.~^]+)_(?:[0-9a-f-]{36}_)?${arch}\\.(efi|root|verity)$`,
    ).exec(file.name)
    return match === null ? [] : [{ ...file, version: match[1]! }]
  })
  const version = mine
    .map((file) => file.version)
    .toSorted(compareVersions)
    .at(-1)
  const files = mine.filter((file) => file.version === version)
  if (version === undefined || files.length !== 3) {
    throw new GatehouseError(
      'GH_UPDATE_FORMAT',
      `the update folder has no complete version for ${arch}`,
      'Put all of out/update-<arch> there, SHA256SUMS and SHA256SUMS.sig included',
    )
  }
  // sha256sum(1) takes it for a comment.
  const percentage = Number(/^# percentage (\d{1,3})$/m.exec(sums.toString('utf8'))?.[1] ?? 100)
  const changes = [...sums.toString('utf8').matchAll(/^# changes (.+)$/gm)]
    .slice(0, most.lines)
    .map(([, line]) => printable(line!).slice(0, most.length))
  const listed = files.map(({ name, sha256 }) => ({ name, sha256 }))
  return { version, percentage, changes, files: listed }
}

/**
 * Order of versions: -1 when `a` is the older one, 1 when `b` is, 0 when neither is. Exactly that
 * of systemd-sysupdate and of the boot loader, which choose by it what is overwritten and what is
 * started (the UAPI group's version format specification; `systemd-analyze compare-versions`).
 * Numbers go by value, 0.10 is above 0.9; `1.0~rc1` is before 1.0, `1.0^1` after it.
 */
export function compareVersions(a: string, b: string): -1 | 0 | 1 {
  let [left, right] = [a, b]
  for (;;) {
    left = left.replace(/^[^0-9A-Za-z~^.-]+/, '')
    right = right.replace(/^[^0-9A-Za-z~^.-]+/, '')
    // Whoever has one that the other has not is the older; '' is the end.
    for (const mark of ['~', '', '-', '^', '.']) {
      const [one, other] =
        mark === '' ? [left === '', right === ''] : [left.startsWith(mark), right.startsWith(mark)]
      if (one !== other) return one ? -1 : 1
      if (one && mark === '') return 0
      if (one) [left, right] = [left.slice(1), right.slice(1)]
    }
    const numbers = /^\d/.test(left) || /^\d/.test(right)
    const piece = numbers ? /^\d*/ : /^[A-Za-z]*/
    const [one, other] = [piece.exec(left)![0], piece.exec(right)![0]]
    const order = numbers ? compareNumbers(one, other) : compareText(one, other)
    if (order !== 0) return order
    ;[left, right] = [left.slice(one.length), right.slice(other.length)]
  }
}

/** Two numbers of any length; none is before 0. */
function compareNumbers(a: string, b: string): -1 | 0 | 1 {
  if (a === '' || b === '') return compareText(a, b)
  const [one, other] = [a.replace(/^0+/, ''), b.replace(/^0+/, '')]
  if (one.length !== other.length) return one.length < other.length ? -1 : 1
  return compareText(one, other)
}

function compareText(a: string, b: string): -1 | 0 | 1 {
  if (a === b) return 0
  return a < b ? -1 : 1
}

/** The running image's version, from os-release(5); undefined where it is no image. */
export function imageVersion(osRelease: string): string | undefined {
  return /^IMAGE_VERSION="?([^"\n]+)"?$/m.exec(osRelease)?.[1]
}

const mebibyte = 2 ** 20

/**
 * Room for a file of an update, bytes: the slots of overlays/usr/lib/repart.d, and a kernel image
 * of which the card's FAT partition holds two.
 */
export function largest(name: string): number {
  if (name.endsWith('.root')) return 512 * mebibyte
  return (name.endsWith('.verity') ? 16 : 100) * mebibyte
}
