/** Downloads that take the gateway's memory: test/lab/memory.test.ts, and the same on the image. */
import { once } from 'node:events'
import tls from 'node:tls'
import type { LabClient } from './lab.ts'

/** The largest file that the editor loads. */
export const large = '/vendor/monaco/dist/ts.worker.js'

/** Connections to one device of the tailnet that a client makes. */
export class Downloads {
  readonly #client: LabClient
  readonly #name: string
  readonly #ca: Buffer

  /** `ca`: PEM of the authorities that the device's certificate is verified by. */
  constructor(client: LabClient, name: string, ca: Buffer) {
    this.#client = client
    this.#name = name
    this.#ca = ca
  }

  /** A TLS connection through the tailnet. */
  async connect(): Promise<tls.TLSSocket> {
    const socket = await this.#client.dial(this.#name, 443)
    socket.on('error', () => {})
    const [servername, ca] = [this.#name, this.#ca]
    const secure = tls.connect({ socket, servername, ca, ALPNProtocols: ['http/1.1'] })
    await new Promise<void>((done, fail) => {
      secure.once('secureConnect', done)
      secure.on('error', fail)
      // One that the device has ended before TLS began has no error to tell, and its socket no end.
      for (const one of [secure, socket])
        one.once('close', () => fail(new Error('it was closed in the handshake')))
      if (socket.destroyed) fail(new Error('it was closed at once'))
    })
    return secure
  }

  /** Bytes of the large file that came, `times` times on one connection. */
  async download(times: number): Promise<number> {
    const secure = await this.connect()
    let bytes = 0
    secure.on('data', (piece: Buffer) => {
      bytes += piece.length
    })
    for (let i = times; i > 0; i--) secure.write(this.#request(i === 1))
    if (!secure.closed) await once(secure, 'close')
    return bytes
  }

  /** Connections that ask for the large file and read nothing of it. */
  async stall(connections: number): Promise<tls.TLSSocket[]> {
    return await Promise.all(
      Array.from({ length: connections }, async () => {
        const secure = await this.connect()
        secure.pause()
        secure.write(this.#request(false))
        return secure
      }),
    )
  }

  /** Opens and closes 1,000 connections, ten at a time. How many were let in. */
  async openThousand(): Promise<number> {
    let opened = 0
    await Promise.all(
      Array.from({ length: 10 }, async () => {
        for (let i = 0; i < 100; i++) {
          const secure = await this.connect().catch(() => undefined)
          if (secure !== undefined) opened++
          secure?.destroy()
          // 25 a second of one peer, as by default.
          await new Promise((resolve) => setTimeout(resolve, 350))
        }
      }),
    )
    return opened
  }

  #request(last: boolean): string {
    return `GET ${large} HTTP/1.1\r\nHost: ${this.#name}\r\n${last ? 'Connection: close\r\n' : ''}\r\n`
  }
}
