import assert from 'node:assert/strict'
import { Duplex } from 'node:stream'
import { request } from 'node:http'
import { test } from 'node:test'
import { AnswerReader, excerpt } from '../../../../src/gateway/apps/answer-reader.ts'
import { generator } from '../../support/random.ts'

/** Numbers from the first to the last given, and one of several. */
function numbers(seed: number): {
  integer: (first: number, last: number) => number
  pick: <T>(list: readonly T[]) => T
} {
  const next = generator(seed)
  return {
    integer: (first, last) => first + next(last - first + 1),
    pick: (list) => list[next(list.length)]!,
  }
}

/** All that comes of an answer given in pieces; with its fault, and what is left over. */
function read(
  answer: string,
  method: string,
  sizes: () => number,
): { text: string; fault: string | undefined; surplus: boolean } {
  const reader = new AnswerReader()
  reader.expect(method, false)
  const bytes = Buffer.from(answer, 'latin1')
  let text = ''
  for (let at = 0; at < bytes.length && reader.fault === undefined;) {
    const size = Math.max(1, sizes())
    text += reader.push(Buffer.from(bytes.subarray(at, at + size))).toString('latin1')
    at += size
  }
  text += reader.end().toString('latin1')
  return { text, fault: reader.fault?.message, surplus: reader.surplus }
}

/** What Node.js's strict parser makes of bytes: undefined when it takes them. */
async function refused(bytes: string, method: string): Promise<string | undefined> {
  const socket = new Duplex({
    read() {},
    write(_piece, _encoding, done) {
      done()
    },
  })
  return await new Promise((resolve) => {
    const asked = request({ method, createConnection: () => socket as never })
    asked.on('response', (response) => {
      response.on('error', () => {})
      response.resume()
      response.on('close', () => {
        resolve(undefined)
      })
    })
    asked.on('error', (err: NodeJS.ErrnoException) => {
      resolve((err.code ?? '').startsWith('HPE_') ? `${err.code}: ${err.message}` : undefined)
    })
    asked.end()
    socket.push(Buffer.from(bytes, 'latin1'))
    socket.push(null)
  })
}

const starts = [
  'HTTP/1.1 200 OK',
  'HTTP/1.0 200 OK',
  'HTTP/1.1 204 No Content',
  'HTTP/1.1 304 Not Modified',
  'HTTP/1.1 100 Continue',
  'HTTP/1.1 103 Early Hints',
  'HTTP/1.1 500',
  'http/1.1  200 ok',
  'ICY 200 OK',
  'HTTP/1.1 20',
]
const fields = [
  'Content-Length: 2',
  'Content-Length: 2, 2',
  'Content-Length: 3 ',
  'Content-Length: -1',
  'Transfer-Encoding: chunked',
  'Transfer-Encoding : chunked',
  'transfer-encoding: gzip, chunked',
  'Transfer-Encoding: identity',
  'Connection: keep-alive',
  'Connection: close, X-A',
  'X-A: 1',
  'X-A: \x00\x01\xff',
  ' folded',
  'nonsense',
  'X A: 1',
  'Upgrade: websocket',
]
const bodies = [
  '',
  'ok',
  '2\r\nok\r\n0\r\n\r\n',
  '2\nok\n0\n\n',
  '2;x\r\nok\r\n00\r\nX-T: 1\r\n\r\n',
  'zz\r\n',
  '2\r\nok\r\n0\r\n',
  'okHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil',
]
const breaks = ['\r\n', '\r\n', '\r\n', '\n', '\r\r\n']

test('an answer in good order passes byte for byte, whatever it is cut into', () => {
  const { integer } = numbers(1)
  const long = 'x'.repeat(5_000)
  for (const answer of [
    'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok',
    `HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: ${long.length}\r\nConnection: keep-alive\r\n\r\n${long}`,
    'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n',
    `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${long.length.toString(16)}\r\n` +
      `${long}\r\n0\r\nX-T: 1\r\n\r\n`,
    'HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok',
    `HTTP/1.1 200 OK\r\n\r\n${long}`,
  ])
    for (let round = 0; round < 50; round++) {
      const most = [1, 3, 20, 10_000][round % 4]!
      const { text, fault } = read(answer, 'GET', () => integer(1, most))
      assert.equal(fault, undefined)
      assert.equal(text, answer)
    }
})

test('whatever comes, and however it is cut: one message that a strict parser takes, or a fault', async () => {
  const { integer, pick } = numbers(2)
  assert.match((await refused('HTTP/1.1 200 OK\nA: 1\n\n', 'GET'))!, /^HPE_/)
  let faults = 0
  let taken = 0
  for (let round = 0; round < 3_000; round++) {
    const line = (): string => pick(breaks)
    let answer = ''
    for (let interim = integer(0, 6) === 0 ? 1 : 0; interim >= 0; interim--) {
      answer += pick(starts) + line()
      for (let n = integer(0, 4); n > 0; n--) answer += pick(fields) + line()
      answer += line()
    }
    answer += pick(bodies)
    // Some bytes are put in the place of others.
    for (let n = integer(0, 3) === 0 ? integer(1, 4) : 0; n > 0; n--) {
      const at = integer(0, answer.length - 1)
      answer =
        answer.slice(0, at) +
        String.fromCharCode(integer(0, 255)) +
        answer.slice(at + integer(0, 2))
    }
    const method = pick(['GET', 'GET', 'HEAD', 'POST'])
    const whole = read(answer, method, () => answer.length)
    const cut = read(answer, method, () => integer(1, 5))
    const told = JSON.stringify({ method, answer, whole, cut })
    assert.equal(whole.fault === undefined, cut.fault === undefined, told)
    if (whole.fault !== undefined) {
      faults++
      assert.match(whole.fault, /^[\x20-\x7e…]{1,200}$/, told)
      continue
    }
    taken++
    assert.equal(cut.text, whole.text, told)
    assert.equal(await refused(whole.text, method), undefined, told)
    // What it makes of an answer it takes for good itself.
    assert.equal(read(whole.text, method, () => integer(1, 9)).text, whole.text, told)
  }
  assert.ok(faults > 300 && taken > 300, `${faults} faults, ${taken} taken`)
})

test('a head takes time in proportion to its length', () => {
  for (const answer of [
    `HTTP/1.1 200 OK\r\n${'X: 1\r\n'.repeat(40_000)}\r\n`,
    `HTTP/1.1 200 OK\r\nX:${' '.repeat(250_000)}\x01\r\n\r\n`,
    `HTTP/1.1 200 OK\r\n${'X: 1\n'.repeat(40_000)}\n`,
    `HTTP/1.1 200 OK\r\nContent-Length:${' '.repeat(250_000)}x\r\n\r\n`,
    `HTTP/1.1 200 OK\r\nTransfer-Encoding:${','.repeat(250_000)}\r\n\r\n`,
    `HTTP/1.1 ${'2'.repeat(250_000)}\n\n`,
    `HTTP/1.1 200 OK\r\n${'\r'.repeat(250_000)}\n\n`,
    `HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${' '.repeat(16_000)}x\n`,
  ]) {
    const begun = process.cpuUsage()
    read(answer, 'GET', () => answer.length)
    const { user } = process.cpuUsage(begun)
    assert.ok(user < 1_000_000, `${JSON.stringify(answer.slice(0, 40))} took ${user} µs`)
  }
})

test('what is shown of bytes is one line of printable characters, bounded', () => {
  assert.equal(excerpt(Buffer.from('SSH-2.0\r\n')), '"SSH-2.0\\r\\n"')
  assert.equal(excerpt(Buffer.from([0, 27, 34, 92, 255])), '"\\x00\\x1b\\"\\\\\\xff"')
  assert.ok(excerpt(Buffer.alloc(100_000)).length < 200)
})
