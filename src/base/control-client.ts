import { request } from 'node:http'
import { reason } from './errors.ts'

/** What came back from a control socket. */
export interface Answer {
  status: number
  body: unknown
}

/** What a control socket that cannot be used means, and what to do. */
export function unreachable(err: unknown, socket: string): { message: string; cure: string } {
  const code = (err as NodeJS.ErrnoException).code
  if (code === 'EACCES' || code === 'EPERM')
    return { message: `only root may open ${socket}`, cure: 'Run it with sudo' }
  if (code === 'ENOENT' || code === 'ECONNREFUSED')
    return {
      message: `nothing listens on ${socket}`,
      cure: 'Run systemctl start gatehouse, and look at journalctl -u gatehouse',
    }
  return { message: reason(err), cure: 'Look at journalctl -u gatehouse' }
}

/**
 * One request with a JSON body over a unix socket. The answer's body is what its JSON says, or its
 * text where it is none.
 *
 * @param timeout milliseconds until the whole answer, default 20 s
 * @throws the system's error when the socket cannot be reached, Error when there is no answer in
 *   time or it is no JSON
 */
export async function call(
  socketPath: string,
  method: string,
  path: string,
  body?: unknown,
  timeout = 20_000,
): Promise<Answer> {
  return await new Promise((resolve, reject) => {
    const outgoing = request(
      {
        socketPath,
        method,
        path,
        agent: false,
        signal: AbortSignal.timeout(timeout),
        headers: { host: 'gatehouse', 'content-type': 'application/json' },
      },
      (response) => {
        let text = ''
        response
          .setEncoding('utf8')
          .on('data', (piece: string) => {
            text += piece
          })
          .on('error', reject)
          .on('end', () => {
            try {
              const json = text !== '' && response.headers['content-type'] === 'application/json'
              const body: unknown = json ? JSON.parse(text) : text
              resolve({
                status: response.statusCode ?? 0,
                body: text === '' ? undefined : body,
              })
            } catch (err) {
              reject(new Error(`${socketPath} answers no JSON`, { cause: err }))
            }
          })
      },
    )
    outgoing.on('error', (err: Error) => {
      reject(
        err.name === 'AbortError' || err.name === 'TimeoutError'
          ? new Error(`${socketPath} does not answer within ${timeout / 1000} s`, { cause: err })
          : err,
      )
    })
    outgoing.end(body === undefined ? undefined : JSON.stringify(body))
  })
}
