/**
 * Makes the jumps of a Go module direct. Go's compiler (cmd/internal/obj/wasm/wasmobj.go) puts the
 * blocks of a function one behind the other in a loop, with a br_table at its head: whoever jumps
 * sets the number of the block and goes back to the head. V8 sees one loop around everything, and
 * can keep nothing in registers from one block to the next. A jump forwards needs none of that: the
 * block's own label is in reach. Nine of ten are such, and seven of ten functions have no others:
 * their loop is none any more. What stays as it is: jumps backwards, and that a goroutine which was
 * put to sleep finds its block by the table.
 *
 * Usage: node jumps.ts FILE   rewrites a module in place, and says how much of it
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { argv } from 'node:process'
import { Reader } from './host/module.ts'

/** Opcodes (WebAssembly 2.0, 5.4). */
const op = {
  block: 0x02,
  loop: 0x03,
  if: 0x04,
  end: 0x0b,
  br: 0x0c,
  brTable: 0x0e,
  localGet: 0x20,
  localSet: 0x21,
  globalGet: 0x23,
  i32Const: 0x41,
} as const

/** The local that holds the number of the block to go on with: PC_B, the one parameter. */
const blockLocal = 0

const codeSection = 10

/** What {@link directJumps} did. */
export interface Jumps {
  /** Functions that have such a loop. */
  functions: number
  /** Those of them whose loop was for jumps forwards alone, and is a block now. */
  unlooped: number
  /** Jumps between blocks. */
  jumps: number
  /** Those of them that are direct now. */
  direct: number
}

/**
 * Rewrites a module's functions; all else of it stays as it is.
 *
 * @returns the new module, and how much is new
 * @throws Error where it has an instruction that this does not know, or nothing of what Go makes:
 *   the compiler has changed
 */
export function directJumps(module: Uint8Array): { module: Buffer; jumps: Jumps } {
  const bytes = Buffer.from(module)
  const jumps: Jumps = { functions: 0, unlooped: 0, jumps: 0, direct: 0 }
  const pieces: Buffer[] = [bytes.subarray(0, 8)]
  for (let at = 8; at < bytes.length;) {
    const [size, from] = number(bytes, at + 1)
    const to = from + size
    if (bytes[at] === codeSection) {
      const code = rewriteCode(bytes, from, jumps)
      pieces.push(Buffer.from([codeSection]), leb(code.length), code)
    } else pieces.push(bytes.subarray(at, to))
    at = to
  }
  if (jumps.direct === 0)
    throw new Error('no jump of it can be made direct: Go compiles to another shape by now')
  return { module: Buffer.concat(pieces), jumps }
}

function rewriteCode(bytes: Buffer, from: number, jumps: Jumps): Buffer {
  const [count, first] = number(bytes, from)
  const pieces = [leb(count)]
  for (let at = first, i = 0; i < count; i++) {
    const [length, start] = number(bytes, at)
    at = start + length
    const body = rewriteFunction(bytes, start, at, jumps)
    pieces.push(leb(body.length), body)
  }
  return Buffer.concat(pieces)
}

/** A function's body, from `from` to `to`, with its jumps direct; changes `jumps` by what it did. */
function rewriteFunction(bytes: Buffer, from: number, to: number, jumps: Jumps): Buffer {
  const pieces: Buffer[] = []
  let copied = from
  const copyTo = (end: number, next: number): void => {
    pieces.push(bytes.subarray(copied, end))
    copied = next
  }
  // Labels in reach, the innermost last; each label has a number of its own.
  const open: number[] = []
  let labels = 0
  let loop: { label: number; at: number } | undefined
  // Labels by the numbers of blocks; the last is that of all others.
  let table: number[] | undefined
  // What is before the table: a function without one is left as it is.
  let head = true
  let jumped = 0
  let direct = 0
  let [before, last] = [-1, -1]
  for (let at = afterLocals(bytes, from); at < to;) {
    const code = bytes[at]!
    const next = afterImmediates(bytes, at)
    if (code === op.block || code === op.loop || code === op.if) {
      if (head && code === op.loop) loop ??= { label: labels, at }
      open.push(labels++)
    } else if (code === op.end) open.pop()
    else if (code === op.brTable && head) table = tableOf(bytes, at, open)
    else if (
      code === op.br &&
      table !== undefined &&
      bytes[before] === op.i32Const &&
      bytes[last] === op.localSet &&
      number(bytes, last + 1)[0] === blockLocal &&
      open.at(-1 - number(bytes, at + 1)[0]) === loop?.label
    ) {
      jumped++
      const [block] = number(bytes, before + 1)
      const place = open.lastIndexOf(table[Math.min(block, table.length - 1)]!)
      // A label that is no longer open is one backwards.
      if (place !== -1) {
        direct++
        copyTo(before, next)
        pieces.push(Buffer.from([op.br]), leb(open.length - 1 - place))
      }
    }
    head &&= [op.block, op.loop, op.localGet, op.localSet, op.globalGet].some((one) => one === code)
    before = last
    last = at
    at = next
  }
  copyTo(to, to)
  const body = Buffer.concat(pieces)
  if (loop === undefined || table === undefined) return body
  jumps.functions++
  jumps.jumps += jumped
  jumps.direct += direct
  if (jumped === direct) {
    jumps.unlooped++
    body[loop.at - from] = op.block
  }
  return body
}

/** The labels that a br_table goes to. */
function tableOf(bytes: Buffer, at: number, open: readonly number[]): number[] {
  const table: number[] = []
  let [count, next] = number(bytes, at + 1)
  for (let depth; count >= 0; count--) {
    ;[depth, next] = number(bytes, next)
    table.push(open.at(-1 - depth)!)
  }
  return table
}

function afterLocals(bytes: Buffer, from: number): number {
  let [groups, at] = number(bytes, from)
  for (; groups > 0; groups--) at = after(bytes, at) + 1
  return at
}

/** Where the next instruction begins. */
function afterImmediates(bytes: Buffer, at: number): number {
  const code = bytes[at++]!
  // Comparisons, arithmetic, conversions.
  if (code >= 0x45 && code <= 0xc4) return at
  // Loads and stores.
  if (code >= 0x28 && code <= 0x3e) return after(bytes, after(bytes, at))
  switch (code) {
    case 0x00: // unreachable
    case 0x01: // nop
    case 0x05: // else
    case op.end:
    case 0x0f: // return
    case 0x1a: // drop
    case 0x1b: // select
      return at
    case op.block:
    case op.loop:
    case op.if:
    case op.br:
    case 0x0d: // br_if
    case 0x10: // call
    case op.localGet:
    case op.localSet:
    case 0x22: // local.tee
    case op.globalGet:
    case 0x24: // global.set
    case 0x3f: // memory.size
    case 0x40: // memory.grow
    case op.i32Const:
    case 0x42: // i64.const
      return after(bytes, at)
    case 0x11: // call_indirect
      return after(bytes, after(bytes, at))
    case op.brTable: {
      let [count, next] = number(bytes, at)
      for (; count >= 0; count--) next = after(bytes, next)
      return next
    }
    case 0x43: // f32.const
      return at + 4
    case 0x44: // f64.const
      return at + 8
    case 0xfc: {
      const [more, next] = number(bytes, at)
      if (more < 8) return next // saturating truncation
      if (more === 11) return after(bytes, next) // memory.fill
      if (more === 10) return after(bytes, after(bytes, next)) // memory.copy
    }
  }
  throw new Error(`instruction 0x${code.toString(16)} at byte ${at - 1} is not known`)
}

/** An unsigned number in LEB128 of 32 bits at most, and where it ends. */
function number(bytes: Buffer, at: number): [value: number, next: number] {
  const reader = new Reader(bytes, at)
  return [reader.leb(), reader.at]
}

/** Where a number in LEB128 ends. */
function after(bytes: Buffer, at: number): number {
  while (bytes[at++]! >= 0x80);
  return at
}

function leb(value: number): Buffer {
  const bytes: number[] = []
  for (; value >= 0x80; value >>>= 7) bytes.push((value & 0x7f) | 0x80)
  bytes.push(value)
  return Buffer.from(bytes)
}

if (import.meta.main) {
  const [, , file] = argv
  if (file === undefined) throw new Error('usage: node jumps.ts FILE')
  const { module, jumps } = directJumps(readFileSync(file))
  writeFileSync(file, module)
  console.log(
    `tsnet: ${jumps.direct} of ${jumps.jumps} jumps are direct, ` +
      `${jumps.unlooped} of ${jumps.functions} functions need no loop`,
  )
}
