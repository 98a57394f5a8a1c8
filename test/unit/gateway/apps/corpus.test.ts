import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer as createHTTPServer } from 'node:http'
import type { IncomingHttpHeaders } from 'node:http'
import { createServer } from 'node:net'
import type { Server, Socket } from 'node:net'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { Bench, name } from '../../support/bench.ts'
import { ask } from '../../support/h2.ts'

const corpus = join(import.meta.dirname, '../../../corpus')

/** Lines of a corpus in their parts. */
function lines(file: string): string[][] {
  return readFileSync(join(corpus, file), 'utf8')
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'))
    .map((line) => line.split(' | '))
}

/** Bytes as the corpus writes them. */
function bytes(written: string): Buffer {
  const escapes: Record<string, string> = { r: '\r', n: '\n', t: '\t', '\\': '\\' }
  const unescaped = written
    .replaceAll('HOST', name)
    .replace(/\\(?:x([0-9a-f]{2})|(.))/g, (_, hex: string | undefined, character: string) =>
      hex === undefined ? escapes[character]! : String.fromCharCode(Number.parseInt(hex, 16)),
    )
    .replace(/\{([^{}]*)\*(\d+)\}/gs, (_, part: string, times: string) =>
      part.repeat(Number(times)),
    )
  return Buffer.from(unescaped, 'latin1')
}

interface Got {
  status: number
  headers: IncomingHttpHeaders
  text: string
}

/** Says what an answer lacks of what the corpus asks for; undefined when it lacks nothing. */
function lacks(got: Got | 'broken', wanted: string, kept: boolean): string | undefined {
  const [first, ...more] = wanted.split('; ')
  if (got === 'broken') return first === 'broken' ? undefined : 'it is broken off'
  if (first === 'broken' && got.status === 502) return undefined
  if (first === 'broken') return `it is whole: ${got.status} ${got.text}`
  const [status, rest] = [first!.slice(0, 3), bytes(first!.slice(4)).toString('latin1')]
  if (String(got.status) !== status) return `the status is ${got.status}: ${got.text}`
  if (status === '502' ? !got.text.includes(rest) : got.text !== rest)
    return `the body is ${got.text}`
  for (const part of more) {
    const [, no, header, value] = /^(no )?([^:]+)(?:: ?(.*))?$/s.exec(part)!
    if (part === 'kept' || part === 'closed') {
      if (kept !== (part === 'kept')) return `the connection is ${kept ? 'kept' : 'closed'}`
    } else {
      const there = got.headers[header!]
      const said = there === undefined ? undefined : [there].flat().join(', ')
      if (no === undefined ? said !== value : said !== undefined) return `${header} is ${said}`
    }
  }
  return undefined
}

/** A quick machine opens more connections a second than one peer may. */
const unhurried = { newConnections: 0, newConnectionsPerPeer: 0 }

/** Whether the gateway has closed a connection. */
function over(socket: Socket): boolean {
  return socket.readableEnded || socket.destroyed
}

/** The answer to bytes over a connection of their own, as soon as it is there. */
async function answerTo(bench: Bench, request: string): Promise<string> {
  const socket = await bench.connect()
  let answer = ''
  const { promise, resolve } = Promise.withResolvers<void>()
  socket.setEncoding('latin1').on('data', (piece: string) => {
    answer = (answer + piece).replace(/^HTTP\/1\.1 1\d\d [^]*?\r\n\r\n/, '')
    const head = /^[^]*?\r\n\r\n/.exec(answer)?.[0]
    const length = Number(/\r\ncontent-length: (\d+)/i.exec(head ?? '')?.[1] ?? 0)
    if (head !== undefined && (request.startsWith('HEAD') || answer.length >= head.length + length))
      resolve()
  })
  socket.on('error', () => {})
  socket.once('close', resolve)
  socket.write(Buffer.from(request, 'latin1'))
  await promise
  socket.destroy()
  return answer
}

/** An app that answers with bytes. */
class RawOrigin {
  readonly server: Server
  answer: { pieces: Buffer[]; end: 'close' | 'reset' | undefined } = { pieces: [], end: undefined }
  readonly sockets: Socket[] = []
  /** That brought the last request that was answered with `answer`. */
  last: Socket | undefined

  constructor() {
    this.server = createServer({ allowHalfOpen: true }, (socket) => {
      this.sockets.push(socket)
      let seen = ''
      socket.on('error', () => {})
      socket.on('end', () => socket.end())
      socket.setEncoding('latin1').on('data', (piece: string) => {
        seen += piece
        const request = /^\S+ (\S+)[^]*?\r\n\r\n/.exec(seen)
        if (request === null) return
        const length = Number(/\r\ncontent-length: (\d+)/i.exec(request[0])?.[1] ?? 0)
        if (seen.length < request[0].length + length) return
        seen = seen.slice(request[0].length + length)
        if (request[1] === '/again')
          socket.write('HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nagain')
        else void this.#say((this.last = socket))
      })
    })
  }

  async #say(socket: Socket): Promise<void> {
    const { pieces, end } = this.answer
    for (const [i, piece] of pieces.entries()) {
      if (i > 0) await new Promise((resolve) => setTimeout(resolve, 2))
      socket.write(piece)
    }
    if (end === 'close') socket.end()
    else if (end === 'reset') setTimeout(() => socket.destroy(), 20)
  }
}

test('what apps send, however badly, peers get as a message in good order', async (t) => {
  await using bench = await Bench.limited(unhurried, { origin: false })
  const origin = new RawOrigin()
  origin.server.listen(bench.origin.socket)
  await once(origin.server, 'listening')
  const session = await bench.session({
    maxHeaderListPairs: 10_000,
    settings: { maxHeaderListSize: 2 ** 20 },
  })
  const wrong: string[] = []
  const all = lines('origin-answers.txt')
  for (const [what, request, sent, wanted] of all) {
    const [method, body] = request!.split(' ')
    const end = /<(close|reset)>$/.exec(sent!)?.[1] as 'close' | 'reset' | undefined
    const whole = bytes(sent!.replace(/<(?:close|reset)>$/, ''))
    for (const protocol of ['HTTP/1.1', 'HTTP/2'] as const) {
      const half = Math.floor(whole.length / 2)
      origin.answer = {
        end,
        pieces: protocol === 'HTTP/1.1' ? [whole] : [whole.subarray(0, half), whole.subarray(half)],
      }
      const get = async (method: string, path: string, body?: string): Promise<Got | 'broken'> => {
        if (protocol === 'HTTP/1.1') {
          try {
            const response = await bench.send({
              method,
              path,
              maxHeaderSize: 2 ** 20,
              ...(body !== undefined && { body }),
            })
            return {
              status: response.statusCode!,
              headers: response.headers,
              text: await text(response.setEncoding('latin1')),
            }
          } catch {
            return 'broken'
          }
        }
        const got = await ask(session, { ':method': method, ':path': path }, body)
        return got.error === undefined && got.status !== undefined
          ? { status: got.status, headers: got.headers, text: got.text }
          : 'broken'
      }
      const got = await get(method!, '/app/x', body)
      // The reset comes a little after the answer: it must not meet the next one on its way.
      for (let i = 0; i < 100 && end === 'reset' && !over(origin.last!); i++)
        await new Promise((resolve) => setTimeout(resolve, 10))
      const again = await get('GET', '/again')
      if (again === 'broken' || again.text !== 'again')
        wrong.push(`${what}, ${protocol}: the next request is answered ${JSON.stringify(again)}`)
      // A connection that is closed is so at once; but this is one process of several.
      const used = origin.last!
      for (let i = 0; i < 100 && wanted!.includes('; closed') && !over(used); i++)
        await new Promise((resolve) => setTimeout(resolve, 10))
      const lack = lacks(got, wanted!, !over(used))
      if (lack !== undefined) wrong.push(`${what}, ${protocol}: ${lack.slice(0, 300)}`)
    }
  }
  session.destroy()
  for (const socket of origin.sockets) socket.destroy()
  origin.server.close()
  assert.deepEqual(wrong, [])
  t.diagnostic(`${all.length} answers`)
})

test('what clients send is passed on, or refused in words', async (t) => {
  await using bench = await Bench.limited(unhurried, { origin: false })
  // As the appliance starts Node-RED: the gateway's limit is the one that counts.
  const unit = readFileSync(
    join(import.meta.dirname, '../../../../overlays/usr/lib/systemd/system/node-red.service'),
    'utf8',
  )
  const maxHeaderSize = Number(/^ExecStart=.* --max-http-header-size=(\d+) /m.exec(unit)![1])
  let asked: { first: string; headers: IncomingHttpHeaders; body: string } | undefined
  const origin = createHTTPServer({ maxHeaderSize }, (request, response) => {
    void text(request.setEncoding('latin1')).then((body) => {
      asked = { first: `${request.method} ${request.url}`, headers: request.headers, body }
      response.end()
    })
  })
  origin.listen(bench.origin.socket)
  await once(origin, 'listening')
  const session = await bench.session()
  const wrong: string[] = []
  const all = lines('client-requests.txt')
  for (const [what, protocols, sent, wanted] of all) {
    for (const protocol of ['h1', 'h2']) {
      if (protocols !== 'both' && protocols !== protocol) continue
      asked = undefined
      let got: Got
      const request = bytes(sent!.replace(/^raw: /, '')).toString('latin1')
      const [head, body] = [
        request.slice(0, request.indexOf('\r\n\r\n')),
        request.slice(request.indexOf('\r\n\r\n') + 4),
      ]
      if (protocol === 'h1') {
        const final = await answerTo(
          bench,
          sent!.startsWith('raw: ') ? request : request.replace('\r\n', `\r\nHost: ${name}\r\n`),
        )
        got = {
          status: Number(final.slice(9, 12)),
          headers: Object.fromEntries(
            final
              .slice(0, final.indexOf('\r\n\r\n'))
              .split('\r\n')
              .slice(1)
              .map((line) => [
                line.slice(0, line.indexOf(':')).toLowerCase(),
                line.slice(line.indexOf(':') + 1).trim(),
              ]),
          ),
          text: final,
        }
      } else {
        const [first, ...fields] = head.split('\r\n')
        const [method, target] = first!.split(' ')
        const answer = await ask(
          session,
          Object.fromEntries([
            [':method', method!],
            [':path', target!],
            ...fields.map((field) => [
              field.slice(0, field.indexOf(':')).toLowerCase(),
              field.slice(field.indexOf(':') + 1).trim(),
            ]),
          ]) as Record<string, string>,
          body === '' ? undefined : body,
        )
        got = { status: answer.status ?? 0, headers: answer.headers, text: answer.text }
      }
      const problem = (): string | undefined => {
        const [status, ...more] = wanted!.split('; ')
        if (String(got.status) !== status) return `the status is ${got.status}: ${got.text}`
        for (const part of more) {
          const [, no, header, value] = /^(no )?([^:]+)(?:: ?(.*))?$/s.exec(part)!
          const seen = status!.startsWith('3') ? got.headers : asked?.headers
          if (part === 'not asked') {
            if (asked !== undefined) return `the app was asked ${asked.first}`
          } else if (part.startsWith('body: ')) {
            if (asked?.body !== bytes(part.slice(6)).toString('latin1'))
              return `the body is ${asked?.body}`
          } else if (/^[A-Z]+ \//.test(part)) {
            if (asked?.first !== part) return `the app was asked ${asked?.first}`
          } else if (
            no === undefined
              ? seen?.[header!] !== bytes(value!).toString('latin1')
              : seen?.[header!] !== undefined
          ) {
            return `${header} is ${seen?.[header!]}`
          }
        }
        return undefined
      }
      const found = problem()
      if (found !== undefined) wrong.push(`${what}, ${protocol}: ${found.slice(0, 300)}`)
    }
  }
  session.destroy()
  origin.closeAllConnections()
  origin.close()
  assert.deepEqual(wrong, [])
  t.diagnostic(`${all.length} requests`)
})
