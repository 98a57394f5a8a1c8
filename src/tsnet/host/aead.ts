/**
 * The cipher of WireGuard's packets, and the checksum of TCP, with SIMD (../assembly), beside the Go module and on its
 * memory.
 */

/**
 * A call's context, destination, source and its length, additional data and its length: offsets in
 * the memory, and bytes.
 */
type Call = (
  ctx: number,
  dst: number,
  src: number,
  length: number,
  ad: number,
  adLength: number,
) => void

export interface Aead {
  /** Encrypts; the tag is in the context then. */
  seal: Call
  /** Decrypts, and puts the tag that should be there into the context: the caller compares. */
  open: Call
  /**
   * Copies `length` bytes and gives the sum of their 16-bit words, little-endian, in ones'
   * complement (RFC 1071).
   */
  copySum: (dst: number, src: number, length: number) => number
}

/**
 * Undefined where `bytes` is no module that this processor can run: there are x86-64 ones without
 * what SIMD needs.
 */
export function loadAead(bytes: Uint8Array, memory: WebAssembly.Memory): Aead | undefined {
  try {
    // Seven kilobytes: compiled at once, in well under the time of a turn.
    return new WebAssembly.Instance(new WebAssembly.Module(bytes), { env: { memory } })
      .exports as unknown as Aead
  } catch {
    return undefined
  }
}
