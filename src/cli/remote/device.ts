import { request as httpsRequest } from 'node:https'
import type { ClientRequest, IncomingMessage } from 'node:http'
import { createInterface } from 'node:readline'
import { text as readText } from 'node:stream/consumers'
import { rootCertificates } from 'node:tls'
import { GatehouseError, oneLine, reason } from '../../base/errors.ts'
import { ports } from '../../config/ports.ts'

/** Where a device is. */
export interface Reach {
  /** Full name in the tailnet: the one that its certificate is for. */
  host: string
  /** Default: 10000, that of the gateway's own pages. */
  port: number
  /** PEM text of an authority to trust beside the public ones; undefined: those alone. */
  authority: string | undefined
}

/** A call that came to nothing. */
export class RemoteError extends GatehouseError {
  /** HTTP status; 0: there was no answer at all. */
  readonly status: number

  constructor(status: number, code: string, message: string, cure: string, options?: ErrorOptions) {
    super(code, message, cure, options)
    this.status = status
  }
}

/** What to ask, for {@link Device.ask}. */
export interface Asked {
  /** Sent as JSON. */
  json?: object
  headers?: Record<string, string>
  /** Writes the body; instead of `json`. */
  send?: (outgoing: ClientRequest) => void
  /** Milliseconds without a byte from the device until it counts as gone. Default: 30 s. */
  patience?: number
}

/**
 * The device's API (/api/v1, src/gateway/console/api.ts) from a computer on the tailnet. Each call
 * is a connection of its own: an answer to it says that the device answers now.
 */
export class Device {
  readonly reach: Reach

  constructor(reach: Reach) {
    this.reach = reach
  }

  /**
   * Asks, and gives the answer as it comes.
   *
   * @param path below /api/v1/
   * @throws RemoteError
   */
  async ask(
    method: 'GET' | 'POST',
    path: string,
    { json, headers = {}, send, patience = 30_000 }: Asked = {},
  ): Promise<IncomingMessage> {
    const { host, port, authority } = this.reach
    const outgoing = httpsRequest({
      ...{ host, port, method, path: `/api/v1/${path}`, agent: false, timeout: patience },
      ...(authority === undefined ? {} : { ca: [...rootCertificates, authority] }),
      headers: {
        accept: 'application/json',
        ...(json === undefined ? {} : { 'content-type': 'application/json' }),
        ...headers,
      },
    })
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      outgoing.on('response', resolve)
      outgoing.on('error', (err) => {
        reject(this.#silence(err))
      })
      outgoing.on('timeout', () => {
        outgoing.destroy(new Error(`no answer within ${patience / 1000} s`))
      })
      if (send !== undefined) send(outgoing)
      else outgoing.end(json === undefined ? undefined : JSON.stringify(json))
    })
    const status = response.statusCode ?? 0
    if (status < 400) return response
    const text = await readText(response).catch(() => '')
    const error = errorIn(text)
    const lines = error?.lines === undefined ? '' : `\n${error.lines}`
    throw new RemoteError(
      status,
      error?.code ?? `HTTP ${status}`,
      error?.message ?? `the device answers with status ${status}`,
      `${error?.cure ?? 'Check that it is a Gatehouse, of this version or a newer one'}${lines}`,
    )
  }

  /** GET, JSON. */
  async get<T>(path: string, asked?: Asked): Promise<T> {
    return this.#json<T>(await this.ask('GET', path, asked))
  }

  /** POST, JSON both ways. Starting services anew takes a board minutes. */
  async post<T>(path: string, json: object = {}, asked: Asked = {}): Promise<T> {
    return this.#json<T>(await this.ask('POST', path, { json, patience: 300_000, ...asked }))
  }

  /** Lines of NDJSON as they come, until the device ends them or the caller stops. */
  async *lines<T>(path: string): AsyncGenerator<T> {
    const answer = await this.ask('GET', path)
    answer.socket.setTimeout(0)
    try {
      for await (const line of createInterface({ input: answer, crlfDelay: Infinity }))
        if (line !== '') yield JSON.parse(line) as T
    } finally {
      answer.destroy()
    }
  }

  async #json<T>(answer: IncomingMessage): Promise<T> {
    const text = await readText(answer).catch((err: Error) => {
      throw this.#silence(err)
    })
    try {
      return JSON.parse(text) as T
    } catch (err) {
      throw new RemoteError(
        0,
        'GH_REMOTE_ANSWER',
        `${this.reach.host} answers with something else than JSON`,
        'Check that it is a Gatehouse, and that no proxy is in between',
        { cause: err },
      )
    }
  }

  /** What it means that there is no answer. */
  #silence(err: Error): RemoteError {
    const { host, port } = this.reach
    const code = String((err as NodeJS.ErrnoException).code)
    const say = (id: string, message: string, cure: string): RemoteError =>
      new RemoteError(0, id, message, cure, { cause: err })
    if (code === 'ENOTFOUND' || code === 'EAI_AGAIN')
      return say(
        'GH_REMOTE_NAME',
        `${host} is not known to this computer`,
        `Check that it is on the tailnet (tailscale status), and write the device's full ` +
          `name, as in its web console's address`,
      )
    if (code === 'ERR_TLS_CERT_ALTNAME_INVALID') {
      const { cert } = err as { cert?: { subjectaltname?: string } }
      const names = (cert?.subjectaltname ?? '').replaceAll('DNS:', '')
      return say(
        'GH_REMOTE_CERTIFICATE',
        `the certificate there is not for ${host}${names === '' ? '' : ` but for ${oneLine(names)}`}`,
        "Write the device's full name, as in its web console's address",
      )
    }
    if (/CERT|SIGNED|ISSUER|SIGNATURE/.test(code))
      return say(
        'GH_REMOTE_CERTIFICATE',
        `the certificate of ${host} is not trusted here: ${reason(err)}`,
        `A device with an authority of its own: get http://${host}/ca.crt, compare its ` +
          `fingerprint with the device's screen, and give the file with --ca`,
      )
    return say(
      'GH_REMOTE_SILENT',
      `${host} does not answer at port ${port}: ${reason(err)}`,
      'Check that the device is on and this computer on the tailnet (tailscale ping), and ' +
        'that the policy lets it to that port',
    )
  }
}

/** Reads `--host`: a name, with a port where it is another one. @throws GatehouseError */
export function readHost(text: string): { host: string; port: number } {
  const bare = text.replace(/^https:\/\//, '').replace(/\/.*$/, '')
  const match = /^([A-Za-z0-9][A-Za-z0-9.-]{0,252})(?::(\d{1,5}))?$/.exec(bare)
  const port = match?.[2] === undefined ? ports.own : Number(match[2])
  if (match === null || port < 1 || port > 65_535)
    throw new GatehouseError(
      'GH_REMOTE_HOST',
      `--host ${JSON.stringify(text)} is not the name of a device`,
      'Write its full name, such as gatehouse.tail1234.ts.net',
    )
  return { host: match[1]!.replace(/\.$/, '').toLowerCase(), port }
}

interface Told {
  code: string
  message: string
  cure: string
  lines?: string
}

function errorIn(text: string): Told | undefined {
  try {
    return (JSON.parse(text) as { error?: Told }).error
  } catch {
    return undefined
  }
}
