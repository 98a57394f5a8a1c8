/**
 * Joining with an OAuth client secret, from gatehouse.toml to the tailnet: the lab's API hands out
 * the key.
 */
import assert from 'node:assert/strict'
import { chmod, copyFile, mkdir, readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { call } from '../../src/base/control-client.ts'
import type { GatewayStatus } from '../../src/gateway/operate/status.ts'
import { secretFile } from '../../src/base/paths.ts'
import { makeChannelKey } from '../../src/provision/channel.ts'
import { provision } from '../../src/provision/provision.ts'
import { eventually } from './appliance.ts'
import { Lab } from './lab.ts'

let lab: Lab
before(async () => {
  lab = await Lab.start({ name: 'oauth' })
})
after(async () => {
  await lab?.stop()
})

test('client_secret and tags in gatehouse.toml: the device joins as a tagged one; the secret is sealed and in no other file, nor in the log', async () => {
  const dir = (name: string): string => path.join(lab.dir, name)
  for (const name of ['boot', 'credentials', 'state', 'run', 'tls'])
    await mkdir(dir(name), { mode: 0o700 })
  const { authority, clientSecret, controlURL } = lab.ready
  await copyFile(authority, dir('boot/authority.pem'))
  await writeFile(
    dir('boot/gatehouse.toml'),
    `[tailnet]\ncontrol_url = "${controlURL}"\nca_file = "authority.pem"\nclient_secret = ` +
      `"${clientSecret}?baseURL=${controlURL}&ephemeral=false&preauthorized=true"\ntags = ` +
      '["tag:lab"]\n',
  )
  const sealed: string[] = []
  const taken = await provision(
    { boot: dir('boot'), config: dir('config'), problem: dir('problem') },
    async (name, secret) => {
      sealed.push(`${name} ${secret}`)
      return secret
    },
  )
  assert.deepEqual(taken, { outcome: 'new' })
  assert.ok(
    sealed.some((text) => text.startsWith(`authkey ${clientSecret}?`)),
    'it goes the way of an auth key',
  )
  assert.doesNotMatch(await readFile(dir('config/gatehouse.toml'), 'utf8'), /client_secret|tskey/)
  // systemd hands over what was sealed.
  await writeFile(
    dir('credentials/authkey'),
    await readFile(secretFile({ problem: dir('problem') }, 'authkey')),
  )
  await chmod(dir('credentials/authkey'), 0o400)
  await makeChannelKey(dir('credentials/channel'))

  const admin = dir('admin.sock')
  const gateway = lab.exec(
    await lab.host('box', '10.77.0.60'),
    [
      process.execPath,
      '--disable-warning=ExperimentalWarning',
      path.resolve(import.meta.dirname, '../../src/main.ts'),
      'serve',
    ],
    {
      env: {
        ...process.env,
        GATEHOUSE_CONFIG_DIR: dir('config'),
        GATEHOUSE_PROBLEM_FILE: dir('problem'),
        GATEHOUSE_TLS_DIR: dir('tls'),
        GATEHOUSE_NODE_RED_SOCKET: dir('none.sock'),
        GATEHOUSE_ADMIN_SOCKET: admin,
        GATEHOUSE_CERTS_SOCKET: dir('certs.sock'),
        STATE_DIRECTORY: dir('state'),
        RUNTIME_DIRECTORY: dir('run'),
        CREDENTIALS_DIRECTORY: dir('credentials'),
      },
    },
  )
  let log = ''
  for (const stream of [gateway.stdout!, gateway.stderr!])
    stream.setEncoding('utf8').on('data', (text: string) => {
      log += text
    })
  try {
    const { tailnet } = await eventually('it has joined', 60, async () => {
      const { body } = await call(admin, 'GET', '/v1/status')
      return (body as GatewayStatus).tailnet.state === 'Running' && (body as GatewayStatus)
    })
    assert.deepEqual(tailnet.tags, ['tag:lab'])
    assert.ok(!log.includes(clientSecret), log)
  } finally {
    gateway.kill()
  }
  assert.equal(await lab.leaked(), 0)
})
