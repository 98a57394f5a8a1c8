/**
 * The Go module, compiled without its data. V8 keeps the bytes of a module for as long as that
 * lives, since it compiles a function when it is first called; a third of them would be data that
 * instantiation has copied into the memory already.
 *
 * Layout: WebAssembly Core Specification 2.0, section 5.5 (binary format of modules).
 */

const HEADER = 8
const CUSTOM = 0
const DATA = 11
const DATA_COUNT = 12
const I32_CONST = 0x41
const END = 0x0b

/** Bytes that belong into the module's memory, and where. */
interface Segment {
  offset: number
  bytes: Uint8Array
}

/** Reads a module from one of its bytes on. Each throws where the module is cut off. */
export class Reader {
  at: number
  private readonly bytes: Uint8Array
  constructor(bytes: Uint8Array, at: number) {
    this.bytes = bytes
    this.at = at
  }
  byte(): number {
    const b = this.bytes[this.at++]
    if (b === undefined) throw new Error('the module is cut off')
    return b
  }
  /**
   * LEB128 of 32 bits, taken as unsigned; a signed one that is not negative reads the same when its
   * sign bit is cut off.
   */
  leb(signed = false): number {
    let value = 0
    for (let shift = 0; ; shift += 7) {
      const b = this.byte()
      value |= (b & 0x7f) << shift
      if (b & 0x80) continue
      if (signed && b & 0x40 && shift + 7 < 32) value |= -1 << (shift + 7)
      return value >>> 0
    }
  }
  take(length: number): Uint8Array {
    const part = this.bytes.subarray(this.at, (this.at += length))
    if (part.length !== length) throw new Error('the module is cut off')
    return part
  }
}

/** The segments of a data section's body. Throws where it is cut off, and {@link Unusual}. */
function* segmentsOf(body: Uint8Array): Generator<Segment> {
  const r = new Reader(body, 0)
  for (let left = r.leb(); left > 0; left--) {
    if (r.leb() !== 0 || r.byte() !== I32_CONST) throw new Unusual()
    const offset = r.leb(true)
    if (r.byte() !== END) throw new Unusual()
    yield { offset, bytes: r.take(r.leb()) }
  }
}

/** Data that is more than active segments at constant places; the Go compiler makes no such. */
class Unusual extends Error {}

/**
 * Takes the data off a module. `code` is all before it, which is a module of its own; `segments`
 * walks what goes into the memory (there are a hundred thousand). They are parts of `bytes`, not
 * copies. A module with data of another kind than Go's is left whole, with no segments.
 */
export function splitData(bytes: Uint8Array): {
  code: Uint8Array
  segments: () => Iterable<Segment>
} {
  const whole = { code: bytes, segments: () => [] }
  const r = new Reader(bytes, HEADER)
  while (r.at < bytes.length) {
    const start = r.at
    const id = r.byte()
    const body = r.take(r.leb())
    if (id === DATA_COUNT) return whole // some code refers to the segments
    if (id !== DATA) continue
    try {
      for (const _ of segmentsOf(body));
    } catch (err) {
      if (err instanceof Unusual) return whole
      throw err
    }
    // Behind the data there is nothing but what is there for people.
    while (r.at < bytes.length) {
      if (r.byte() !== CUSTOM) return whole
      r.take(r.leb())
    }
    return { code: bytes.subarray(0, start), segments: () => segmentsOf(body) }
  }
  return whole
}

/**
 * Compiles and instantiates the module. Its data is in its memory when this resolves, and the
 * buffer of `bytes` is detached. Rejects as WebAssembly.compile and instantiate do.
 */
export async function instantiate(
  bytes: Uint8Array<ArrayBuffer>,
  imports: WebAssembly.Imports,
): Promise<WebAssembly.Instance> {
  const { code, segments } = splitData(bytes)
  const instance = await WebAssembly.instantiate(await WebAssembly.compile(code), imports)
  const memory = new Uint8Array((instance.exports.memory as WebAssembly.Memory).buffer)
  for (const segment of segments()) memory.set(segment.bytes, segment.offset)
  bytes.buffer.transfer(0) // at once: an idle thread may not collect garbage for long
  return instance
}
