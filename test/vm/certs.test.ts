/**
 * Certificates on the booted image: an authority that wants bound accounts, who may read what, a
 * run when the gateway wants one, and a machine that starts in 2020 with no time server to ask.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { Lab, type LabClient } from '../lab/lab.ts'
import {
  bootAppliance,
  editor,
  eventually,
  joined,
  settings,
  statusOf,
  tried,
} from './appliance.ts'
import type { Machine } from './machine.ts'

const hmacKey = 'zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W'
let lab: Lab
let client: LabClient
let machine: Machine
let name: string

before(async () => {
  process.env['LAB_ACME_EAB'] = `gatehouse-1:${hmacKey}`
  lab = await Lab.start({ name: 'vmcerts' })
  client = await lab.client('laptop')
  machine = await bootAppliance(lab, tried, {
    toml: `${settings(lab)}eab_key_id = "gatehouse-1"\neab_hmac_key = "${hmacKey}"\n`,
  })
  name = (await joined(lab)).name
  await editor(client, name)
})

after(async () => {
  delete process.env['LAB_ACME_EAB']
  await machine?.destroy()
  await lab?.stop()
})

const run = async (
  command: string,
  options: { user?: string; timeout?: number } = {},
): Promise<string> => {
  const { code, stdout, stderr } = await machine.run(command, { timeout: 120, ...options })
  assert.equal(code, 0, `${command}: ${stdout}${stderr}`)
  return stdout.trim()
}
/** What the agent's last run left. */
const record = async (): Promise<Record<string, any>> =>
  JSON.parse(await run('cat /var/lib/gatehouse-tls/status.json'))

test('the account was bound with the key of gatehouse.toml, which nobody else gets to see', async () => {
  assert.equal((await record())['result'], 'ok')
  // On the FAT partition, for root alone, it is where the person wrote it; and for as long as the
  // device is on, in memory, for root alone too.
  assert.equal(
    await run(`grep -rlsF ${hmacKey} /var /run /etc /tmp --exclude-dir=gatehouse-test || true`),
    '/run/gatehouse-provision/eab-hmac-key',
  )
  assert.equal(await run(`journalctl --no-pager | grep -cF ${hmacKey} || true`), '0')
  assert.equal(await run('stat -c "%a %U" /run/gatehouse-provision/eab-hmac-key'), '600 root')
})

test('keys are for those who need them', async () => {
  const may = async (user: string, file: string): Promise<boolean> =>
    (await machine.run(`cat ${file} >/dev/null`, { user })).code === 0
  const [account, certificate] = [
    '/var/lib/gatehouse-certs/account.pem',
    `/var/lib/gatehouse-tls/${name}.pem`,
  ]
  assert.equal(
    await run(`stat -c "%a %U %G" ${account} ${certificate}`),
    '600 gatehouse-certs gatehouse-certs\n640 gatehouse-certs gatehouse',
  )
  const allowed = Object.fromEntries(
    await Promise.all(
      ['gatehouse', 'gatehouse-certs', 'node-red'].map(async (user) => [
        user,
        [await may(user, account), await may(user, certificate)],
      ]),
    ),
  )
  assert.deepEqual(allowed, {
    gatehouse: [false, true],
    'gatehouse-certs': [true, true],
    'node-red': [false, false],
  })
})

test('the agent runs when the gateway writes its names anew, long before the timer comes round', async () => {
  const before = (await record())['checkedAt'] as string
  await run('cd /run/gatehouse && cp names .names.test && mv .names.test names', {
    user: 'gatehouse',
  })
  const after = await eventually('a run', 300, async () => {
    const { checkedAt, result } = await record()
    return checkedAt === before ? undefined : { checkedAt, result }
  })
  assert.equal(after.result, 'ok')
})

test('root is sent to systemctl, and leaves no file of its own', async () => {
  const { code, stderr } = await machine.run('gatehouse certs')
  assert.equal(code, 1)
  assert.match(
    stderr,
    /looked after by user number 602.*Leave it to gatehouse-certs.*GH_CERTS_USER/,
  )
  assert.equal(
    await run('find /var/lib/gatehouse-certs /var/lib/gatehouse-tls ! -user gatehouse-certs'),
    '',
  )
})

test('exposure of the unit', async (t) => {
  const line = await run('systemd-analyze security --no-pager gatehouse-certs.service | tail -1')
  const exposure = Number(/exposure level for gatehouse-certs\.service: (\d+\.\d+)/.exec(line)?.[1])
  t.diagnostic(line)
  assert.ok(exposure <= 1.5, line)
})

test('a machine that starts in 2020 and finds no time server goes on from its last time, and serves', async () => {
  const good = Date.parse((await record())['goodTime'])
  assert.ok(Math.abs(good - Date.now()) < 600_000, `last good time ${new Date(good).toISOString()}`)
  assert.equal(
    await run('findmnt -no TARGET -T /var/lib/systemd/timesync/clock'),
    '/var',
    'kept where it outlives updates',
  )
  assert.equal((await lab.run(lab.ns, ['nft', 'add', 'table', 'inet', 'notime'])).code, 0)
  assert.equal(
    (
      await lab.run(lab.ns, [
        'nft',
        'add chain inet notime in { type filter hook input priority 0; }; add rule inet notime in udp dport 123 drop',
      ])
    ).code,
    0,
  )
  const off = Number(await run('date +%s'))
  await machine.powerOff()
  await machine.start({ clock: '2020-01-01T00:00:00' })
  await machine.ready({ timeout: 300 })
  // The shell is there before /var is. systemd-timesyncd sets the clock as soon as it can read its
  // file, and counts as started then.
  const on = Number(await run('systemctl start var.mount systemd-timesyncd && date +%s'))
  assert.ok(
    on >= off - 120 && on * 1000 >= good,
    `the clock says ${new Date(on * 1000).toISOString()} after ${new Date(off * 1000).toISOString()}`,
  )
  assert.match(await run('timedatectl show -p NTPSynchronized'), /=no/)
  await editor(client, name, 300)
})

test('a clock behind the last good time is not believed: nothing is asked for, and status says so', async () => {
  const issued = (await record())['totals'].issued
  await run('systemctl stop systemd-timesyncd; date -s "@$(($(date +%s) - 2 * 86400))"')
  const { code } = await machine.run('systemctl start gatehouse-certs', { timeout: 120 })
  assert.notEqual(code, 0)
  assert.match(
    await run('journalctl --no-pager -u gatehouse-certs -o cat | tail -5'),
    /the clock says .* which is before .*GH_CERTS_CLOCK/,
  )
  const status = await statusOf(machine)
  const problem = status['problems'].find((one: { part: string }) => one.part === 'certificate')
  assert.deepEqual([problem?.code, problem?.severity], ['GH_CERTS_CLOCK', 'warning'])
  assert.match(
    await run('gatehouse metrics'),
    /gatehouse_certificate_failures_total\{code="GH_CERTS_CLOCK"\} [1-9]/,
  )
  await run(
    'date -s "@$(($(date +%s) + 2 * 86400))"; systemctl reset-failed gatehouse-certs; systemctl start gatehouse-certs',
  )
  const { result, totals } = await record()
  assert.deepEqual([result, totals.issued], ['ok', issued])
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0)
})
