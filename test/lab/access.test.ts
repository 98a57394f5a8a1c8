/** Who may do what, with the real control server, the real bindings and the real Node-RED. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import http from 'node:http'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { connect } from 'node:tls'
import { WebSocket } from 'ws'
import { capability } from '../../src/gateway/access/access.ts'
import { editorRoot } from '../../src/gateway/access/channel.ts'
import type { Check } from '../../src/gateway/operate/doctor.ts'
import { Appliance, eventually } from './appliance.ts'
import { Lab, type LabClient } from './lab.ts'

let lab: Lab
let appliance: Appliance
let laptop: LabClient
let phone: LabClient
let name: string

before(async () => {
  lab = await Lab.start({ name: 'access' })
  appliance = await Appliance.start(lab)
  laptop = await lab.client('laptop')
  phone = await lab.client('phone')
  name = (await appliance.names())[0]!
})
after(async () => {
  await appliance?.stop()
  await lab?.stop()
})

const json = { accept: 'application/json', 'content-type': 'application/json' }

interface Answer {
  status: number
  body: any
}

async function ask(
  client: LabClient,
  method: string,
  path: string,
  body?: unknown,
  headers: Record<string, string> = {},
): Promise<Answer> {
  const answer = await client.fetch(`https://${name}${path}`, {
    method,
    headers: { ...json, ...headers },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
  const text = answer.body.toString()
  return {
    status: answer.status,
    body: /json/.test(answer.headers['Content-Type']?.[0] ?? '') ? JSON.parse(text) : text,
  }
}

/**
 * Waits until a request is answered with a status: the control server's word needs a moment to get
 * about.
 */
async function becomes(
  client: LabClient,
  method: string,
  path: string,
  status: number,
): Promise<Answer> {
  return await eventually(`${method} ${path} is answered ${status}`, 30, async () => {
    const answer = await ask(client, method, path)
    return answer.status === status && answer
  })
}

async function comms(client: LabClient): Promise<WebSocket> {
  const raw = await client.dial(name, 443)
  const ca = await readFile(lab.ready.acmeRoots)
  return new WebSocket(`wss://${name}/comms`, [], {
    createConnection: () => connect({ socket: raw, servername: name, ca }),
  })
}

const may = (who: string, ...may: string[]): Parameters<Lab['setGrants']>[0][number] => ({
  src: [who],
  dst: ['*'],
  app: { [capability]: [{ may }] },
})
const flow = [
  { id: 'tab1', type: 'tab', label: 'One' },
  { id: 'in1', type: 'http in', z: 'tab1', url: '/hello', method: 'get', wires: [['out1']] },
  { id: 'out1', type: 'http response', z: 'tab1', statusCode: '', headers: {}, wires: [] },
]

test('no grant: the owner may do everything, and Node-RED knows who it is', async () => {
  const { status, body } = await ask(laptop, 'GET', '/settings')
  assert.equal(status, 200)
  const { node } = {
    node: (await laptop.whoIs((await laptop.status()).ips[0]!)).UserProfile.LoginName,
  }
  assert.deepEqual(body.user, { username: node, permissions: '*' })
  const deployed = await ask(laptop, 'POST', '/flows', flow, { 'node-red-deployment-type': 'full' })
  assert.equal(deployed.status, 204, JSON.stringify(deployed.body))
  assert.ok(JSON.stringify(await appliance.flows()).includes('/hello'))
  await becomes(laptop, 'GET', '/app/hello', 200)
  assert.equal((await appliance.status()).access.owner, node)
})

test('no grant: somebody else may do nothing, and is told how that can change', async () => {
  await lab.setOwner('phone', { user: 'bob@example.com' })
  const { body } = await becomes(phone, 'GET', '/', 403)
  assert.match(body.error.message, /bob@example\.com may not see the flows/)
  assert.match(body.error.lines, /"src": \["bob@example\.com"\]/)
  for (const [method, target] of [
    ['GET', '/settings'],
    ['GET', '/flows'],
    ['POST', '/flows'],
    ['GET', '/app/hello'],
    ['GET', '/red/red.min.js'],
  ] as const)
    assert.equal((await ask(phone, method, target)).status, 403, target)
  const ws = await comms(phone)
  assert.match(((await once(ws, 'error')) as [Error])[0].message, /403/)
})

test('the lines on the page, pasted into the policy, are what lets them in', async () => {
  const { body } = await ask(phone, 'GET', '/')
  const { grants } = JSON.parse(`{${body.error.lines}}`)
  // The lab's names for what Tailscale takes: addresses of nodes are theirs.
  await lab.setGrants(
    grants.map((grant: { src: string[]; dst: string[]; app: Record<string, unknown[]> }) => ({
      ...grant,
      dst: grant.dst.map((to) => (to.startsWith('100.') ? name : to)),
    })),
  )
  await becomes(phone, 'GET', '/settings', 200)
})

test('a viewer sees who they are and all flows, and changes nothing: neither past the gateway nor past Node-RED', async () => {
  await lab.setGrants([may('bob@example.com', 'view')])
  const { body } = await eventually('bob is a viewer', 30, async () => {
    const answer = await ask(phone, 'GET', '/settings')
    return answer.body.user?.permissions === 'read' && answer
  })
  assert.deepEqual(body.user, { username: 'bob@example.com', permissions: 'read' })
  assert.equal((await ask(phone, 'GET', '/flows')).body.length, flow.length)
  assert.equal((await ask(phone, 'POST', '/flows', [], { 'x-gatehouse-user': 'x' })).status, 403)
  assert.equal((await ask(phone, 'GET', '/app/hello')).status, 403)
  // Node-RED by itself, as if the gateway had let it pass.
  const key = await readFile(path.join(appliance.dir, 'credentials', 'channel'))
  const direct = await new Promise<number>((resolve, reject) => {
    http
      .request(
        {
          socketPath: appliance.env['GATEHOUSE_NODE_RED_SOCKET']!,
          method: 'POST',
          path: `${editorRoot(key)}flows`,
          headers: { ...json, 'x-gatehouse-user': 'forged.forged' },
        },
        (response) => resolve(response.resume().statusCode!),
      )
      .once('error', reject)
      .end('[]')
  })
  assert.equal(direct, 401)
  assert.equal(((await appliance.flows()) as unknown[]).length, flow.length)
})

test("the editor's WebSocket works for a viewer without any login, and is closed when the right is taken away", async () => {
  const ws = await comms(phone)
  await once(ws, 'open')
  const told = once(ws, 'message') as Promise<[Buffer]>
  ws.send(JSON.stringify({ subscribe: 'notification/#' }))
  assert.ok(Array.isArray(JSON.parse(String((await told)[0]))))
  const closed = once(ws, 'close') as Promise<[number, Buffer]>
  await lab.setGrants([])
  const [code, reason] = await closed
  assert.deepEqual([code, reason.toString()], [1008, 'your rights have changed'])
  await becomes(phone, 'GET', '/', 403)
})

test('a tagged device posts to a flow, and never sees the editor', async () => {
  await lab.setOwner('phone', { tags: ['tag:sensor'] })
  await lab.setGrants([may('tag:sensor', 'use')])
  await becomes(phone, 'GET', '/app/hello', 200)
  for (const target of ['/', '/settings', '/flows', '/app/%2e%2e/flows', '/%61pp/../flows'])
    assert.notEqual((await ask(phone, 'GET', target)).status, 200, target)
})

test('an appliance that is tagged belongs to nobody: its former owner sees the lines to paste, and the status says so', async () => {
  await lab.setGrants([])
  await lab.setOwner(name, { tags: ['tag:gatehouse'] })
  const { body } = await eventually('the owner is none any more', 60, async () => {
    const answer = await ask(laptop, 'GET', '/')
    return answer.status === 403 && answer
  })
  assert.match(body.error.message, /This device is tagged, so it has no owner/)
  assert.match(body.error.lines, /"dst": \["tag:gatehouse"\]/)
  const { stdout } = await appliance.gatehouse(['status'])
  assert.match(stdout, /Access +nobody by default: the device is tagged/)
  await lab.setGrants([may('*', 'edit')])
  await becomes(laptop, 'GET', '/settings', 200)
})

test("doctor finds the whole chain well, Node-RED's belief in the gateway too", async () => {
  const { stdout } = await appliance.gatehouse(['doctor', '--json'])
  const checks = new Map((JSON.parse(stdout) as Check[]).map((check) => [check.name, check]))
  for (const link of [
    'configuration',
    'control server',
    'tailnet',
    'node key',
    'path',
    'certificate',
    'Node-RED',
    'login',
    'access',
  ])
    assert.equal(checks.get(link)?.result, 'ok', `${link}: ${checks.get(link)?.found}`)
})

test('reload by signal and by command: in force for a real peer, whose WebSocket stays open; stopping says so to it', async () => {
  await lab.setGrants([])
  await becomes(laptop, 'GET', '/settings', 403)
  const login = 'user-123@fake-control.example.net'
  await lab.setOwner('laptop', { user: login })
  await appliance.configure(`[access]\nview = ["${login}"]\n`)
  process.kill(appliance.pid, 'SIGHUP')
  assert.equal((await becomes(laptop, 'GET', '/settings', 200)).body.user.permissions, 'read')
  const ws = await comms(laptop)
  await once(ws, 'open')
  await appliance.configure(`[access]\nedit = ["${login}"]\n`)
  assert.equal(
    (await appliance.gatehouse(['reload'])).stdout,
    'In force: access.view, access.edit.\n',
  )
  await eventually(
    'the viewer is an editor',
    20,
    async () => (await ask(laptop, 'GET', '/settings')).body.user.permissions === '*',
  )
  await appliance.configure('[access]\nedit = "everybody"\n')
  const refused = await appliance.gatehouse(['reload'])
  assert.equal(refused.code, 1)
  assert.match(refused.stderr, /^Refused: .*edit must be a list in square brackets/)
  assert.equal((await ask(laptop, 'GET', '/settings')).body.user.permissions, '*')
  assert.equal(ws.readyState, WebSocket.OPEN)
  const closed = once(ws, 'close') as Promise<[number]>
  assert.equal(await appliance.stopGateway(), 0)
  assert.equal((await closed)[0], 1001)
})

test('nothing left the lab', async () => {
  assert.deepEqual(await lab.leaks(), [])
  assert.equal(await lab.leaked(), 0)
  // The configuration that was refused, and nothing else.
  assert.deepEqual(
    appliance.log.match(/.*"level":(?:50|60).*/g)?.map((line) => JSON.parse(line).code),
    ['GH_CONFIG_TYPE'],
  )
})
