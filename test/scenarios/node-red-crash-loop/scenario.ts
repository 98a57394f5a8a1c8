import assert from 'node:assert/strict'
import { type Scenario, answers, runs } from '../stage.ts'
import { eventually } from '../../vm/appliance.ts'

export const scenario: Scenario = {
  fault: 'a flow kills Node-RED whenever it starts',
  holds:
    'meanwhile a page says what is wrong; after three times Node-RED starts without flows, ' +
    'the editor is there, and a deploy of better ones is enough',
  async run(stage) {
    const begun = performance.now()
    assert.equal((await stage.deploy(runs('kill -KILL $PPID'))).status, 204)
    const page = await eventually('the page that says what is wrong', 200, async () => {
      const answer = await stage.fetch('/', { timeout: 10_000 })
      return answer.status === 502 || answer.status === 503 ? answer : undefined
    })
    assert.match(page.body.toString(), /Node-RED/)
    await eventually(
      'flows are left stopped',
      400,
      async () =>
        (await stage.run('journalctl -b --no-pager -o cat -u node-red')).includes(
          'gone down three times',
        ) || undefined,
    )
    await stage.served()
    const { restarts } = await stage.unit('node-red')
    assert.equal((await stage.deploy(answers('hello', 'the keep says hello'))).status, 204)
    await eventually(
      'the better flow answers',
      200,
      async () =>
        (await stage.fetch('/app/hello')).body.toString() === 'the keep says hello' || undefined,
    )
    assert.equal((await stage.unit('node-red')).restarts, restarts, 'it stays up')
    return (
      `page "${/<title>([^<]*)/.exec(page.body.toString())?.[1]}", flows stopped after ` +
      `${restarts} restarts, mended by a deploy after ` +
      `${((performance.now() - begun) / 1000).toFixed(0)} s`
    )
  },
}
