/** TLS of a listener, on connections that end in this process: no module, no network. */
import assert from 'node:assert/strict'
import { buffer } from 'node:stream/consumers'
import { test } from 'node:test'
import tls from 'node:tls'
import { Authority } from '../../../test/unit/support/authority.ts'
import { Conn } from '../conn.ts'
import { Listener } from '../listener.ts'
import { TLSListener } from '../tls.ts'

/** Both ends of a connection; that of the listener is at `address`. */
function connection(address: string): [ours: Conn, theirs: Conn] {
  const ends: Conn[] = []
  for (const [i, remote] of [address, '100.64.0.1:443'].entries()) {
    const conn = new Conn(
      i,
      i === 0 ? '100.64.0.1:443' : address,
      remote,
      (m) => void setImmediate(() => ends[1 - i]!.receive(m)),
      () => {},
    )
    ends.push(conn)
    conn.release()
  }
  return ends as [Conn, Conn]
}

test('handshakes at the same time: each socket has the addresses of its own connection', async (t) => {
  const authority = new Authority()
  t.after(() => authority.close())
  const pem = authority.issue('node.tail0.ts.net')
  const under = new Listener('', 443, async () => {})
  // Asked later for the first: its handshake ends after that of the second.
  let asked = 0
  const listener = new TLSListener(under, ['node.tail0.ts.net'], async () => {
    if (++asked === 1) await new Promise((resolve) => setTimeout(resolve, 50))
    return { cert: pem, key: pem }
  })
  const order: string[] = []
  listener.on('connection', (socket) => {
    order.push(`${socket.remoteAddress} ${socket.remotePort} ${socket.localPort}`)
    socket.end(`hello ${socket.remoteAddress}`)
  })
  const failed: string[] = []
  listener.on('tlsClientError', (err) => failed.push((err as NodeJS.ErrnoException).code!))
  const ask = async (address: string, servername: string): Promise<string> => {
    const [ours, theirs] = connection(address)
    assert.ok(under.give(ours))
    const socket = tls.connect({ socket: theirs, servername, ca: authority.certificate })
    const failure = new Promise<string>((resolve) => socket.once('error', () => resolve('refused')))
    return await Promise.race([buffer(socket).then(String), failure])
  }
  const answers = await Promise.all([
    ask('100.64.0.2:1002', 'node.tail0.ts.net'),
    ask('100.64.0.3:1003', 'node.tail0.ts.net'),
    ask('100.64.0.4:1004', 'other.example'),
  ])
  assert.deepEqual(answers, ['hello 100.64.0.2', 'hello 100.64.0.3', 'refused'])
  assert.deepEqual(order.sort(), ['100.64.0.2 1002 443', '100.64.0.3 1003 443'])
  assert.equal(failed.length, 1)
  // The certificate is kept for as long as it is good.
  assert.equal(asked, 1)
  // Not TLS at all: that connection ends, the listener goes on.
  const [ours, theirs] = connection('100.64.0.5:1005')
  under.give(ours)
  theirs.on('error', () => {}).write('GET / HTTP/1.0\r\n\r\n')
  await new Promise((resolve) => theirs.resume().once('close', resolve))
  assert.equal(failed.length, 2)
  assert.equal(await ask('100.64.0.6:1006', 'node'), 'refused') // by the client: not that name
  assert.equal(await ask('100.64.0.7:1007', 'node.tail0.ts.net'), 'hello 100.64.0.7')
})

test('options that cannot be are refused when it is made', () => {
  const under = new Listener('', 443, async () => {})
  const cert = async (): Promise<never> => assert.fail()
  assert.throws(() => new TLSListener(under, [], cert, { cert: 'x', key: 'y' }), /PEM/i)
})
