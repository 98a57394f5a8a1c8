import { subscribe } from 'node:diagnostics_channel'
import type { Socket } from 'node:net'
import { AnswerReader } from './answer-reader.ts'

/**
 * Puts {@link AnswerReader} between a connection to an app and undici, which reads it with `read()`
 * and `unshift()`; and has what an app says last be read although it takes no more.
 */

type WriteDone = (error?: Error | null) => void

const readers = new WeakMap<object, AnswerReader>()
const stale = new WeakSet<Error>()

// Published just before a request is written (undici's DiagnosticsChannel documentation).
subscribe('undici:client:sendHeaders', (message) => {
  const { request, socket } = message as {
    request: { method: string; upgrade?: string | null }
    socket: object
  }
  readers.get(socket)?.expect(request.method, (request.upgrade ?? null) !== null)
})

/**
 * True for the failure of a request whose connection had been used before and ended before anything
 * of an answer came: the app closed it while the request was under way to it.
 */
export function isStale(error: Error): boolean {
  return stale.has(error)
}

/** Has undici read a connection leniently. Called before undici has it. */
export function readLeniently(socket: Socket): void {
  const reader = new AnswerReader()
  readers.set(socket, reader)
  const read = socket.read.bind(socket)
  const unshift = socket.unshift.bind(socket)
  const write = socket._write.bind(socket)
  const writeAll = socket._writev!.bind(socket)
  /** Bytes in front that were read, and given back by undici. */
  let known = 0
  /** What is to be read behind all that came. */
  let tail: Buffer | undefined
  /** The app takes no more. */
  let deaf = false

  const end = (error?: Error): null => {
    socket.destroy(error)
    return null
  }

  socket.read = (size?: number): Buffer | null => {
    // How streams look for more.
    if (size === 0) return read(0) as null
    if (tail !== undefined) {
      const last = tail
      tail = undefined
      return last
    }
    for (;;) {
      // When undici asks again it has read the whole answer.
      if (reader.surplus && known === 0) return end()
      const piece = read() as Buffer | null
      if (piece === null) return null
      const before = piece.subarray(0, known)
      known -= before.length
      const clean =
        before.length === piece.length ? before : reader.push(piece.subarray(before.length))
      if (reader.fault !== undefined) return end(reader.fault)
      if (before.length > 0 && clean !== before) return Buffer.concat([before, clean])
      if (clean.length > 0) return clean
    }
  }
  socket.unshift = (piece: Buffer) => {
    known += piece.length
    unshift(piece)
  }

  // An app may answer, and close, before it has the whole body. To write on then fails, and would
  // end the connection with the answer unread.
  const forgiving =
    (done: WriteDone): WriteDone =>
    (error) => {
      if (/^(?:EPIPE|ECONNRESET)$/.test((error as NodeJS.ErrnoException | null)?.code ?? '')) {
        deaf = true
        done()
      } else {
        done(error)
      }
    }
  socket._write = (piece, encoding, done) => {
    if (deaf) done()
    else write(piece, encoding, forgiving(done))
  }
  socket._writev = (pieces, done) => {
    if (deaf) done()
    else writeAll(pieces, forgiving(done))
  }

  // Before undici's listeners.
  const ended = (): void => {
    const rest = reader.end()
    if (reader.fault !== undefined) {
      socket.destroy(reader.fault)
    } else if (rest.length > 0) {
      tail = rest
      socket.emit('readable')
    } else if (reader.waiting) {
      const error = new Error('it closed the connection in the place of an answer')
      mark(error)
      socket.destroy(error)
    }
  }
  const mark = (error: Error): void => {
    if (reader.waiting && reader.requests > 1) stale.add(error)
  }
  socket.on('end', ended)
  socket.on('error', mark)
  release.set(socket, () => {
    readers.delete(socket)
    socket.off('end', ended)
    // undici's too, which still has in it what the connection was made with.
    socket.removeAllListeners('error').on('error', ignore)
    // Not deleted: that would give the socket a dictionary for its properties, 3 KB of it.
    const own = Object.getPrototypeOf(socket) as Record<string, unknown>
    for (const name of ['read', 'unshift', '_write', '_writev'])
      Object.assign(socket, { [name]: own[name] })
  })
}

const release = new WeakMap<object, () => void>()

function ignore(): void {}

/**
 * Gives a connection back as it was: it is no longer HTTP, and undici is done with it. Its errors
 * are nobody's until somebody listens.
 */
export function releaseConnection(socket: object): void {
  release.get(socket)?.()
  release.delete(socket)
}
