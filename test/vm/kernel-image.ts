/** What tests read and change in a unified kernel image: sections of a PE file, in place. */

/**
 * A section's content.
 *
 * @param name such as `.linux`, `.cmdline`, `.uname`, `.initrd`; an Error if there is none
 */
export function sectionOf(image: Buffer, name: string): Buffer {
  const { at, size } = section(image, name)
  return image.subarray(at, at + size)
}

/** Finds a section: where it lies in the file, and how much of it is content. */
function section(image: Buffer, name: string): { at: number; size: number } {
  // The PE format's specification, 3.3: headers behind the offset at 0x3c, 40 bytes a section.
  const pe = image.readUInt32LE(0x3c)
  const count = image.readUInt16LE(pe + 6)
  const first = pe + 24 + image.readUInt16LE(pe + 20)
  for (let at = first; at < first + 40 * count; at += 40) {
    if (image.toString('latin1', at, at + 8).replace(/\0+$/, '') === name)
      return { at: image.readUInt32LE(at + 20), size: image.readUInt32LE(at + 8) }
  }
  throw new Error(`kernel image: it has no section ${name}`)
}

function rewrite(image: Buffer, name: string, change: (text: string) => string): void {
  const { at, size } = section(image, name)
  const text = change(image.toString('utf8', at, at + size).replace(/\0+$/, ''))
  const content = Buffer.from(text)
  if (content.length > size) throw new Error(`kernel image: ${name} has ${size} bytes`)
  image.fill(0, at, at + size)
  content.copy(image, at)
}

/**
 * The kernel image with a kernel that panics some seconds after its start, since there is no system
 * for it, and starts the machine again a second later.
 *
 * @param version what it says its version is, by which the boot loader sorts; no longer than its own
 */
export function withoutSystem(image: Buffer, version?: string): Buffer {
  const broken = Buffer.from(image)
  rewrite(broken, '.cmdline', (line) => {
    const console = /\bconsole=\S+/.exec(line)?.[0] ?? ''
    return `rdinit=/none root=/dev/none panic=1 ${console}`
  })
  if (version !== undefined)
    rewrite(broken, '.osrel', (text) =>
      text.replace(/^IMAGE_VERSION=.*$/m, `IMAGE_VERSION="${version}"`),
    )
  return broken
}
