import type { IncomingMessage, Server } from 'node:http'
import type { TLSSocket } from 'node:tls'

/** What is still read of a body that nobody wants, at most. Milliseconds in all, and without a byte. */
const patience = { whole: 30_000, quiet: 5_000 }

/** Likewise in bytes. */
const most = 64 * 1024 * 1024

/**
 * Ends connections of an HTTP/1.1 server so that an answer can be read that came before its request
 * was there as a whole (RFC 9112 §9.6): a socket that is closed while bytes of the peer lie unread
 * is reset, and the reset takes the answer away from a peer that is still sending. So the writing
 * side is shut first, and what comes is read and thrown away for a moment.
 *
 * Node closes a connection by `socket.destroySoon()` when its last answer is out; that is what is
 * replaced.
 *
 * @returns to be called with each connection before the server gets it
 */
export function lingering(server: Server): (socket: TLSSocket) => void {
  const last = new WeakMap<object, IncomingMessage>()
  server.on('request', (request) => {
    last.set(request.socket, request)
  })
  server.on('upgrade', ({ socket }) => last.delete(socket))
  return (socket) => {
    const destroySoon = socket.destroySoon.bind(socket)
    socket.destroySoon = () => {
      const request = last.get(socket)
      if (request === undefined || request.complete || socket.readableEnded || socket.destroyed)
        destroySoon()
      else linger(socket)
    }
  }
}

function linger(socket: TLSSocket): void {
  let left = most
  const whole = setTimeout(() => socket.destroy(), patience.whole)
  const quiet = setTimeout(() => socket.destroy(), patience.quiet)
  socket.once('end', () => socket.destroy())
  socket.once('close', () => {
    clearTimeout(whole)
    clearTimeout(quiet)
  })
  const discard = (): void => {
    // Nothing that comes is a request any more: the parser is not to see it.
    socket.removeAllListeners('data')
    socket.on('data', (piece: Buffer) => {
      quiet.refresh()
      left -= piece.length
      if (left < 0) socket.destroy()
    })
  }
  // Where nobody has read the body the socket is paused, and its handle with it, which the HTTP
  // server alone wakes up, as long as it listens.
  if (socket.isPaused()) socket.once('resume', discard).resume()
  else discard()
  socket.end()
}
