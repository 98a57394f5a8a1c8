/**
 * Each thing that can go wrong with a certificate, against an authority that wants bound accounts,
 * refuses a name, takes its time to validate and refuses a third of all nonces: message, code,
 * metric and line in `gatehouse status`.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { copyFile, mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { pino } from 'pino'
import type { CertsRecord } from '../../src/certs/record.ts'
import { createCertsServer } from '../../src/gateway/operate/control.ts'
import { Box, noted } from './box.ts'
import { Lab, type LabClient, type Result } from './lab.ts'

const day = 86_400_000
const binding = {
  keyId: 'gatehouse-1',
  hmacKey: 'zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W',
}
const suffix = 'tail0a1b2.ts.net'
const environment = {
  PEBBLE_WFE_NONCEREJECT: '33',
  // Up to two seconds before it validates.
  PEBBLE_VA_SLEEPTIME: '3',
  LAB_ACME_EAB: `${binding.keyId}:${binding.hmacKey}`,
  LAB_ACME_BLOCKED: `blocked.${suffix}`,
}
let lab: Lab
let node: LabClient
let name: string

before(async () => {
  Object.assign(process.env, environment)
  lab = await Lab.start({ name: 'fail', suffix })
  node = await lab.client('gateway')
  name = (await node.status()).name
})
after(async () => {
  for (const key of Object.keys(environment)) delete process.env[key]
  await lab?.stop()
})

const make = async (): Promise<Box> => await Box.make(lab, node, name)

/** The record and the gateway say the same thing: code, message, metric, line. */
async function said(box: Box, record: CertsRecord, code: string, message: RegExp): Promise<void> {
  assert.equal(record.code, code, record.problem ?? 'no problem')
  assert.match(record.problem!, message)
  const { status, failures } = await box.gateway()
  assert.match(status, message)
  assert.match(
    status,
    new RegExp(`last look .*: (failed|waiting) \\(${code}, (info|warning|error)\\)`),
  )
  assert.ok(failures[code]! >= 1, JSON.stringify(failures))
}

test('the authority is as it was told to be', async () => {
  assert.equal(await noted(lab, /Configured to reject 33% of good nonces/), 1)
  assert.equal(await noted(lab, /Setting maximum random VA sleep time to 3 seconds/), 1)
})

test('an authority that wants bound accounts: none, a wrong key, the right one, and none again once there is an account', async () => {
  const box = await make()
  const none = await box.run()
  await said(
    box,
    none.record,
    'GH_CERTS_ACCOUNT',
    /Ask the authority for a key to bind the account with, and write eab_key_id and eab_hmac_key into gatehouse\.toml/,
  )
  for (const wrong of [
    { ...binding, keyId: 'gatehouse-2' },
    { ...binding, hmacKey: Buffer.from('another key altogether, of 32 b.').toString('base64url') },
  ]) {
    await rm(path.join(box.state, 'attempts.json'))
    await said(
      box,
      (await box.run({ binding: wrong })).record,
      'GH_CERTS_ACCOUNT',
      /Check email, eab_key_id and eab_hmac_key in gatehouse\.toml/,
    )
  }
  assert.equal(await box.challenges(), 0)
  await rm(path.join(box.state, 'attempts.json'))
  const right = await box.run({ binding })
  assert.equal(right.record.result, 'ok', right.said)
  const later = await box.run({ ahead: 62 * day })
  assert.equal(later.record.result, 'ok', later.said)
  assert.deepEqual([later.record.totals!.issued, later.record.totals!.attempts], [2, 5])
})

test("the binding's key goes from the credential to the authority, and into no log and no file", async (t) => {
  const box = await make()
  const config = path.dirname(box.tls)
  const credentials = path.join(config, 'credentials')
  const socket = path.join(config, 'certs.sock')
  let names = [name]
  const server = createCertsServer(
    {
      names: () => names,
      problem: () => ({
        code: 'GH_HTTPS_DISABLED',
        message: 'HTTPS is not enabled on the tailnet, so there can be no certificate',
        cure: 'Enable it in the admin console',
      }),
      setDNS: async (record, value) => {
        await node.setDNS(record, value)
      },
    },
    pino({ enabled: false }),
  )
  await once(server.listen(socket), 'listening')
  t.after(() => server.close())
  await copyFile(lab.ready.authority, path.join(config, 'authority.pem'))
  await mkdir(credentials)
  await writeFile(path.join(credentials, 'eab-hmac-key'), `${binding.hmacKey}\n`, { mode: 0o600 })
  await writeFile(
    path.join(config, 'gatehouse.toml'),
    `[certificates]\ndirectory = "${lab.ready.acmeDirectory}"\nca_file = "authority.pem"\n` +
      `eab_key_id = "${binding.keyId}"\n`,
  )
  const gatehouse = async (): Promise<Result & { record: CertsRecord }> => {
    const env = {
      GATEHOUSE_CONFIG_DIR: config,
      GATEHOUSE_TLS_DIR: box.tls,
      STATE_DIRECTORY: box.state,
      CREDENTIALS_DIRECTORY: credentials,
      GATEHOUSE_CERTS_SOCKET: socket,
      GATEHOUSE_CERTS_PATIENCE: '0',
      GATEHOUSE_CERTS_WAIT: '0',
    }
    const result = await lab.run(node.ns, [
      'env',
      ...Object.entries(env).map(([key, value]) => `${key}=${value}`),
      process.execPath,
      path.join(import.meta.dirname, '../../src/main.ts'),
      'certs',
    ])
    return {
      ...result,
      record: JSON.parse(await readFile(path.join(box.tls, 'status.json'), 'utf8')) as CertsRecord,
    }
  }
  const first = await gatehouse()
  assert.equal(first.record.result, 'ok', first.stdout + first.stderr)
  assert.ok(
    Math.abs(Date.parse(first.record.goodTime!) - Date.now()) < 120_000,
    "the authority's Date was taken for the last good time",
  )
  const files = (
    await Promise.all(
      [box.tls, box.state].map(async (dir) =>
        (await readdir(dir)).map((file) => path.join(dir, file)),
      ),
    )
  ).flat()
  assert.ok(files.length >= 4, files.join())
  for (const text of [
    first.stdout,
    first.stderr,
    ...(await Promise.all(files.map(async (file) => await readFile(file, 'utf8')))),
  ])
    assert.ok(!text.includes(binding.hmacKey.slice(0, 12)))

  // HTTPS switched off on the tailnet: the agent has no names, the certificate that is there is
  // judged all the same.
  names = []
  const off = await gatehouse()
  assert.deepEqual(
    [off.code, off.record.code, off.record.severity],
    [1, 'GH_CERTS_HTTPS_DISABLED', 'warning'],
  )
  assert.match(
    off.stderr,
    /there is no name to get a certificate for: HTTPS is not enabled on the tailnet.*Enable it in the admin console/,
  )
  assert.ok(off.record.daysLeft! >= 88, String(off.record.daysLeft))
  assert.equal((await box.gateway()).failures.GH_CERTS_HTTPS_DISABLED, 1)
})

test('the challenge is not in DNS yet, or another is: both are told, and the order is made again', async () => {
  const box = await make()
  for (const publish of ['nothing', 'wrong'] as const) {
    await said(
      box,
      (await box.run({ binding, publish })).record,
      'GH_CERTS_DNS',
      /The challenge was published but not accepted; it is tried again later/,
    )
    await rm(path.join(box.state, 'attempts.json'))
  }
  const { record, said: log } = await box.run({ binding })
  assert.equal(record.result, 'ok', log)
  assert.deepEqual((await box.gateway()).failures, { GH_CERTS_DNS: 2 })
})

test('an order that the authority will not have', async () => {
  const blocked = await lab.client('blocked')
  const box = await Box.make(lab, blocked, (await blocked.status()).name)
  assert.equal(box.name, `blocked.${suffix}`)
  await said(
    box,
    (await box.run({ binding })).record,
    'GH_CERTS_ORDER',
    /issues no certificate: .*(blocked|policy|forbids|Identifier)/i,
  )
  assert.equal(await box.challenges(), 0)
})

test('an authority that is down: the old certificate stays, and it grows loud', async () => {
  const box = await make()
  assert.equal((await box.run({ binding })).record.result, 'ok')
  const old = await readFile(box.file, 'utf8')
  const severities: string[] = []
  for (const days of [62, 70, 80]) {
    const { record } = await box.run({
      binding,
      directory: 'https://10.77.0.4:444/dir',
      ahead: days * day,
    })
    assert.equal(record.code, 'GH_CERTS_AUTHORITY_DOWN')
    severities.push(record.severity!)
    await rm(path.join(box.state, 'attempts.json'))
  }
  assert.deepEqual(severities, ['info', 'warning', 'error'])
  const { record } = await box.run({
    binding,
    directory: 'https://10.77.0.4:444/dir',
    ahead: 80 * day,
  })
  await said(
    box,
    record,
    'GH_CERTS_AUTHORITY_DOWN',
    /the ACME directory 10\.77\.0\.4:444 cannot be reached \(ECONNREFUSED\)\. Check the network, and directory in gatehouse\.toml\. The one in use is good for 9 days more/,
  )
  assert.equal(await readFile(box.file, 'utf8'), old)
})

test('a disk without a byte left: nothing is asked for, and the record says so all the same', async () => {
  const box = await make()
  assert.equal((await box.run({ binding })).record.result, 'ok')
  const asked = await box.challenges()
  const script = `set -e; d=$1; shift; keep=$(mktemp -d); cp -a "$d"/. "$keep"; mount -t tmpfs -o size=128k none "$d"; cp -a "$keep"/. "$d"; rm -r "$keep"
dd if=/dev/zero of="$d/filler" bs=1k 2>/dev/null || true
"$@" >/dev/null; cat "$d/status.json"`
  const { stdout, stderr } = await lab.run(node.ns, [
    'unshare',
    '-m',
    'sh',
    '-c',
    script,
    'sh',
    box.tls,
    ...box.argv({ binding, ahead: 72 * day }),
  ])
  const record = JSON.parse(stdout) as CertsRecord
  assert.deepEqual([record.code, record.severity], ['GH_CERTS_DISK', 'warning'], stderr)
  await writeFile(path.join(box.tls, 'status.json'), stdout)
  await said(box, record, 'GH_CERTS_DISK', /it could not be kept in .*ENOSPC.*Make room/)
  assert.equal(await box.challenges(), asked)
})

test('a power cut in the middle of it: said while the next attempt is waited for, noted once it was made', async () => {
  const box = await make()
  const child = lab.exec(node.ns, box.argv({ binding }), { stdio: ['ignore', 'ignore', 'ignore'] })
  const ended = once(child, 'exit')
  while ((await box.challenges()) === 0) await new Promise((resolve) => setTimeout(resolve, 10))
  child.kill('SIGKILL')
  await ended
  const cut = await box.run({ binding })
  assert.equal(cut.record.result, 'waiting')
  assert.match(cut.record.problem!, /was cut short\. It is made again by itself/)
  const { status } = await box.gateway()
  assert.match(status, /last look .*waiting \(GH_CERTS_INTERRUPTED, error\), next attempt/)
  const again = await box.run({ binding, ahead: 60_000 })
  assert.equal(again.record.result, 'ok', again.said)
  const after = await box.gateway()
  assert.match(after.status, /an attempt for .* was cut short \(GH_CERTS_INTERRUPTED\)/)
  assert.deepEqual(after.failures, { GH_CERTS_INTERRUPTED: 1 })
})

test('key and certificate that do not match, and a directory that was tampered with: put right, and noted', async () => {
  const box = await make()
  assert.equal((await box.run({ binding })).record.result, 'ok')
  const first = await readFile(box.file, 'utf8')
  const other = await make()
  assert.equal((await other.run({ binding })).record.result, 'ok')
  const key = /-----BEGIN[^-]+PRIVATE KEY-----[^]*/
  await writeFile(box.file, first.replace(key, key.exec(await readFile(other.file, 'utf8'))![0]))
  const mismatch = await box.run({ binding })
  assert.equal(mismatch.record.result, 'ok', mismatch.said)
  await box.certificate()
  await rm(box.file)
  await mkdir(box.file)
  const tampered = await box.run({ binding })
  assert.equal(tampered.record.result, 'ok', tampered.said)
  await box.certificate()
  const { status, failures } = await box.gateway()
  assert.match(
    status,
    /on disk was not usable: its key does not belong to its certificate\. It was replaced \(GH_CERTS_MISMATCH\)/,
  )
  assert.match(
    status,
    /is not a file, and makes room for one\. Find out what put it there \(GH_CERTS_TAMPERED\)/,
  )
  assert.deepEqual(failures, { GH_CERTS_MISMATCH: 1, GH_CERTS_TAMPERED: 1 })
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0)
})
