import assert from 'node:assert/strict'
import { createHmac } from 'node:crypto'
import { createServer } from 'node:net'
import type { AddressInfo, Server } from 'node:net'
import { once } from 'node:events'
import { test } from 'node:test'
import {
  DNSRefusal,
  nameServer,
  sign,
  update,
  updateMessage,
  verify,
  wireName,
} from '../../../src/certs/dns-update.ts'

const key = {
  name: 'Gatehouse.',
  algorithm: 'hmac-sha256',
  secret: 'pOqMp5HHIq1I5xM8fDqPx8hDfFxBW6KK3oIgpAJ5zZs=',
}

test('an UPDATE message, byte by byte (RFC 2136 §2)', () => {
  const message = updateMessage(0x1234, 'ex.test', [
    { what: 'add', name: '_acme-challenge.a.ex.test', value: 'hi' },
    { what: 'remove', name: 'b.ex.test', value: 'x' },
  ])
  assert.equal(
    message.toString('hex'),
    [
      '1234 2800 0001 0000 0002 0000', // opcode 5; one zone, two updates
      '02 6578 04 74657374 00 0006 0001', // ex.test SOA IN
      `0f ${Buffer.from('_acme-challenge').toString('hex')} 01 61 02 6578 04 74657374 00`,
      '0010 0001 0000003c 0003 02 6869', // TXT IN, 60 s
      '01 62 02 6578 04 74657374 00',
      '0010 00fe 00000000 0002 01 78', // TXT NONE, 0 s
    ]
      .join('')
      .replaceAll(' ', ''),
  )
})

test('TXT values are cut into pieces of 255 bytes; names are lower case, and refused when too long', () => {
  const message = updateMessage(1, 'ex.test', [{ what: 'add', name: 'a', value: 'v'.repeat(300) }])
  assert.ok(
    message.includes(Buffer.concat([Buffer.of(255), Buffer.alloc(255, 'v'), Buffer.of(45)])),
  )
  assert.deepEqual(wireName('A.b.'), Buffer.from('\u0001a\u0001b\0'))
  assert.throws(() => wireName('x'.repeat(64)), /longer than 63/)
})

test('name servers as people write them', () => {
  assert.deepEqual(nameServer('ns1.example.org'), { host: 'ns1.example.org', port: 53 })
  assert.deepEqual(nameServer('10.0.0.1:5353'), { host: '10.0.0.1', port: 5353 })
  assert.deepEqual(nameServer('[2001:db8::53]:54'), { host: '2001:db8::53', port: 54 })
})

/** A name server that answers each message as told; TSIG by hand (RFC 8945 §5.3.1). */
async function serving(
  answer: (request: Buffer, mac: Buffer) => Buffer,
): Promise<{ server: Server; port: number }> {
  const server = createServer((socket) => {
    socket.on('error', () => {})
    socket.on('data', (data: Buffer) => {
      const request = data.subarray(2)
      // The MAC is the last but six bytes: original ID, error, other length follow.
      const mac = request.subarray(request.length - 6 - 32, request.length - 6)
      const reply = answer(request, mac)
      const length = Buffer.alloc(2)
      length.writeUInt16BE(reply.length)
      // In two pieces, as TCP may.
      socket.write(Buffer.concat([length, reply.subarray(0, 5)]))
      setTimeout(() => socket.write(reply.subarray(5)), 5)
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return { server, port: (server.address() as AddressInfo).port }
}

function reply(request: Buffer, code: number): Buffer {
  const header = Buffer.alloc(12)
  request.copy(header, 0, 0, 2)
  header.writeUInt16BE(0xa800 | code, 2)
  return header
}

function signedReply(request: Buffer, mac: Buffer, code: number, secret = key.secret): Buffer {
  const plain = reply(request, code)
  const time = Buffer.alloc(6)
  time.writeUIntBE(Math.floor(Date.now() / 1000), 0, 6)
  const name = wireName(key.name)
  const algorithm = wireName(key.algorithm)
  const rest = Buffer.from('012c', 'hex')
  const length = Buffer.from('0020', 'hex')
  const digest = createHmac('sha256', Buffer.from(secret, 'base64'))
  for (const part of [length, mac, plain, name, Buffer.from('00ff00000000', 'hex'), algorithm])
    digest.update(part)
  digest.update(Buffer.concat([time, rest, Buffer.alloc(4)]))
  const data = Buffer.concat([
    algorithm,
    time,
    rest,
    length,
    digest.digest(),
    request.subarray(0, 2),
    Buffer.alloc(4),
  ])
  const size = Buffer.alloc(2)
  size.writeUInt16BE(data.length)
  const whole = Buffer.concat([plain, name, Buffer.from('00fa00ff00000000', 'hex'), size, data])
  whole.writeUInt16BE(1, 10)
  return whole
}

for (const [what, answer, code] of [
  ['a signed answer is believed', (r: Buffer, m: Buffer) => signedReply(r, m, 0), undefined],
  ['a signed refusal', (r: Buffer, m: Buffer) => signedReply(r, m, 5), 'REFUSED'],
  ['good news without a signature', (r: Buffer) => reply(r, 0), 'UNSIGNED'],
  ['a refusal without a signature', (r: Buffer) => reply(r, 9), 'NOTAUTH'],
  [
    'good news signed with another secret',
    (r: Buffer, m: Buffer) => signedReply(r, m, 0, Buffer.alloc(32).toString('base64')),
    'UNSIGNED',
  ],
  ['good news of another request', (r: Buffer) => signedReply(r, Buffer.alloc(32), 0), 'UNSIGNED'],
] as const) {
  test(`an answer: ${what}`, async () => {
    const { server, port } = await serving(answer)
    const asked = update({ host: '127.0.0.1', port }, 'ex.test', key, [
      { what: 'add', name: 'a.ex.test', value: 'v' },
    ])
    if (code === undefined) await asked
    else await assert.rejects(asked, (err: DNSRefusal) => err.code === code)
    server.close()
  })
}

test('answers that are none: another ID, half a record, a name without end, nothing', async () => {
  for (const make of [
    (r: Buffer) => {
      const wrong = reply(r, 0)
      wrong.writeUInt16BE((r.readUInt16BE(0) + 1) & 0xffff, 0)
      return wrong
    },
    (r: Buffer) => {
      const half = Buffer.concat([reply(r, 0), Buffer.from('0000', 'hex')])
      half.writeUInt16BE(1, 10)
      return half
    },
    (r: Buffer) => {
      const loop = Buffer.concat([reply(r, 0), Buffer.from('c00c', 'hex')])
      loop.writeUInt16BE(1, 10)
      return loop
    },
    () => Buffer.alloc(3),
  ]) {
    const { server, port } = await serving(make)
    await assert.rejects(
      update({ host: '127.0.0.1', port }, 'ex.test', key, [], { timeout: 2_000 }),
    )
    server.close()
  }
})

test('a signature covers every byte of the message', () => {
  const message = updateMessage(7, 'ex.test', [{ what: 'add', name: 'a.ex.test', value: 'v' }])
  const { mac } = sign(message, key, 1_700_000_000)
  for (let i = 0; i < message.length; i++) {
    const changed = Buffer.from(message)
    changed[i]! ^= 1
    assert.notDeepEqual(sign(changed, key, 1_700_000_000).mac, mac)
  }
  assert.throws(() => verify(message, key, mac), DNSRefusal)
})
