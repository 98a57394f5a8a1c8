/**
 * An app with a name of its own in the tailnet: with the real control server, the real bindings,
 * Pebble and a native client.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { createServer, request } from 'node:http'
import type { IncomingMessage } from 'node:http'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { connect } from 'node:tls'
import { call } from '../../src/base/control-client.ts'
import { capability } from '../../src/gateway/access/access.ts'
import { Appliance, eventually } from './appliance.ts'
import { Lab, type LabClient } from './lab.ts'

const vip = '100.100.77.1'

let lab: Lab
let appliance: Appliance
let laptop: LabClient
let node: string
let grafana: string

before(async () => {
  lab = await Lab.start({ name: 'services' })
  appliance = await Appliance.start(lab)
  node = (await appliance.names())[0]!
  grafana = `grafana.${lab.ready.suffix}`
  laptop = await lab.client('laptop')
  const socket = path.join(lab.dir, 'grafana.sock')
  const app = createServer((request, response) => {
    response.end(
      JSON.stringify({
        who: 'grafana',
        url: request.url,
        host: request.headers.host,
        login: request.headers['tailscale-user-login'],
      }),
    )
  })
  await new Promise<void>((resolve) => app.listen(socket, resolve))
  app.unref()
  await appliance.configure(`[[app]]\nservice = "svc:grafana"\nupstreams = ["unix:${socket}"]\n`)
})
after(async () => {
  await appliance?.stop()
  await lab?.stop()
})

const problem = async () =>
  (await appliance.status()).problems.find(({ part }) => part === 'service')
const json = { accept: 'application/json' }

test('what is missing is said: first the tag, then the approval; both are noticed without a restart', async () => {
  const reloaded = await appliance.gatehouse(['reload'])
  assert.match(reloaded.stdout, /^In force: app\.$/m)
  assert.equal((await eventually('the tag is missed', 30, problem)).code, 'GH_SERVICE_TAG')
  const refused = await call(appliance.env['GATEHOUSE_CERTS_SOCKET']!, 'PUT', '/v1/challenge', {
    name: `_acme-challenge.${grafana}`,
    value: 'x'.repeat(43),
  })
  assert.equal(refused.status, 403)
  await lab.setOwner(node, { tags: ['tag:gatehouse'] })
  await lab.setGrants([
    { src: ['laptop'], dst: ['tag:gatehouse'], app: { [capability]: [{ may: ['use', 'edit'] }] } },
  ])
  const waits = await eventually('the approval is missed', 60, async () => {
    const found = await problem()
    return found?.code === 'GH_SERVICE_APPROVAL' && found
  })
  assert.match(waits.message, new RegExp(`svc:grafana.*${grafana}`))
  assert.deepEqual(await appliance.names(), [node])
  await lab.hostService(node, 'svc:grafana', vip)
  await eventually('the name is there', 30, async () => (await appliance.names()).includes(grafana))
  assert.deepEqual(await appliance.names(), [node, grafana])
})

test('a certificate for it from the authority, by a challenge under its own name; verified by a native client', async () => {
  const { code, stdout, stderr } = await appliance.gatehouse(['certs'], {
    STATE_DIRECTORY: path.join(appliance.dir, 'certs'),
  })
  assert.equal(code, 0, stdout + stderr)
  assert.equal((await lab.txt())[`_acme-challenge.${grafana}`]?.length, 1)
  const answer = await eventually(
    'the app answers',
    60,
    async () => await laptop.fetch(`https://${grafana}/d/1?x`, { headers: json }),
  )
  assert.deepEqual(answer.tls?.dnsNames, [grafana])
  assert.equal(answer.tls?.verified, true)
  const { who, url, host, login } = JSON.parse(answer.body.toString()) as Record<string, string>
  assert.deepEqual([who, url, host], ['grafana', '/d/1?x', grafana])
  assert.match(login!, /@/)
  assert.equal(await problem(), undefined)
})

test("Node-RED keeps the node's name, each address serves its own name alone, plain HTTP is sent to https", async () => {
  const editor = await laptop.fetch(`https://${node}/`, { headers: { accept: 'text/html' } })
  assert.deepEqual(editor.tls?.dnsNames, [node])
  assert.match(editor.body.toString(), /Node-RED/)
  const plain = await laptop.fetch(`http://${grafana}/d?x=1`)
  assert.deepEqual([plain.status, plain.headers['Location']], [308, [`https://${grafana}/d?x=1`]])
  const roots = await readFile(lab.ready.acmeRoots)
  for (const [to, host] of [
    [node, grafana],
    [grafana, node],
  ] as const) {
    const socket = connect({ socket: await laptop.dial(to, 443), servername: to, ca: roots })
    await once(socket, 'secureConnect')
    const [answer] = (await once(
      request({ createConnection: () => socket, headers: { host } }).end(),
      'response',
    )) as [IncomingMessage]
    answer.resume()
    assert.equal(answer.statusCode, 421, `${host} at ${to}`)
  }
})

test('who has no right to the app gets 403; a name that is taken off the list is renewed no more', async () => {
  await lab.setGrants([
    { src: ['laptop'], dst: ['tag:gatehouse'], app: { [capability]: [{ may: ['view'] }] } },
  ])
  await eventually(
    'the right is gone',
    30,
    async () => (await laptop.fetch(`https://${grafana}/`, { headers: json })).status === 403,
  )
  await appliance.configure('')
  assert.equal((await appliance.gatehouse(['reload'])).code, 0)
  assert.deepEqual(await appliance.names(), [node])
  const { code } = await appliance.gatehouse(['certs'], {
    STATE_DIRECTORY: path.join(appliance.dir, 'certs'),
  })
  assert.equal(code, 0)
  const refused = await call(appliance.env['GATEHOUSE_CERTS_SOCKET']!, 'PUT', '/v1/challenge', {
    name: `_acme-challenge.${grafana}`,
    value: 'x'.repeat(43),
  })
  assert.equal(refused.status, 403)
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0)
})
