import type { ServerResponse } from 'node:http'

const waiting: unique symbol = Symbol('waiting')

/**
 * Told once, when an answer is complete or broken off; or with true when its connection becomes a
 * tunnel. A tunnel may be open for days, in which nothing of request and answer should be held: what
 * is returned then is called at its end.
 */
export type Closed = (tunnel: boolean) => (() => void) | undefined

interface Waiting {
  [waiting]?: Closed[]
}

/**
 * Calls back when an answer is complete or broken off: at once when it is so already, since the
 * event comes only once. See {@link Closed} for answers that become tunnels.
 */
export function whenClosed(response: ServerResponse & Waiting, call: Closed): void {
  if (response.destroyed) {
    call(false)
    return
  }
  // One listener for all who wait: every request has some.
  if (response[waiting] === undefined) {
    response[waiting] = []
    response.on('close', closed)
  }
  response[waiting].push(call)
}

/**
 * To be called when the connection of an answer becomes a tunnel, of whose end the answer does not
 * know.
 *
 * @returns to be called at the tunnel's end, in the place of those who wait
 */
export function becomeTunnel(response: ServerResponse & Waiting): Array<() => void> {
  response.off('close', closed)
  return (response[waiting]?.splice(0) ?? []).flatMap((call) => call(true) ?? [])
}

function closed(this: Waiting): void {
  for (const call of this[waiting]?.splice(0) ?? []) call(false)
}
