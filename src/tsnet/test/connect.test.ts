/** HTTP clients over the tailnet whose peer says nothing: given up in time, and nothing stays. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import http from 'node:http'
import https from 'node:https'
import { Duplex } from 'node:stream'
import { test } from 'node:test'
import type { Conn } from '../conn.ts'
import { connector, type Dial, TailnetAgent, TailnetHttpsAgent } from '../http.ts'

/** A connection whose peer takes all and never answers. */
const mute = (): Conn =>
  new Duplex({ read() {}, write: (_chunk, _encoding, done) => done() }) as Conn

/** As Server.dial to an address that nobody has: it ends with its signal. */
const never: Dial = (_host, _port, { signal }) =>
  new Promise((_, reject) => {
    signal?.addEventListener('abort', () => reject(signal.reason as Error), { once: true })
  })

const connect = (dial: Dial, protocol: string, connectTimeout?: number): Promise<Error | null> =>
  new Promise((resolve) => {
    connector(dial, connectTimeout === undefined ? {} : { connectTimeout })(
      { hostname: 'peer', protocol },
      ((err: Error | null) => resolve(err)) as (...args: never) => void,
    )
  })

test('a connection that is not made in connectTimeout is TSNET_DIAL', async () => {
  const err = await connect(never, 'http:', 50)
  assert.equal((err as NodeJS.ErrnoException).code, 'TSNET_DIAL')
  assert.match(err!.message, /no connection to peer, port 80, within 50 ms/)
})

test('so is one whose TLS does not come, and the connection is gone', async () => {
  const conn = mute()
  const err = await connect(async () => conn, 'https:', 50)
  assert.equal((err as NodeJS.ErrnoException).code, 'TSNET_DIAL')
  assert.equal(conn.destroyed, true)
})

test('one that is made keeps no timer, and lives on', async () => {
  const conn = mute()
  assert.equal(await connect(async () => conn, 'http:', 30), null)
  await new Promise((resolve) => setTimeout(resolve, 60))
  assert.equal(conn.destroyed, false)
})

test('an error of dial is given as it is', async () => {
  const refused = Object.assign(new Error('no'), { code: 'TSNET_NO_PEER' })
  assert.equal(await connect(() => Promise.reject(refused), 'http:', 1000), refused)
})

for (const [name, conn, dial] of [
  ['the handshake', mute(), undefined],
  ['the dial', undefined, never],
] as const) {
  test(`a request that is aborted during ${name} ends, and leaves no connection`, async () => {
    const agent = new TailnetHttpsAgent(dial ?? (async () => conn))
    const abort = new AbortController()
    const request = https.get('https://peer/', { agent, signal: abort.signal })
    setTimeout(() => abort.abort(), 30)
    const [err] = (await once(request, 'error')) as [NodeJS.ErrnoException]
    assert.equal(err.code, 'ABORT_ERR')
    await new Promise((resolve) => setImmediate(resolve))
    if (conn) assert.equal(conn.destroyed, true)
    assert.deepEqual(Object.values(agent.sockets).flat(), [])
  })
}

test('plain http likewise, and by destroy() too', async () => {
  const agent = new TailnetAgent(never)
  const request = http.get('http://peer/', { agent })
  setTimeout(() => request.destroy(new Error('enough')), 30)
  const [err] = (await once(request, 'error')) as [Error]
  assert.equal(err.message, 'enough')
})
