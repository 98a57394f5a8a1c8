/**
 * The listener on the local network, by the kernel: the image's own ruleset in a network namespace,
 * the gateway's listener in it, and a stranger on the other end of a cable.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { redirection } from '../../src/firewall/apply.ts'
import { asUser, cable, inside, ruleset, run } from './ruleset.ts'

const root = path.resolve(import.meta.dirname, '../..')
const [box, stranger] = [`gh-ln-box-${process.pid}`, `gh-ln-out-${process.pid}`]
const address = '192.168.77.1'
let listener: ChildProcess

/**
 * What the stranger gets of a port: the first line said there, or how the kernel refused. `hold`:
 * that many connections at once, as many lines.
 */
async function knock(host: string, port: number, { from = '', hold = 1 } = {}): Promise<string[]> {
  const program = `const net = require('node:net');
    const one = () => new Promise((done) => {
      const socket = net.connect({ host: ${JSON.stringify(host)}, port: ${port}${from && `, localAddress: '${from}'`} });
      socket.setTimeout(2500, () => done('silence')).on('error', (error) => done(error.code)).on('data', (data) => done(String(data)));
    });
    Promise.all(Array.from({ length: ${hold} }, one)).then((all) => { console.log(JSON.stringify(all)); process.exit(); });`
  return JSON.parse(await run(inside(stranger, process.execPath, '-e', program))) as string[]
}
const load = async (text: string): Promise<unknown> =>
  await run(inside(box, 'nft', '-f', '-'), text)

before(async () => {
  await cable([
    [box, `${address}/24`, '203.0.113.1/24'],
    [stranger, '192.168.77.2/24', '203.0.113.2/24'],
  ])
  await load(await ruleset())
  // The gateway's own listener on its own ports, as the user the firewall knows it by; each
  // connection is told which it came to.
  const program = `import { LocalNetwork } from ${JSON.stringify(path.join(root, 'src/gateway/listen/local-network.ts'))}
    const quiet = new Proxy({}, { get: () => () => {} })
    const say = (what) => (conn, peer) => { conn.write(what + ' ' + peer.address + ' ' + peer.local) }
    const network = new LocalNetwork({ log: quiet, problems: quiet, accept: { http: say('http'), https: say('https'), flows: say('flows') } })
    await network.configure({ listen: true, rights: ['use'] })
    console.log(JSON.stringify(network.ports))`
  const [command, ...argv] = inside(
    box,
    ...asUser('601', process.execPath, '--input-type=module', '-e', program),
  )
  listener = spawn(command!, argv, { stdio: ['ignore', 'pipe', 'inherit'] })
  const ports = await new Promise<string>((up, fail) => {
    listener.stdout!.setEncoding('utf8').once('data', up)
    listener.once('exit', (code) => fail(new Error(`the listener ended: ${code}`)))
  })
  assert.deepEqual(JSON.parse(ports), { http: 41080, https: 41443, flows: 48443 })
})

after(async () => {
  listener?.kill()
  for (const ns of [box, stranger]) await run(['ip', 'netns', 'del', ns]).catch(() => {})
})

test('the rules the image ships: though the gateway listens, nobody gets there', async () => {
  for (const answers of await Promise.all(
    [80, 443, 8443, 41080, 41443, 48443].map((port) => knock(address, port)),
  ))
    assert.deepEqual(answers, ['silence'])
})

test('redirected from 80, 443 and 8443 it is reached, at its own ports it is not; from addresses of local networks alone', async () => {
  await load(redirection(true, false))
  await load(redirection(true, true))
  assert.deepEqual(await knock(address, 80), ['http 192.168.77.2 true'])
  assert.deepEqual(await knock(address, 443), ['https 192.168.77.2 true'])
  assert.deepEqual(await knock(address, 8443), ['flows 192.168.77.2 true'])
  const [, local6] = /inet6 (fe80\S+)\//.exec(
    await run(['ip', '-n', box, '-6', 'addr', 'show', 'dev', 'eth0']),
  )!
  assert.match((await knock(`${local6}%eth0`, 443))[0]!, /^https fe80\S+ true$/)
  for (const answers of await Promise.all(
    [41080, 41443, 48443, 22, 1880].map((port) => knock(address, port)),
  ))
    assert.deepEqual(answers, ['silence'])
  assert.deepEqual(
    await knock('203.0.113.1', 443, { from: '203.0.113.2' }),
    ['silence'],
    'an address of the internet',
  )
})

test('one source has so many connections at once and no more', async () => {
  const answers = await knock(address, 443, { hold: 90 })
  assert.equal(
    answers.filter((answer) => answer.startsWith('https')).length <= 64,
    true,
    JSON.stringify(answers),
  )
  const refused = answers.filter((answer) => answer === 'silence').length
  assert.ok(refused > 0 && refused < 90, `${refused} of 90 refused`)
  const counters = JSON.parse(await run(inside(box, 'nft', '-j', 'list', 'counters'))) as {
    nftables: { counter?: { name: string; packets: number } }[]
  }
  const packets = counters.nftables.flatMap(({ counter }) =>
    /dropped-in-(rate|connections)/.test(counter?.name ?? '') ? [counter!.packets] : [],
  )
  assert.ok(
    packets.some((count) => count > 0),
    JSON.stringify(packets),
  )
})

test('switched off, no address is translated any more', async () => {
  await load(redirection(false, true))
  await load(redirection(false, true))
  assert.doesNotMatch(await run(inside(box, 'nft', 'list', 'ruleset')), /type nat/)
  for (const answers of await Promise.all(
    [80, 443, 8443, 41443, 48443].map((port) => knock(address, port)),
  ))
    assert.deepEqual(answers, ['silence'])
})
