import assert from 'node:assert/strict'
import { randomInt } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Scenario, answers, rounds } from '../stage.ts'
import { eventually } from '../../vm/appliance.ts'

/**
 * The clock after the last cut: its battery has gone wrong too. What becomes of that is the next
 * scenario's (clock-2040).
 */
export const clock = '2040-01-01T12:00:00'

export const scenario: Scenario = {
  fault: 'the power goes while flows are deployed, one after another',
  // What is answered may be half a minute from being on the card: /var is mounted with commit=30.
  holds:
    'the flows are those of one of the deploys, whole; certificate, name and address are the same, and it serves',
  async run(stage) {
    stage.before.certificate = await stage.certificate()
    const [before] = (await stage.lab.nodes()).filter((node) => node.hostname === 'gatehouse')
    const seen: string[] = []
    for (let round = 0; round < rounds; round++) {
      let deployed = 0
      let over = false
      assert.equal((await stage.deploy(answers('which', 'deploy 0'))).status, 204)
      await stage.run('sync')
      const deploying = (async () => {
        // Some 300 kB each, so that writing takes a while.
        while (!over) {
          const next = deployed + 1
          const answer = await stage
            .deploy([
              ...answers('which', `deploy ${next}`),
              {
                id: 'much',
                type: 'comment',
                z: 'f6f2187d.f17ca8',
                name: '',
                info: 'x'.repeat(300_000),
                wires: [],
              },
            ])
            .catch(() => undefined)
          if (answer?.status === 204) deployed = next
        }
      })()
      await eventually('deploys go on', 200, async () => deployed > 0 || undefined)
      await sleep(randomInt(3_000))
      await stage.machine.kill()
      over = true
      await stage.machine.start(round === rounds - 1 ? { clock } : {})
      await deploying
      await stage.served(500)
      const text = await eventually('a flow answers', 200, async () => {
        const answer = await stage.fetch('/app/which')
        return answer.status === 200 ? answer.body.toString() : undefined
      })
      const number = Number(/^deploy (\d+)$/.exec(text)?.[1])
      assert.ok(number >= 0 && number <= deployed + 1, `${text} after ${deployed} deploys`)
      seen.push(`${text} of ${deployed}`)
    }
    assert.equal(await stage.certificate(), stage.before.certificate)
    assert.deepEqual(
      (await stage.lab.nodes())
        .filter((node) => node.hostname === 'gatehouse')
        .map((node) => [node.name, node.addresses]),
      [[before!.name, before!.addresses]],
    )
    return seen.join('; ')
  },
}
