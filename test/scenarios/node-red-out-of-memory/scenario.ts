import assert from 'node:assert/strict'
import { type Scenario, answers, runs } from '../stage.ts'
import { eventually } from '../../vm/appliance.ts'

export const scenario: Scenario = {
  fault: 'a flow takes all the memory it can get',
  holds:
    'the kernel ends that, not the gateway, which answers all the while; Node-RED is back by itself',
  async run(stage) {
    const [gateway, nodeRed] = [await stage.unit('gatehouse'), await stage.unit('node-red')]
    const begun = performance.now()
    // tail keeps what has no line end.
    assert.equal(
      (
        await stage.deploy([
          ...runs('head -c 4G /dev/zero | tail', 'eat'),
          ...answers('hello', 'the keep says hello'),
        ])
      ).status,
      204,
    )
    const eating = stage.fetch('/app/eat', { timeout: 300_000 }).catch(() => undefined)
    let slowest = 0
    await eventually('the kernel ends it', 300, async () => {
      // The gateway's own answer: Node-RED has no part in it.
      const answer = await stage.client.fetch(`http://${await stage.name()}/`, { timeout: 30_000 })
      assert.equal(answer.status, 308)
      slowest = Math.max(slowest, answer.ms)
      return (
        (await stage.run('journalctl -b --no-pager -o cat -u node-red -n 100')).includes(
          'OOM killer',
        ) || undefined
      )
    })
    await eating
    await eventually(
      'the flow answers',
      300,
      async () =>
        (await stage.fetch('/app/hello')).body.toString() === 'the keep says hello' || undefined,
    )
    const now = await stage.unit('node-red')
    assert.deepEqual(await stage.unit('gatehouse'), gateway, 'the gateway went on')
    return (
      `answers within ${(slowest / 1000).toFixed(1)} s meanwhile; Node-RED ` +
      `${now.pid === nodeRed.pid ? 'itself went on' : 'was started anew'}, flow answers after ` +
      `${((performance.now() - begun) / 1000).toFixed(0)} s`
    )
  },
}
