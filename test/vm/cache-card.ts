/**
 * A card with a cache of its own, as SD cards have: what is written lies there for a moment, in no
 * order, and is gone when the power is. QEMU reaches it by NBD (the protocol's doc/proto.md); the
 * file behind it is what would be found on the card.
 *
 * QEMU's own end, by which other tests cut the power, loses nothing of what the guest has written.
 */
import { closeSync, fstatSync, openSync, readSync, writeSync } from 'node:fs'
import { once } from 'node:events'
import { type Server, type Socket, createServer } from 'node:net'

/** `honest`: a flush is answered when all is on the card. `lying`: at once, and nothing is done. */
export type Manner = 'honest' | 'lying'

const block = 4096
/** A cached block is written down by chance, within some two seconds. Milliseconds. */
const sweep = 100
const share = 0.1

// doc/proto.md, "Values".
const option = { exportName: 1, abort: 2, info: 6, go: 7 }
const reply = { ack: 1, info: 3, unsupported: 0x80000001 }
const command = { read: 0, write: 1, disconnect: 2, flush: 3 }
const optionMagic = 0x49484156454f5054n // IHAVEOPT
/** There are flags; a flush is understood. */
const transmissionFlags = 1 | 4

/** What was written to a part of the card, in order; a flush is what puts everything before it down. */
export interface Recording {
  /** What was there when it began. */
  base: Buffer
  /** Offsets are from the part's beginning. */
  steps: Array<{ offset: number; data: Buffer } | 'flush'>
}

/** What a cut came to. */
export interface Loss {
  /** Blocks of 4 KiB that were in the cache alone. */
  blocks: number
  /** Of those, written before a flush that was answered: none, unless the card lies. */
  flushed: number
}

export class CacheCard {
  #file: number
  #size: number
  #server: Server
  #sockets = new Set<Socket>()
  /** By number; `flushed` once a flush was answered after it. */
  #cache = new Map<number, { data: Buffer; flushed: boolean }>()
  #timer: NodeJS.Timeout
  #manner: Manner
  #recorded: { begins: number; size: number; recording: Recording } | undefined
  /** Flushes answered, and bytes written, since it was opened. */
  flushes = 0
  written = 0

  /** Opens the image `file` as a card, on the unix socket `path`. */
  static async open(file: string, path: string, manner: Manner): Promise<CacheCard> {
    const card = new CacheCard(file, manner)
    card.#server.listen(path)
    await once(card.#server, 'listening')
    return card
  }

  private constructor(file: string, manner: Manner) {
    this.#manner = manner
    this.#file = openSync(file, 'r+')
    this.#size = fstatSync(this.#file).size
    if (this.#size % block !== 0) throw new Error(`card: ${file} is no multiple of ${block} bytes`)
    this.#server = createServer((socket) => {
      this.#sockets.add(socket)
      socket.once('close', () => this.#sockets.delete(socket))
      // QEMU that is killed resets it.
      this.#serve(socket).catch(() => socket.destroy())
    })
    this.#timer = setInterval(() => {
      for (const [number, { data }] of this.#cache)
        if (Math.random() < share) this.#down(number, data)
    }, sweep)
    this.#timer.unref()
  }

  /** Notes from now on what is written to a part of the card, in bytes. */
  record({ begins, size }: { begins: number; size: number }): Recording {
    const recording: Recording = { base: this.#read(begins, size), steps: [] }
    this.#recorded = { begins, size, recording }
    return recording
  }

  /** The power goes: what is in the cache is lost. */
  async cut(): Promise<Loss> {
    const lost = [...this.#cache.values()]
    this.#cache.clear()
    await this.#close()
    return { blocks: lost.length, flushed: lost.filter(({ flushed }) => flushed).length }
  }

  /** It is let finish, and taken out. */
  async eject(): Promise<void> {
    for (const [number, { data }] of this.#cache) this.#down(number, data)
    await this.#close()
  }

  async #close(): Promise<void> {
    clearInterval(this.#timer)
    const closed = once(this.#server, 'close')
    this.#server.close()
    for (const socket of this.#sockets) socket.destroy()
    await closed
    closeSync(this.#file)
  }

  #down(number: number, data: Buffer): void {
    writeSync(this.#file, data, 0, block, number * block)
    this.#cache.delete(number)
  }

  #read(offset: number, length: number): Buffer {
    const data = Buffer.alloc(length)
    readSync(this.#file, data, 0, length, offset)
    if (this.#cache.size > 0)
      for (let number = Math.floor(offset / block); number * block < offset + length; number++) {
        const cached = this.#cache.get(number)?.data
        if (cached === undefined) continue
        const at = number * block - offset
        cached.copy(data, Math.max(at, 0), Math.max(-at, 0), Math.min(block, length - at))
      }
    return data
  }

  #write(offset: number, data: Buffer): void {
    this.written += data.length
    if (this.#recorded !== undefined) {
      const { begins, size, recording } = this.#recorded
      // The kernel writes within a partition, never over its edge.
      if (offset >= begins && offset < begins + size)
        recording.steps.push({ offset: offset - begins, data: Buffer.from(data) })
    }
    for (let at = offset; at < offset + data.length;) {
      const number = Math.floor(at / block)
      const begin = at - number * block
      const end = Math.min(block, offset + data.length - number * block)
      const before = this.#cache.get(number)?.data
      const whole = before ?? this.#read(number * block, block)
      data.copy(whole, begin, at - offset, at - offset + end - begin)
      this.#cache.set(number, { data: whole, flushed: false })
      at += end - begin
    }
  }

  #flush(): void {
    this.flushes++
    this.#recorded?.recording.steps.push('flush')
    if (this.#manner === 'honest')
      for (const [number, { data }] of this.#cache) this.#down(number, data)
    else for (const cached of this.#cache.values()) cached.flushed = true
  }

  async #serve(socket: Socket): Promise<void> {
    const take = reader(socket)
    const hello = Buffer.alloc(18)
    hello.write('NBDMAGIC', 0, 'latin1')
    hello.writeBigUInt64BE(optionMagic, 8)
    hello.writeUInt16BE(1, 16)
    socket.write(hello)
    await take(4)
    for (let chosen = false; !chosen;) {
      const head = await take(16)
      const kind = head.readUInt32BE(8)
      await take(head.readUInt32BE(12))
      const size = Buffer.alloc(10)
      size.writeBigUInt64BE(BigInt(this.#size))
      size.writeUInt16BE(transmissionFlags, 8)
      const answer = (type: number, data: Buffer): void => {
        const header = Buffer.alloc(20)
        header.writeBigUInt64BE(0x3e889045565a9n, 0)
        header.writeUInt32BE(kind, 8)
        header.writeUInt32BE(type, 12)
        header.writeUInt32BE(data.length, 16)
        socket.write(Buffer.concat([header, data]))
      }
      if (kind === option.exportName) {
        socket.write(Buffer.concat([size, Buffer.alloc(124)]))
        chosen = true
      } else if (kind === option.go || kind === option.info) {
        answer(reply.info, Buffer.concat([Buffer.alloc(2), size]))
        answer(reply.ack, Buffer.alloc(0))
        chosen = kind === option.go
      } else if (kind === option.abort) {
        socket.end()
        return
      } else answer(reply.unsupported, Buffer.alloc(0))
    }
    for (;;) {
      const head = await take(28)
      const type = head.readUInt16BE(6)
      const offset = Number(head.readBigUInt64BE(16))
      const length = head.readUInt32BE(24)
      const done = Buffer.alloc(16)
      done.writeUInt32BE(0x67446698, 0)
      head.copy(done, 8, 8, 16)
      let data: Buffer[] = []
      if (type === command.read) data = [this.#read(offset, length)]
      else if (type === command.write) this.#write(offset, await take(length))
      else if (type === command.flush) this.#flush()
      else if (type === command.disconnect) {
        socket.end()
        return
      } else done.writeUInt32BE(22, 4)
      socket.write(Buffer.concat([done, ...data]))
    }
  }
}

/** Reads so many bytes of a socket at a time. */
function reader(socket: Socket): (length: number) => Promise<Buffer> {
  let pieces: Buffer[] = []
  let have = 0
  let wanted = 0
  let waiting: { done: () => void; fail: (error: Error) => void } | undefined
  socket.on('data', (piece: Buffer) => {
    pieces.push(piece)
    have += piece.length
    if (have >= wanted) waiting?.done()
  })
  const ended = (): void => waiting?.fail(new Error('card: the connection has ended'))
  socket.once('close', ended)
  socket.once('error', ended)
  return async (length) => {
    if (have < length) {
      wanted = length
      await new Promise<void>((done, fail) => (waiting = { done, fail }))
      waiting = undefined
    }
    const all = Buffer.concat(pieces)
    pieces = [all.subarray(length)]
    have = all.length - length
    return all.subarray(0, length)
  }
}
