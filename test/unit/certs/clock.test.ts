/**
 * The last good time: what may set it, what it keeps from being believed, and that it outlives
 * reboots.
 */
import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { once } from 'node:events'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { createIssuer } from '../../../src/certs/acme.ts'
import { tailnetProver } from '../../../src/certs/proof.ts'
import { GoodTime } from '../../../src/certs/clock.ts'
import type { IssueError } from '../../../src/certs/failure.ts'
import { readRecord } from '../../../src/certs/record.ts'
import { runCerts } from '../../../src/certs/run.ts'
import { paths } from '../../../src/base/paths.ts'
import { Authority } from '../support/authority.ts'

const minute = 60_000
const day = 24 * 60 * minute
const root = mkdtempSync(join(tmpdir(), 'gh-clock-'))
const authority = new Authority()
after(() => {
  authority.close()
  rmSync(root, { recursive: true, force: true })
})
const start = Date.parse('2027-03-01T12:00:00Z')
const at = (ms: number): Date => new Date(start + ms)

test('a time that an authority confirmed is a floor after a reboot; a clock below it is not believed, 1970 least of all', async () => {
  const state = mkdtempSync(join(root, 's-'))
  const first = await GoodTime.open(state)
  assert.equal(first.time, undefined)
  first.check(at(0))
  assert.equal(await first.confirm(at(0), at(-3_000)), true)
  assert.equal(first.time!.toISOString(), at(-3_000).toISOString(), 'the earlier of the two')
  assert.equal(statSync(join(state, 'clock')).mode & 0o777, 0o600)
  const rebooted = await GoodTime.open(state)
  assert.equal(rebooted.time!.toISOString(), at(-3_000).toISOString())
  for (const clock of [new Date(0), new Date(10_000), at(-30 * day), at(-5 * minute)]) {
    assert.throws(() => rebooted.check(clock), { code: 'GH_CERTS_CLOCK' }, clock.toISOString())
  }
  for (const clock of [at(-30_000), at(0), at(365 * day)]) rebooted.check(clock)
})

test('a clock that runs ahead leaves no floor: what nobody confirmed does not count', async () => {
  const state = mkdtempSync(join(root, 's-'))
  const time = await GoodTime.open(state)
  assert.equal(await time.confirm(at(3_650 * day), at(0)), false)
  assert.equal(await time.confirm(at(0), at(61 * minute)), false)
  assert.equal(await time.confirm(at(0), new Date(NaN)), false)
  assert.deepEqual([time.time, readdirSync(state)], [undefined, []])
})

test('the card is spared: written at most once an hour, and never back', async () => {
  const state = mkdtempSync(join(root, 's-'))
  const time = await GoodTime.open(state)
  const file = (): string => readFileSync(join(state, 'clock'), 'utf8').trim()
  await time.confirm(at(0), at(0))
  await time.confirm(at(59 * minute), at(59 * minute))
  await time.confirm(at(-20 * day), at(-20 * day))
  assert.equal(file(), at(0).toISOString())
  await time.confirm(at(61 * minute), at(61 * minute))
  assert.equal(file(), at(61 * minute).toISOString())
  writeFileSync(join(state, 'clock'), 'half a t')
  assert.equal((await GoodTime.open(state)).time, undefined, 'a damaged file is as good as none')
})

test('the command does nothing by a clock behind the last good time, and says so in the record', async () => {
  const [state, tls] = [mkdtempSync(join(root, 's-')), mkdtempSync(join(root, 't-'))]
  await (await GoodTime.open(state)).confirm(at(0), at(0))
  const where = paths({
    GATEHOUSE_TLS_DIR: tls,
    STATE_DIRECTORY: state,
    GATEHOUSE_CONFIG_DIR: '/nonexistent',
  })
  assert.equal(await runCerts(where, {}, () => at(-day)), 1)
  const record = await readRecord(tls)
  assert.deepEqual(
    [record!.code, record!.severity, record!.goodTime, record!.totals!.failures],
    ['GH_CERTS_CLOCK', 'warning', at(0).toISOString(), { GH_CERTS_CLOCK: 1 }],
  )
  assert.match(
    record!.problem!,
    /the clock says 2027-02-28T12:00:00\.000Z, which is before 2027-03-01T12:00:00\.000Z, when it was certainly right\. Check that the network lets NTP/,
  )
  assert.equal(await runCerts(where, {}, () => at(day)), 1)
  assert.equal((await readRecord(tls))!.code, 'GH_CERTS', 'further on: there is no configuration')
})

test('an authority that says it is a day later than the clock is believed, and asked for nothing; over TLS its time is taken', async () => {
  const pem = authority.issue('localhost')
  const date = start
  const asked: string[] = []
  const server = createServer({ cert: pem, key: pem }, (request, response) => {
    asked.push(request.url!)
    response
      .writeHead(200, { 'content-type': 'application/json', date: new Date(date).toUTCString() })
      .end(
        JSON.stringify({
          renewalInfo: 'https://localhost/none',
          newNonce: 'x',
          newAccount: 'x',
          newOrder: 'x',
        }),
      )
  }).listen(0, 'localhost')
  await once(server, 'listening')
  try {
    const heard: Date[] = []
    const issuer = async (now: Date): Promise<IssueError | undefined> => {
      const state = mkdtempSync(join(root, 's-'))
      const made = await createIssuer({
        directory: `https://localhost:${(server.address() as AddressInfo).port}/dir`,
        authorities: authority.certificate,
        email: undefined,
        state,
        now: () => now,
        heard: async (told) => {
          heard.push(told)
        },
        prover: tailnetProver(async () => {}),
      })
      return await made.issue('gatehouse.tail.ts.net').then(
        () => undefined,
        (err: IssueError) => err,
      )
    }
    const behind = await issuer(at(-100 * day))
    assert.equal(behind!.code, 'GH_CERTS_CLOCK')
    assert.match(
      behind!.message,
      /the clock says 2026-11-21.*and the authority localhost:\d+ that it is 2027-03-01T12:00:00/,
    )
    assert.deepEqual([asked, heard], [['/dir'], []], 'nothing but the directory')
    await issuer(at(0))
    assert.deepEqual(
      heard.map((told) => told.getTime()),
      [start],
    )
  } finally {
    server.closeAllConnections()
    server.close()
  }
})
