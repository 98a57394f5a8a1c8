import type { ServerResponse } from 'node:http'

/** Calls back when an answer is complete or broken off: at once when it is so already, since the event comes only once. */
export function whenClosed (response: ServerResponse, call: () => void): void {
  if (response.destroyed) call()
  else response.once('close', call)
}
