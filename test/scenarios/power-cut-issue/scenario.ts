import assert from 'node:assert/strict'
import { randomInt } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Scenario, rounds } from '../stage.ts'

export const scenario: Scenario = {
  fault: 'the power goes while a certificate is issued; the clock then says 1970',
  holds:
    'the next boot has a certificate whose key is its own, from the same account, and ' +
    'serves; no more are asked for than that takes',
  async run(stage) {
    const account =
      'cd /var/lib/gatehouse-certs && find . -name "*account*" -type f | sort | xargs sha256sum'
    const before = await stage.run(account)
    assert.notEqual(before, '', 'there is an account')
    const seen: string[] = []
    for (let round = 0; round < rounds; round++) {
      await stage.run(
        'systemctl stop gatehouse-certs.service; rm -f /var/lib/gatehouse-tls/*.pem; sync',
      )
      await stage.run('systemctl start --no-block gatehouse-certs.service')
      const ms = randomInt(200, 12_000)
      await sleep(ms)
      await stage.machine.kill()
      await stage.machine.start({ clock: '1970-01-01T00:01:00' })
      const seconds = await stage.served(500)
      seen.push(
        `cut after ${(ms / 1000).toFixed(1)} s, serves ${seconds.toFixed(0)} s after the next start`,
      )
    }
    assert.equal(await stage.run(account), before)
    const issued = Number(
      await stage.run(
        'node -p "JSON.parse(fs.readFileSync(\'/var/lib/gatehouse-tls/status.json\')).totals.issued"',
      ),
    )
    assert.ok(issued <= 1 + 2 * rounds, `${issued} certificates in ${rounds} rounds`)
    const first = await stage.run('journalctl -b --no-pager -o short-iso -k | head -1 | cut -c1-10')
    return `${seen.join('; ')}; that boot began on ${first}`
  },
}
