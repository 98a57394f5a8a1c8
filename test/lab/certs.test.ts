/**
 * Years of the certificate agent against a real authority (Pebble): renewals, its word on when,
 * power cuts, full disks.
 */
import assert from 'node:assert/strict'
import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { copyFile, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import http from 'node:http'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { pino } from 'pino'
import { certificateId } from '../../src/certs/ari.ts'
import { limits } from '../../src/certs/ledger.ts'
import { parseCertificate } from '../../src/certs/pem.ts'
import type { CertsRecord } from '../../src/certs/record.ts'
import { createCertsServer } from '../../src/gateway/operate/control.ts'
import { Box, noted as countNoted } from './box.ts'
import type { Journey, RunOptions } from './issue.ts'
import { Lab, type LabClient, type Result } from './lab.ts'

const day = 86_400_000
let lab: Lab
let node: LabClient
let name: string

before(async () => {
  // Handed down to the authority: it refuses every other good nonce.
  process.env['PEBBLE_WFE_NONCEREJECT'] = '50'
  lab = await Lab.start({ name: 'certs' })
  node = await lab.client('gateway')
  name = (await node.status()).name
})
after(async () => await lab?.stop())

const make = async (): Promise<Box> => await Box.make(lab, node, name)
const noted = async (what: RegExp): Promise<number> => await countNoted(lab, what)
const replacing = /is a replacement of/

/**
 * Orders that Pebble takes for replacements of a certificate: 1, or 0 for one in 256, whose serial
 * number begins with a zero byte in DER. RFC 9773 §4.1 has that byte in the identifier; Pebble
 * 2.10.1 looks for the number without it.
 */
function replacements(leaf: X509Certificate): number {
  return Buffer.from(certificateId(leaf)!.split('.')[1]!, 'base64url')[0] === 0 ? 0 : 1
}

test('an authority that refuses every other nonce', async () => {
  const box = await make()
  assert.equal((await box.run()).record.result, 'ok')
  assert.equal(await noted(/Configured to reject 50% of good nonces/), 1)
})

test('the authority is asked when to renew, and told what is replaced', async () => {
  const box = await make()
  const first = await box.run()
  assert.equal(first.record.result, 'ok', first.said)
  const old = await box.certificate()
  const { record } = await box.run()
  const { from, renewAt } = record.certificates![0]!
  const at = (Date.parse(renewAt) - old.validFromDate.getTime()) / day
  assert.equal(from, 'authority')
  assert.ok(at >= 59 && at <= 61, `after ${at} days`)
  assert.equal((await box.run()).record.certificates![0]!.renewAt, renewAt)
  const before = await noted(replacing)
  const renewed = await box.run({ ahead: 62 * day })
  assert.equal(renewed.record.result, 'ok', renewed.said)
  assert.match(renewed.said, /the moment the authority suggested has come/)
  assert.notEqual((await box.certificate()).serialNumber, old.serialNumber)
  assert.equal(await noted(replacing), before + replacements(old), renewed.said)
})

test('a certificate that was replaced already is replaced all the same; one of no account of ours too', async () => {
  const box = await make()
  await box.run()
  const pem = await readFile(box.file)
  await box.run({ ahead: 62 * day })
  const second = await box.certificate()
  // As after a backup was restored: the old certificate is back, and the authority knows it as
  // replaced.
  await writeFile(box.file, pem)
  await rm(path.join(box.state, 'renewals.json'), { force: true })
  const before = await noted(replacing)
  const third = await box.run({ ahead: 63 * day })
  assert.equal(third.record.result, 'ok', third.said)
  assert.notEqual((await box.certificate()).serialNumber, second.serialNumber)
  const stranger = await make()
  await writeFile(stranger.file, pem)
  const fourth = await stranger.run({ ahead: 62 * day })
  assert.equal(fourth.record.result, 'ok', fourth.said)
  assert.notEqual(
    certificateId(await stranger.certificate()),
    certificateId(new X509Certificate(pem)),
  )
  assert.equal(await noted(replacing), before, 'neither order was taken for a replacement')
})

test('profiles: one that is offered is asked for, another is refused with those there are', async () => {
  const box = await make()
  const wrong = await box.run({ profile: 'longlived' })
  assert.equal(wrong.record.result, 'failed')
  assert.match(
    wrong.record.problem!,
    /has no profile "longlived"\. Write one of default in gatehouse\.toml/,
  )
  assert.equal(await box.challenges(), 0)
  await rm(path.join(box.state, 'attempts.json'))
  assert.equal((await box.run({ profile: 'default' })).record.result, 'ok')
})

for (const days of [90, 45, 6]) {
  test(`${days}-day certificates: three renewals, each at the moment the authority suggested`, async () => {
    const box = await make()
    const lifetime = days * day
    let expected = await noted(replacing)
    assert.equal((await box.run({ lifetime })).record.result, 'ok')
    for (let i = 1; i <= 3; i++) {
      const old = await box.certificate()
      assert.equal(
        Math.round((old.validToDate.getTime() - old.validFromDate.getTime()) / day),
        days,
      )
      const { from, renewAt } = (await box.run({ lifetime })).record.certificates![0]!
      // Pebble suggests two days around two thirds of the lifetime.
      const after = (Date.parse(renewAt) - old.validFromDate.getTime()) / day
      assert.equal(from, 'authority')
      assert.ok(Math.abs(after - (days * 2) / 3) < 1.1, `after ${after} of ${days} days`)
      const early = await box.run({ lifetime, ahead: Date.parse(renewAt) - Date.now() - 60_000 })
      assert.equal(early.record.result, 'ok')
      assert.equal((await box.certificate()).serialNumber, old.serialNumber)
      const due = await box.run({ lifetime, ahead: Date.parse(renewAt) - Date.now() + 60_000 })
      assert.match(due.said, /the moment the authority suggested has come/)
      assert.notEqual((await box.certificate()).serialNumber, old.serialNumber)
      expected += replacements(old)
      assert.equal(await noted(replacing), expected, due.said)
    }
  })
}

test('a year of 6-day certificates, a look each six hours, with a clock that falls back to 1970, jumps ten years ahead and lags a month', async (t) => {
  const box = await make()
  const before = await noted(/Issued certificate/)
  const { code, stdout, stderr } = await lab.run(
    node.ns,
    box.argv({
      lifetime: 6 * day,
      days: 365,
      wrongClock: [
        { from: 100, to: 101, clock: 0 },
        { from: 200, to: 200.5, clock: { ahead: 3_650 * day } },
        { from: 300, to: 301, clock: { ahead: -30 * day } },
      ],
    }),
  )
  assert.equal(code, 0, stderr)
  const journey = JSON.parse(stdout) as Journey
  t.diagnostic(
    `${journey.runs} runs, ${journey.certificates.length} certificates, ` +
      `${(await noted(/Issued certificate/)) - before} by the authority's count, ` +
      `${journey.troubles.length} runs in trouble`,
  )
  assert.equal(journey.runs, 1460)
  assert.deepEqual(journey.expired, [], 'never expired in place')
  assert.ok(
    journey.certificates.length >= 85 && journey.certificates.length <= 98,
    `${journey.certificates.length} certificates`,
  )
  // What a wrong clock makes it ask for is little, and is over with it.
  assert.ok((await noted(/Issued certificate/)) - before <= journey.certificates.length + 4)
  const later = journey.troubles.filter(({ wrongClock }) => !wrongClock)
  assert.ok(
    journey.troubles.length > 0 && later.every(({ day }) => day > 200 && day < 202),
    JSON.stringify(journey.troubles),
  )
  assert.ok(
    journey.troubles.some(({ day, code }) => day === 100 && code === 'GH_CERTS_CLOCK'),
    JSON.stringify(journey.troubles),
  )
  assert.equal(journey.last.result, 'ok')
})

test('certificates of seconds, one after the other: never expired in place', async () => {
  const box = await make()
  const serials = new Set<string>()
  for (const end = Date.now() + 25_000; Date.now() < end; await sleep(200)) {
    const { record, said } = await box.run({ lifetime: 12_000 })
    const leaf = await box.certificate()
    assert.ok(
      leaf.validToDate.getTime() > Date.now() || serials.size === 0,
      `expired at ${leaf.validTo}: ${record.result} ${said}`,
    )
    serials.add(leaf.serialNumber)
  }
  assert.ok(serials.size >= 3, `${serials.size} certificates`)
})

test('killed at a random moment, twenty times: a whole certificate afterwards, the old one or the new', async (t) => {
  const box = await make()
  // A clock 250 s ahead: what is issued for 300 s is due and good.
  const options = { lifetime: 300_000, ahead: 250_000 }
  assert.equal((await box.run(options)).record.result, 'ok')
  await rm(path.join(box.state, 'attempts.json'))
  // How long a run takes here and now.
  const begin = performance.now()
  assert.equal((await box.run(options)).record.result, 'ok')
  const usual = performance.now() - begin
  await rm(path.join(box.state, 'attempts.json'))
  let replaced = 0
  let killed = 0
  let rounds = 0
  for (; rounds < 20 || ((killed < 5 || replaced < 1) && rounds < 60); rounds++) {
    const before = await readFile(box.file, 'utf8')
    const child = lab.exec(node.ns, box.argv(options), { stdio: ['ignore', 'ignore', 'ignore'] })
    const ended = once(child, 'exit')
    await Promise.race([ended, sleep(usual * (0.3 + Math.random()))])
    if (child.exitCode === null) {
      killed++
      child.kill('SIGKILL')
    }
    await ended
    const text = await readFile(box.file, 'utf8')
    parseCertificate(text, name)
    if (text !== before) replaced++
    // Ledger and account are whole too; the ledger is put back, or it would hold back the next
    // rounds.
    for (const file of ['attempts.json', 'renewals.json']) {
      const content = await readFile(path.join(box.state, file), 'utf8').catch(() => '{}')
      assert.equal(typeof JSON.parse(content), 'object')
    }
    await rm(path.join(box.state, 'attempts.json'), { force: true })
  }
  t.diagnostic(`${killed} of ${rounds} killed, ${replaced} replaced`)
  assert.ok(killed >= 5 && replaced >= 1, `${killed} killed, ${replaced} replaced`)
  const last = await box.run(options)
  assert.equal(last.record.result, 'ok', last.said)
  assert.deepEqual(
    (await readdir(box.tls)).toSorted(),
    [`${name}.pem`, 'status.json'],
    'nothing is left over',
  )
})

test('killed and started again without end: the authority is asked no more often than it counts', async (t) => {
  const box = await make()
  const before = {
    validations: await noted(/Starting \d+ validations/),
    issues: await noted(/Issued certificate/),
  }
  for (let round = 0; round < 50; round++) {
    // Its clock moves on a minute with each start, 50 minutes in all.
    const child = lab.exec(node.ns, box.argv({ ahead: round * 60_000 }), {
      stdio: ['ignore', 'ignore', 'ignore'],
    })
    const ended = once(child, 'exit').then(() => true)
    const published = await box.challenges()
    // Somewhere between the challenge and the certificate.
    for (let over = false; !over && (await box.challenges()) === published;)
      over = await Promise.race([ended, sleep(5, false)])
    await Promise.race([ended, sleep(Math.random() * 120)])
    child.kill('SIGKILL')
    await ended
    await rm(box.file, { force: true })
  }
  const issues = (await noted(/Issued certificate/)) - before.issues
  const failed = (await noted(/Starting \d+ validations/)) - before.validations - issues
  t.diagnostic(`50 starts: ${issues} certificates, ${failed} validations that came to nothing`)
  assert.ok(issues + failed >= 2, 'it was tried')
  assert.ok(
    issues <= limits.certificatesAWeek && failed <= limits.validationsAnHour,
    `${issues} certificates, ${failed} failed validations`,
  )
})

test('validation that keeps failing, the agent started every five minutes: the old certificate stays, the authority is spared', async () => {
  const box = await make()
  assert.equal((await box.run()).record.result, 'ok')
  const old = await readFile(box.file, 'utf8')
  const before = await noted(/Starting \d+ validations/)
  let last: CertsRecord | undefined
  for (let minutes = 0; minutes < 120; minutes += 5)
    last = (await box.run({ ahead: 80 * day + minutes * 60_000, publish: 'wrong' })).record
  const asked = (await noted(/Starting \d+ validations/)) - before
  // At 0, 15 to 19, 45 to 56 and 105 to 131 minutes.
  assert.ok(asked >= 3 && asked <= 4, `${asked} validations in two hours`)
  assert.equal(await readFile(box.file, 'utf8'), old)
  assert.deepEqual([last!.severity, last!.daysLeft], ['error', 9])
  assert.match(
    last!.problem!,
    /The challenge was published but not accepted; it is tried again later\. The one in use is good for 9 days more/,
  )
})

test("gatehouse certs, the command: names and challenges over the gateway's socket, settings from gatehouse.toml, loud in the journal", async (t) => {
  const box = await make()
  const config = path.dirname(box.tls)
  const socket = path.join(config, 'certs.sock')
  let names = [name]
  let enabled = true
  const server = createCertsServer(
    {
      names: () => names,
      problem: () => undefined,
      setDNS: async (record, value) => {
        if (!enabled) throw new Error('HTTPS is not enabled')
        await new Promise<void>((resolve, reject) => {
          const request = http.request(
            { socketPath: path.join(node.dir, 'client.sock'), path: '/setdns', method: 'POST' },
            (response) => {
              response.resume().on('end', () => {
                if (response.statusCode === 204) resolve()
                else reject(new Error(`setdns: ${response.statusCode}`))
              })
            },
          )
          request.once('error', reject).end(JSON.stringify({ name: record, value }))
        })
      },
    },
    pino({ enabled: false }),
  )
  await once(server.listen(socket), 'listening')
  t.after(() => server.close())
  await copyFile(lab.ready.authority, path.join(config, 'authority.pem'))
  const settings = async (more: string): Promise<void> => {
    await writeFile(
      path.join(config, 'gatehouse.toml'),
      `[certificates]\ndirectory = "${lab.ready.acmeDirectory}"\nca_file = "authority.pem"\n${more}`,
    )
  }
  await settings('')
  const gatehouse = async (): Promise<Result & { record: CertsRecord }> => {
    const env = {
      GATEHOUSE_CONFIG_DIR: config,
      GATEHOUSE_TLS_DIR: box.tls,
      STATE_DIRECTORY: box.state,
      GATEHOUSE_CERTS_SOCKET: socket,
      GATEHOUSE_CERTS_PATIENCE: '5',
      JOURNAL_STREAM: '0:0',
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
      record: JSON.parse(await readFile(path.join(box.tls, 'status.json'), 'utf8')),
    }
  }
  enabled = false
  const off = await gatehouse()
  assert.equal(off.code, 1)
  assert.match(
    off.stdout,
    /^<3>no certificate for .*HTTPS is not enabled.*check that HTTPS is enabled for the tailnet/,
  )
  assert.deepEqual(
    [off.record.result, off.record.severity, off.record.daysLeft],
    ['failed', 'error', 0],
  )
  await rm(path.join(box.state, 'attempts.json'))
  await writeFile(path.join(box.state, '.account.pem.1.tmp'), 'what a power cut left')
  enabled = true
  const first = await gatehouse()
  assert.equal(first.code, 0, first.stderr + first.stdout)
  assert.match(first.stdout, /^certificate for .* \(the first\)/)
  assert.deepEqual(
    (await readdir(box.state)).filter((file) => file.startsWith('.')),
    [],
  )
  const serial = (await box.certificate()).serialNumber
  const again = await gatehouse()
  assert.deepEqual(
    [again.code, again.record.certificates!.map(({ from }) => from)],
    [0, ['authority']],
  )
  assert.equal((await box.certificate()).serialNumber, serial)
  // A name of the tailnet that is not this node's: the control server refuses, the one that is
  // there is not touched.
  names = [name, `stranger.${lab.ready.suffix}`]
  const foreign = await gatehouse()
  assert.equal(foreign.code, 1)
  assert.match(foreign.record.problem!, /no certificate for stranger/)
  assert.equal((await box.certificate()).serialNumber, serial)
  await rm(box.file)
  names = [name]
  await settings('profile = "nosuch"\n')
  const profile = await gatehouse()
  assert.match(profile.record.problem!, /has no profile "nosuch"/)
})

/**
 * Runs the agent with `directory` on a disk of its own, of so many bytes, and prints what is in
 * place of the certificate afterwards.
 */
async function withDisk(
  box: Box,
  directory: string,
  size: string,
  prepare: string,
  options: Partial<RunOptions>,
): Promise<Result> {
  const script = `set -e; d=$1 f=$2; shift 2; keep=$(mktemp -d); cp -a "$d"/. "$keep"; mount -t tmpfs -o size=${size} none "$d"; cp -a "$keep"/. "$d"; rm -r "$keep"; ${prepare}
"$@" >&2 || echo "exit $?" >&2; cat "$f"`
  return await lab.run(node.ns, [
    'unshare',
    '-m',
    'sh',
    '-c',
    script,
    'sh',
    directory,
    box.file,
    ...box.argv(options),
  ])
}

test('a full disk: the old certificate stays; where it was full before, the authority is not even asked', async () => {
  const box = await make()
  await box.run()
  const old = await readFile(box.file, 'utf8')
  const asked = await box.challenges()
  const ahead = 62 * day
  const filled = 'dd if=/dev/zero of="$d/filler" bs=1k 2>/dev/null || true'
  const full = await withDisk(box, box.tls, '128k', filled, { ahead })
  assert.equal(full.stdout, old, full.stderr)
  assert.match(full.stderr, /ENOSPC/)
  const uncounted = await withDisk(box, box.state, '128k', filled, { ahead })
  assert.equal(uncounted.stdout, old, uncounted.stderr)
  assert.match(uncounted.stderr, /ENOSPC/)
  assert.equal(await box.challenges(), asked, 'asked for nothing')
  await rm(path.join(box.state, 'attempts.json'))
  const meanwhile = await withDisk(box, box.tls, '256k', 'rm "$d/status.json"', {
    ahead,
    fill: path.join(box.tls, 'filler'),
  })
  assert.equal(meanwhile.stdout, old, meanwhile.stderr)
  assert.match(meanwhile.stderr, /ENOSPC/)
  assert.equal(await box.challenges(), asked + 1)
})
