import type { ServerResponse } from 'node:http'

const waiting: unique symbol = Symbol('waiting')

/**
 * Calls back when an answer is complete or broken off: at once when it is so already, since the
 * event comes only once.
 */
export function whenClosed(
  response: ServerResponse & { [waiting]?: Array<() => void> },
  call: () => void,
): void {
  if (response.destroyed) {
    call()
    return
  }
  // One listener for all who wait: every request has some.
  if (response[waiting] === undefined) {
    response[waiting] = []
    response.on('close', closed)
  }
  response[waiting].push(call)
}

function closed(this: { [waiting]?: Array<() => void> }): void {
  for (const call of this[waiting]?.splice(0) ?? []) call()
}
