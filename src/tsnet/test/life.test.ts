/** The end: asked for, come by itself, or before the beginning was over. */
import assert from 'node:assert/strict'
import type { Socket } from 'node:net'
import { after, before, test } from 'node:test'
import path from 'node:path'
import { Lab, type LabClient } from '../../../test/lab/lab.ts'
import { eventually, unixServer, WasmNode } from './support.ts'

let lab: Lab
let peer: LabClient
let peerIP: string
/** Address of a node that has gone: a dial to it waits. */
let silent: string
const sockets: Socket[] = []

before(async () => {
  lab = await Lab.start({ name: 'tlife' })
  peer = await lab.client('peer')
  peerIP = (await peer.status()).ips[0]!
  const gone = await lab.client('gone')
  silent = (await gone.status()).ips[0]!
  await gone.stop()
  const socket = path.join(lab.dir, 'peer.sock')
  await unixServer(socket, (s) => void sockets.push(s.on('end', () => s.end()).resume()))
  await peer.serve(7, socket)
})
after(async () => await lab?.stop())

test('close() resets what is open, ends the worker, and lets the process exit by itself', async (t) => {
  const node = await WasmNode.up(lab)
  const got = await node.run(
    async (k, ip, silent) => {
      const out = await k.server.dial(ip, 7)
      const listener = await k.server.listen(80)
      const seen: string[] = []
      out
        .on('error', (e) => seen.push((e as NodeJS.ErrnoException).code!))
        .on('close', () => seen.push('conn closed'))
      listener.on('close', () => seen.push('listener closed'))
      const pending = k.server.dial(silent, 1).catch((e) => seen.push(e.code))
      await k.sleep(50)
      const begun = performance.now()
      await Promise.all([k.server.close(), k.server.close()])
      await k.server.close()
      const ms = performance.now() - begun
      await pending
      return {
        seen: seen.sort(),
        ms,
        after: await k.server.status().catch((e) => e.code),
        events: k.events,
      }
    },
    peerIP,
    silent,
  )
  t.diagnostic(`${Math.round(got.ms)} ms`)
  assert.ok(got.ms < 3000, `${got.ms} ms`)
  assert.deepEqual(
    [got.seen.length, got.seen.slice(0, 1), got.seen.slice(-2)],
    [4, ['ECONNRESET'], ['conn closed', 'listener closed']],
  )
  assert.ok(['TSNET_CLOSED', 'TSNET_ABORTED', 'TSNET_DIAL'].includes(got.seen[1]!), got.seen.join())
  assert.equal(got.after, 'TSNET_CLOSED')
  assert.equal(got.events.filter(([name]) => name === 'close').length, 1)
  assert.ok(!got.events.some(([name]) => name === 'error'))
  assert.equal(await node.end(), 0)
  assert.equal(node.stderr, '')
  // The other end has heard of it.
  await eventually(
    'the reset at the peer',
    () => sockets.at(-1)!.destroyed || sockets.at(-1)!.readableEnded,
  )
})

test('close() before start, during start and while up() waits', async () => {
  const node = await WasmNode.process(lab)
  for (const wait of [-1, 0, 1, 20, 60, 120, 250]) {
    await node.make({
      authKey: '',
      ...(wait % 2 ? {} : { caFile: '/etc/ssl/certs/ca-certificates.crt' }),
    })
    const got = await node.run(async (k, wait) => {
      const up = wait < 0 ? undefined : k.server.up().catch((e) => e.code)
      if (wait > 0) await k.sleep(wait)
      const begun = performance.now()
      await k.server.close()
      const ms = performance.now() - begun
      return {
        up: ((await up) ?? null) as string | null,
        later: await k.server.up().catch((e) => e.code as string),
        ms,
        events: k.events.filter(([n]) => n === 'error' || n === 'close'),
      }
    }, wait)
    assert.deepEqual(
      [got.up, got.later],
      [wait < 0 ? null : 'TSNET_CLOSED', 'TSNET_CLOSED'],
      `after ${wait} ms`,
    )
    assert.deepEqual(got.events, [['close', '']], `after ${wait} ms`)
    // The module is given 5 s, of which a busy machine needs some only to start it; then it is
    // ended.
    assert.ok(got.ms < 15_000, `${got.ms} ms, after ${wait} ms`)
  }
  assert.equal(await node.end(), 0)
  assert.equal(node.stderr, '')
})

test('the death of the worker is one TSNET_DIED: connections reset, calls rejected, nothing hangs', async () => {
  const node = await WasmNode.up(lab, { hostname: 'mortal' })
  const got = await node.run(
    async (k, ip, silent) => {
      const conn = await k.server.dial(ip, 7)
      const reset = new Promise((resolve) =>
        conn.on('error', (e) => resolve((e as NodeJS.ErrnoException).code)),
      )
      const dial = k.server.dial(silent, 1).catch((e) => e.code)
      await k.sleep(50)
      const { thread } = k.server as unknown as { thread: { terminate(): void } }
      thread.terminate()
      return [
        await reset,
        await dial,
        await k.server.up().catch((e) => e.code),
        k.events.filter(([n]) => n === 'error' || n === 'close'),
      ]
    },
    peerIP,
    silent,
  )
  assert.deepEqual(got.slice(0, 3), ['ECONNRESET', 'TSNET_DIED', 'TSNET_DIED'])
  const events = got[3] as [string, string][]
  assert.deepEqual(
    events.map(([n, v]) => [n, v.slice(0, 10)]),
    [
      ['error', 'TSNET_DIED'],
      ['close', ''],
    ],
  )
  assert.match(events[0]![1], /make a new Server/)
  // A new Server takes the node up again.
  const before = node.status.self?.id
  assert.equal((await node.up({ authKey: '' })).self?.id, before)
  await node.run((k) => k.server.close())
  assert.equal(await node.end(), 0)
})

test('a module that ends by itself says why', async () => {
  const node = await WasmNode.up(lab, { hostname: 'mortal2' })
  const error = await node.run(async (k) => {
    const died = new Promise((resolve) => k.server.on('close', () => resolve(0)))
    // Not a request: the shim gives up.
    ;(k.server as unknown as { post(m: object): void }).post({ t: 'rpc', body: '{' })
    await died
    return k.events.find(([n]) => n === 'error')![1]
  })
  assert.match(error, /^TSNET_DIED .*code 1.*control stream: unexpected end of JSON input/)
})

test('a module without memory left is TSNET_DIED too', async () => {
  const node = await WasmNode.process(lab, {
    hostname: 'starved',
    flags: ['--wasm-max-mem-pages=200'],
  })
  await node.make()
  const err = await node.fails((k) => k.server.up())
  assert.equal(err.code, 'TSNET_DIED')
  assert.match(err.message, /memory/i)
  assert.equal(await node.end(), 0)
})

test('a Go panic is TSNET_DIED with its cause, and the directory is free for a new Server', async () => {
  const node = await WasmNode.process(lab, { hostname: 'panicking' })
  await node.make({ env: { TS_DEBUG_PANIC_MACHINE_KEY: 'true' } })
  const err = await node.fails((k) => k.server.up())
  assert.equal(err.code, 'TSNET_DIED')
  assert.match(err.message, /panic: machine key generated/)
  assert.deepEqual(await node.run((k) => k.events.filter(([n]) => n === 'close')), [['close', '']])
  assert.equal((await node.up()).backendState, 'Running')
  await node.run((k) => k.server.close())
  assert.equal(await node.end(), 0)
})

test('out of memory under load: connections reset, one TSNET_DIED, and a new Server is the same node', async () => {
  // 64 KiB a page: room to join, not for thousands of connections with unread bytes.
  const node = await WasmNode.process(lab, {
    hostname: 'hungry',
    flags: ['--wasm-max-mem-pages=1200'],
  })
  await node.up()
  const got = await node.run(async (k, ip) => {
    const ended = new Promise((resolve) => k.server.on('close', () => resolve(0))) // once() would reject with the error
    const codes = new Set<string>()
    const more = async (): Promise<void> => {
      while (k.events.every(([n]) => n !== 'close')) {
        const c = await k.server.dial(ip, 7).catch((e) => void codes.add(e.code))
        c?.on('error', (e) => codes.add((e as NodeJS.ErrnoException).code!))
          .pause()
          .write(Buffer.alloc(256 << 10))
      }
    }
    for (let i = 0; i < 30; i++) void more()
    await ended
    await k.sleep(50)
    return { codes: [...codes], errors: k.events.filter(([n]) => n === 'error') }
  }, peerIP)
  assert.equal(got.errors.length <= 1, true)
  assert.ok(got.codes.includes('ECONNRESET') || got.codes.includes('TSNET_DIED'), got.codes.join())
  assert.equal((await node.up({ authKey: '' })).self?.id, node.status.self?.id)
  await node.run((k) => k.server.close())
  assert.equal(await node.end(), 0)
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
