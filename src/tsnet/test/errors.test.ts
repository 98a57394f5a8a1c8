/**
 * Bad input and a world that does not play along: one typed error each, with its cause and cure.
 */
import assert from 'node:assert/strict'
import { mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { Lab, type LabClient } from '../../../test/lab/lab.ts'
import { eventually, unixServer, WasmNode } from './support.ts'

let lab: Lab
let peer: LabClient
let peerIP: string
let node: WasmNode
/** A process in a namespace of its own, whose Server is made anew by each test. */
let other: WasmNode

before(async () => {
  lab = await Lab.start({ name: 'terr' })
  peer = await lab.client('peer')
  peerIP = (await peer.status()).ips[0]!
  ;[node, other] = [await WasmNode.up(lab), await WasmNode.process(lab, { hostname: 'other' })]
})
after(async () => await lab?.stop())

test('a wrong auth key is TSNET_AUTH in the words of the control server, and the right one works in a new Server', async () => {
  await other.make({ authKey: lab.ready.wrongAuthKey })
  const err = await other.fails((k) => k.server.up())
  assert.equal(err.code, 'TSNET_AUTH')
  assert.match(err.message, /API key does not exist/)
  const again = await other.fails((k) => k.server.up({ signal: AbortSignal.timeout(20_000) }))
  assert.equal(again.code, 'TSNET_AUTH', again.message)
  await other.run((k) => k.server.close())
  assert.ok(!(await lab.nodes()).some((n) => n.hostname === 'other'))
  assert.equal((await other.up()).backendState, 'Running')
  await other.run((k) => k.server.close())
})

test('an aborted signal ends up() and dial() at once with TSNET_ABORTED', async () => {
  const files = path.join(lab.dir, 'abort')
  await other.make({ authKey: '', dir: files })
  for (const when of ['before', 'early', 'late'] as const) {
    const [code, cause, ms] = await other.run(async (k, when) => {
      const abort = new AbortController()
      if (when === 'before') abort.abort(new Error('mine'))
      else setTimeout(() => abort.abort(new Error('mine')), when === 'early' ? 0 : 300)
      const begun = performance.now()
      const err = (await k.server.up({ signal: abort.signal }).then(
        () => undefined,
        (e) => e,
      )) as InstanceType<typeof k.TsnetError>
      return [err.code, (err.cause as Error).message, performance.now() - begun]
    }, when)
    assert.deepEqual([code, cause], ['TSNET_ABORTED', 'mine'])
    assert.ok((ms as number) < 1500, `${when}: ${ms} ms`)
  }
  await other.run((k) => k.server.close())

  const gone = await lab.client('gone')
  const { ips } = await gone.status()
  await gone.stop()
  const [code, ms] = await node.run(async (k, ip) => {
    const begun = performance.now()
    const err = await k.server.dial(ip, 80, { signal: AbortSignal.timeout(200) }).then(
      () => undefined,
      (e) => e,
    )
    return [err.code, performance.now() - begun]
  }, ips[0]!)
  assert.equal(code, 'TSNET_ABORTED')
  assert.ok(ms < 1500, `${ms} ms`)
})

test('dials given up leave no connection behind', async () => {
  const socket = path.join(lab.dir, 'peer.sock')
  await unixServer(socket, (s) => s.resume().on('end', () => s.end()))
  await peer.serve(7, socket)
  await node.run(async (k, ip) => {
    ;(await k.server.dial(ip, 7)).on('error', () => {}).destroy()
    for (let i = 0; i < 30; i++) {
      const abort = new AbortController()
      const dialled = k.server.dial(ip, 7, { signal: abort.signal }).then(
        (c) => c.destroy(),
        () => {},
      )
      setTimeout(() => abort.abort(), i % 6)
      await dialled
    }
  }, peerIP)
  await eventually(
    'all streams closed',
    async () => (await node.run((k) => k.server.stats())).streams === 0,
  )
})

test('a closed port is TSNET_DIAL: connection refused', async () => {
  const err = await node.fails((k, ip) => k.server.dial(ip, 4242), peerIP)
  assert.equal(err.code, 'TSNET_DIAL')
  assert.match(err.message, /refused/)
})

test('what is no node of the tailnet is TSNET_NO_PEER, and is not dialled over the network outside', async () => {
  for (const host of [
    '100.127.255.254',
    'fd7a:115c:a1e0::dead',
    peer.ip,
    '192.0.2.1',
    '127.0.0.1',
  ]) {
    const err = await node.fails((k, h) => k.server.dial(h, 80), host)
    assert.equal(err.code, 'TSNET_NO_PEER', `${host}: ${err.message}`)
    assert.match(err.message, /no node of the tailnet/)
  }
  assert.equal((await node.fails((k) => k.server.dial('nobody', 80))).code, 'TSNET_DIAL')
})

test('a port in use is TSNET_LISTEN; one that is none is TSNET_OPTIONS', async () => {
  await node.run(async (k) => void (await k.server.listen(81)))
  const err = await node.fails((k) => k.server.listen(81))
  assert.equal(err.code, 'TSNET_LISTEN')
  assert.match(err.message, /81/)
  for (const port of [-1, 65536, 1.5, NaN])
    assert.equal(
      (await node.fails((k, p) => k.server.listen(p ?? NaN), port)).code,
      'TSNET_OPTIONS',
    )
  assert.equal((await node.fails((k) => k.server.dial('peer', 0))).code, 'TSNET_OPTIONS')
  assert.equal((await node.fails((k) => void new k.Server({ dir: '' }))).code, 'TSNET_OPTIONS')
})

test('while the control server is away connections go on; up() waits for it', async (t) => {
  await node.run(async (k, ip) => (await k.server.dial(ip, 7)).end().resume() && undefined, peerIP)
  const dir = path.join(lab.dir, 'patient')
  await lab.stopControl()
  await node.run(async (k, ip) => (await k.server.dial(ip, 7)).end().resume() && undefined, peerIP)
  await other.make({ dir })
  const err = await other.fails((k) => k.server.up({ signal: AbortSignal.timeout(700) }))
  assert.equal(err.code, 'TSNET_ABORTED')
  await lab.startControl()
  const begun = performance.now()
  assert.equal((await other.run((k) => k.server.up())).backendState, 'Running')
  t.diagnostic(
    `joined ${Math.round(performance.now() - begun)} ms after the control server was back`,
  )
  await other.run((k) => k.server.close())
})

test('a damaged state file is TSNET_STATE with file and cure, and is left as it was', async () => {
  const dir = path.join(lab.dir, 'damaged')
  const file = path.join(dir, 'tailscaled.state')
  await mkdir(dir, { mode: 0o700 })
  const whole = await readFile(path.join(node.options.dir, 'tailscaled.state'), 'utf8')
  for (const content of [
    '{"_machinekey": "',
    whole.slice(0, whole.length / 2),
    '\0\0\0\0',
    'null and void',
  ]) {
    await writeFile(file, content)
    await other.make({ dir })
    const err = await other.fails((k) => k.server.up())
    assert.equal(err.code, 'TSNET_STATE', err.message)
    assert.ok(err.message.includes(file), err.message)
    assert.match(err.message, /restore it from a backup, or move it away/)
    assert.equal(await readFile(file, 'utf8'), content)
    assert.deepEqual(await readdir(dir), ['etc', 'tailscaled.state'])
  }
  assert.deepEqual(await other.run((k) => k.events), [['close', '']])
})

test('an empty state file holds nothing to lose: the node joins anew', async () => {
  const dir = path.join(lab.dir, 'empty')
  await mkdir(dir, { mode: 0o700 })
  await writeFile(path.join(dir, 'tailscaled.state'), '')
  await other.up({ dir })
  await other.run((k) => k.server.close())
})

test('a state file that cannot be read is TSNET_STATE', async () => {
  const dir = path.join(lab.dir, 'unreadable')
  await mkdir(path.join(dir, 'tailscaled.state'), { recursive: true })
  await other.make({ dir })
  const err = await other.fails((k) => k.server.start())
  assert.equal(err.code, 'TSNET_STATE', err.message)
  assert.ok(err.message.includes(path.join(dir, 'tailscaled.state')), err.message)
})

test('a state directory that cannot be made or written is TSNET_STATE and names it', async () => {
  const file = path.join(lab.dir, 'a-file')
  await writeFile(file, '')
  const readOnly = path.join(lab.dir, 'read-only')
  await mkdir(readOnly)
  // Mounted and used by one command: each `ip netns exec` has mounts of its own, which end with it.
  const script = `
    import { Server } from ${JSON.stringify(path.resolve(import.meta.dirname, '../index.ts'))};
    await new Server({ dir: ${JSON.stringify(readOnly)} }).up().catch((err) => console.log(err.code, err.message));`
  const program = path.join(lab.dir, 'read-only.ts')
  await writeFile(program, script)
  const { stdout, stderr, code } = await lab.run(other.ns, [
    'sh',
    '-c',
    `mount -t tmpfs -o ro,size=64k tmpfs ${readOnly} && exec ${process.execPath} ${program}`,
  ])
  assert.match(stdout, /^TSNET_STATE .*EROFS.*read-only/, stderr)
  assert.equal(code, 0, stderr)

  await other.make({ dir: path.join(file, 'state') })
  const err = await other.fails((k) => k.server.start())
  assert.equal(err.code, 'TSNET_STATE', err.message)
  assert.match(err.message, /ENOTDIR.*a-file/)
  await rm(file)
})

test('authorities that are none are TSNET_ROOTS', async () => {
  const file = path.join(lab.dir, 'no.pem')
  await other.make({ caFile: file })
  assert.equal((await other.fails((k) => k.server.start())).code, 'TSNET_ROOTS')
  await writeFile(file, 'nothing')
  for (const options of [{ caFile: file }, { extraCAFile: file }]) {
    await other.make({ caFile: '', ...options })
    assert.equal((await other.fails((k) => k.server.start())).code, 'TSNET_ROOTS')
  }
})

test('after all of it the process ends by itself, and nothing left the lab', async () => {
  await node.run((k) => k.server.close())
  assert.equal(await node.end(), 0)
  assert.equal(await other.end(), 0)
  assert.equal(node.stderr + other.stderr, '')
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
