import { request } from 'node:http'
import type { IncomingMessage } from 'node:http'
import { text as readText } from 'node:stream/consumers'
import { asRoot } from './cures.ts'
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
    return { message: `only root may open ${socket}`, cure: asRoot }
  if (code === 'ENOENT' || code === 'ECONNREFUSED')
    return {
      message: `nothing listens on ${socket}`,
      cure: 'The gateway starts again by itself within a minute; if it does not, restart the device',
    }
  return { message: reason(err), cure: 'Try again; if it goes on, restart the device' }
}

/** What to ask for, for {@link exchange}. */
export interface Ask {
  /** Default: GET. */
  method?: string
  path: string
  headers?: Record<string, string>
  /** Default: none. */
  body?: string
  /** Milliseconds until the whole answer, default 20 s. */
  timeout?: number
}

/**
 * One HTTP request over a unix socket, with the whole answer as text.
 *
 * @throws the system's error when the socket cannot be reached, Error when there is no answer in
 *   time
 */
export async function exchange(
  socketPath: string,
  { method = 'GET', path, headers = {}, body, timeout = 20_000 }: Ask,
): Promise<{ status: number; type: string | undefined; text: string }> {
  const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>()
  const signal = AbortSignal.timeout(timeout)
  const host = { host: 'gatehouse' }
  request({ socketPath, method, path, agent: false, signal, headers: { ...host, ...headers } })
    .on('response', resolve)
    .on('error', reject)
    .end(body)
  try {
    const response = await promise
    return {
      status: response.statusCode ?? 0,
      type: response.headers['content-type'],
      text: await readText(response),
    }
  } catch (err) {
    if (!signal.aborted) throw err
    throw new Error(`${socketPath} does not answer within ${timeout / 1000} s`, { cause: err })
  }
}

/**
 * One request with a JSON body over a control socket. The answer's body is what its JSON says, or
 * its text when it is not JSON.
 *
 * @param timeout milliseconds until the whole answer, default 20 s
 * @throws as {@link exchange} does, and Error when what says that it is JSON is not
 */
export async function call(
  socketPath: string,
  method: string,
  path: string,
  body?: unknown,
  timeout = 20_000,
): Promise<Answer> {
  const { status, type, text } = await exchange(socketPath, {
    method,
    path,
    headers: { 'content-type': 'application/json' },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    timeout,
  })
  if (text === '') return { status, body: undefined }
  if (type?.startsWith('application/json') !== true) return { status, body: text }
  try {
    return { status, body: JSON.parse(text) as unknown }
  } catch (err) {
    throw new Error(`${socketPath} answers with JSON that is not valid`, { cause: err })
  }
}
