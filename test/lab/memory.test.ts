/**
 * The gateway as on a board with 512 MB, three quarters of which it may have, with the real
 * bindings: what many downloads and connections at a time leave behind does not keep the next one
 * out. On the booted image: test/vm/memory.test.ts.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { after, before, test } from 'node:test'
import tls from 'node:tls'
import { Appliance, eventually } from './appliance.ts'
import { Lab, type LabClient } from './lab.ts'

/** The largest file that the editor loads. */
const large = '/vendor/monaco/dist/ts.worker.js'

let lab: Lab
let client: LabClient
let appliance: Appliance
let name: string
let ca: Buffer

before(async () => {
  lab = await Lab.start({ name: 'memory' })
  client = await lab.client('laptop')
  appliance = await Appliance.start(lab, {
    settings: '[limits]\nmemory_mib = 384\n',
    env: { NODE_OPTIONS: '--max-semi-space-size=4' },
  })
  ca = await readFile(lab.ready.acmeRoots)
  name = (await appliance.status()).tailnet.name!
})
after(async () => {
  await appliance?.stop()
  await lab?.stop()
})

/** A TLS connection to the appliance through the tailnet. */
async function connect(): Promise<tls.TLSSocket> {
  const socket = await client.dial(name, 443)
  socket.on('error', () => {})
  const secure = tls.connect({ socket, servername: name, ca, ALPNProtocols: ['http/1.1'] })
  await once(secure, 'secureConnect')
  secure.on('error', () => {})
  return secure
}

/** Bytes of the large file that came, over and over on one connection. */
async function download(times: number): Promise<number> {
  const secure = await connect()
  let bytes = 0
  secure.on('data', (piece: Buffer) => {
    bytes += piece.length
  })
  for (let i = 1; i <= times; i++)
    secure.write(
      `GET ${large} HTTP/1.1\r\nHost: ${name}\r\n${i === times ? 'Connection: close\r\n' : ''}\r\n`,
    )
  await once(secure, 'close')
  return bytes
}

async function serves(): Promise<boolean> {
  return (await client.fetch(`https://${name}/`)).status === 200
}

/** MiB that the gateway has. */
async function resident(): Promise<number> {
  const status = await readFile(`/proc/${appliance.pid}/status`, 'utf8')
  return Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)![1]) / 1024
}

test('eight downloads at a time, 40 that stall, 1,000 connections opened and closed: then it serves', async (t) => {
  const start = await resident()
  const stalled = await Promise.all(
    Array.from({ length: 40 }, async () => {
      const secure = await connect()
      secure.pause()
      secure.write(`GET ${large} HTTP/1.1\r\nHost: ${name}\r\n\r\n`)
      return secure
    }),
  )
  const bytes = await Promise.all(Array.from({ length: 8 }, async () => await download(3)))
  // Age is not of one length in all of them.
  assert.ok(
    bytes.every((all) => Math.abs(all - bytes[0]!) < 1_000 && all > 3 * 2 ** 20),
    bytes.join(),
  )
  const downloaded = await resident()
  for (const secure of stalled) secure.destroy()
  const freed = performance.now()
  await eventually('it serves', 90, serves)
  const again = (performance.now() - freed) / 1000
  let opened = 0
  await Promise.all(
    Array.from({ length: 10 }, async () => {
      for (let i = 0; i < 100; i++) {
        const secure = await connect().catch(() => undefined)
        if (secure !== undefined) opened++
        secure?.destroy()
        // 25 a second of one peer, as by default.
        await new Promise((resolve) => setTimeout(resolve, 350))
      }
    }),
  )
  const end = await resident()
  t.diagnostic(
    `${opened} of 1,000 connections let in; MiB: ${start.toFixed(0)}, with 48 downloads ` +
      `${downloaded.toFixed(0)}, ${again.toFixed(0)} s later it served; at the end ` +
      `${end.toFixed(0)}`,
  )
  assert.ok(opened > 500, `${opened} opened`)
  await eventually('it serves', 90, serves)
  const { problems } = await appliance.status()
  assert.deepEqual(
    problems.filter(({ part }) => part === 'memory'),
    [],
  )
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0)
})
