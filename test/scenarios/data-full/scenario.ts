import assert from 'node:assert/strict'
import { type Scenario, answers } from '../stage.ts'
import { eventually } from '../../vm/appliance.ts'

export const scenario: Scenario = {
  fault: 'flows fill the data partition',
  holds:
    'the gateway serves, also after a restart, from the reserve that Node-RED cannot touch; ' +
    'doctor says what to look at; flows on disk stay whole',
  async run(stage) {
    const [good, other] = [
      answers('hello', 'the keep says hello'),
      answers('hello', `other ${'x'.repeat(200_000)}`),
    ]
    assert.equal((await stage.deploy(good)).status, 204)
    const fill = await stage.machine.run(
      'fallocate -l $(($(df --output=avail -B1 /var | tail -1) - 1048576)) ' +
        '/var/lib/node-red/fill; dd if=/dev/zero bs=4096 of=/var/lib/node-red/fill2',
      { user: 'node-red', timeout: 200 },
    )
    assert.match(fill.stderr, /No space left|Disk quota exceeded/)
    const doctor = await stage.machine.run('gatehouse doctor', { timeout: 120 })
    assert.equal(doctor.code, 1)
    assert.match(doctor.stdout, /FAIL disk .*\n.*→ Flows that write files/)
    const deployed = (await stage.deploy(other)).status
    await stage.run('systemctl restart gatehouse', 300)
    await stage.served()
    const flows = await stage.run(
      'cat /var/lib/node-red/flows.json | tr -d "\\n" | head -c 100; node -e ' +
        '"JSON.parse(fs.readFileSync(\'/var/lib/node-red/flows.json\'))"',
    )
    assert.match(flows, /f6f2187d/)
    await stage.run('rm /var/lib/node-red/fill*')
    assert.equal((await stage.deploy(good)).status, 204)
    await eventually(
      'the flow answers',
      200,
      async () =>
        (await stage.fetch('/app/hello')).body.toString() === 'the keep says hello' || undefined,
    )
    return `a deploy is answered ${deployed}; gateway restarted and serving with no room left`
  },
}
