import { request as httpRequest } from 'node:http'
import { request as httpsRequest } from 'node:https'

/** What to ask for, for {@link requestText}. */
export interface TextRequest {
  /** Default: GET. */
  method?: string
  /** Default: none of its own. */
  headers?: Record<string, string>
  /** Default: none. */
  body?: string
  /** Authorities, PEM, in place of the system's. */
  ca?: string[] | undefined
  /** Milliseconds until the whole answer. */
  timeout: number
  /** The most characters an answer may have. */
  most: number
}

/**
 * One HTTP or HTTPS request over a connection of its own, with the whole answer as text. Unlike
 * fetch it follows no redirect, unpacks nothing, and reads no more than it was told to: who answers
 * is not trusted.
 *
 * @throws the system's error; ETIMEDOUT when there is no whole answer in time; Error when it is
 *   longer than `most`
 */
export async function requestText(
  url: URL,
  { method = 'GET', headers = {}, body, ca, timeout, most }: TextRequest,
): Promise<{ status: number; text: string }> {
  const { promise, resolve, reject } = Promise.withResolvers<{ status: number; text: string }>()
  const request = (url.protocol === 'http:' ? httpRequest : httpsRequest)(
    url,
    { method, agent: false, headers, ...(ca === undefined ? {} : { ca }) },
    (response) => {
      let text = ''
      response
        .setEncoding('utf8')
        .on('data', (piece: string) => {
          text += piece
          if (text.length > most) response.destroy(new Error('its answer is far too long'))
        })
        .on('error', reject)
        .on('end', () => {
          resolve({ status: response.statusCode ?? 0, text })
        })
    },
  )
  const timer = setTimeout(
    () => request.destroy(Object.assign(new Error('no answer'), { code: 'ETIMEDOUT' })),
    timeout,
  )
  request.once('close', () => {
    clearTimeout(timer)
  })
  request.on('error', reject)
  request.end(body)
  return await promise
}
