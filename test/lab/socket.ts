/** HTTP over unix sockets: how the lab's programs are driven. */
import http from 'node:http'

/** One request. */
export interface RequestOptions {
  method?: string
  headers?: Record<string, string>
  body?: string | Uint8Array
  /** Milliseconds until it fails. Default 30 000. */
  timeout?: number
}

/** Asks the program behind a socket. */
export async function request(
  socketPath: string,
  method: string,
  url: string,
  options: RequestOptions = {},
): Promise<{ status: number; body: Buffer }> {
  return await new Promise((resolve, reject) => {
    const timeout = options.timeout ?? 30_000
    const req = http.request({
      socketPath,
      method,
      path: url,
      headers: options.headers ?? {},
      agent: false,
    })
    const timer = setTimeout(
      () => req.destroy(new Error(`${method} ${url.split('?')[0]}: no answer in ${timeout} ms`)),
      timeout,
    )
    req.on('close', () => clearTimeout(timer))
    req.on('response', (res) =>
      read(res).then((body) => resolve({ status: res.statusCode ?? 0, body }), reject),
    )
    req.on('error', reject)
    req.end(options.body)
  })
}

/** All of an answer. */
export async function read(res: http.IncomingMessage): Promise<Buffer> {
  const parts: Buffer[] = []
  for await (const part of res) parts.push(part as Buffer)
  return Buffer.concat(parts)
}

/** The words of an error answer. */
export function message(body: Buffer): string {
  const text = body.toString().trim()
  try {
    return (JSON.parse(text) as { error: string }).error
  } catch {
    return text
  }
}
