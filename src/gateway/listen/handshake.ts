import type { TLSSocket } from 'node:tls'

/**
 * Calls `secure` once the handshake of a server's TLSSocket is over, at most once; the socket is
 * destroyed where it fails, takes longer than `within` milliseconds, or the client goes away in the
 * middle of it. That last is the end of a stream which nobody reads yet: without an eye on it the
 * connection would count until the time for a handshake is over. A client that sends its end with
 * the last bytes of the handshake is seen so, too: `secure` is then never emitted.
 */
export function whenSecure(socket: TLSSocket, within: number, secure: () => void): void {
  const gone = (): void => {
    socket.destroy()
  }
  const late = setTimeout(gone, within)
  socket.once('end', gone)
  socket.once('close', () => clearTimeout(late))
  socket.once('secure', () => {
    clearTimeout(late)
    socket.off('end', gone)
    secure()
  })
}
