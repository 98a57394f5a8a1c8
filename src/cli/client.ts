import { request } from 'node:http'

/** What came back from a control socket. */
export interface Answer { status: number, body: unknown }

/**
 * One request with a JSON body and answer over a unix socket.
 *
 * @param timeout milliseconds until the whole answer, default 20 s
 * @throws the system's error when the socket cannot be reached, Error when there is no answer in time or it is no JSON
 */
export async function call (socketPath: string, method: string, path: string, body?: unknown, timeout = 20_000): Promise<Answer> {
  return await new Promise((resolve, reject) => {
    const outgoing = request({ socketPath, method, path, agent: false, signal: AbortSignal.timeout(timeout), headers: { host: 'gatehouse', 'content-type': 'application/json' } }, (response) => {
      let text = ''
      response.setEncoding('utf8').on('data', (piece: string) => { text += piece }).on('error', reject).on('end', () => {
        try {
          resolve({ status: response.statusCode ?? 0, body: text === '' ? undefined : JSON.parse(text) })
        } catch (err) {
          reject(new Error(`${socketPath} answers no JSON`, { cause: err }))
        }
      })
    })
    outgoing.on('error', (err: Error) => {
      reject(err.name === 'AbortError' || err.name === 'TimeoutError' ? new Error(`${socketPath} does not answer within ${timeout / 1000} s`, { cause: err }) : err)
    })
    outgoing.end(body === undefined ? undefined : JSON.stringify(body))
  })
}
