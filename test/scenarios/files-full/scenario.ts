import assert from 'node:assert/strict'
import { type Scenario, answers, runs } from '../stage.ts'
import { eventually, statusOf } from '../../vm/appliance.ts'

const many = '/var/lib/node-red/many'
/** A flow that makes empty files from each start on, for as long as there is one to be had. */
const runaway = runs(
  `node -e 'fs.mkdirSync(\`${many}\`, { recursive: true }); for (let i = 0; ; i++) ` +
    `fs.writeFileSync(\`${many}/\${process.pid}-\${i}\`, \`\`)'`,
)

export const scenario: Scenario = {
  fault: 'a flow takes all files (inodes) that the data partition has room for; two restarts',
  holds:
    'the others go on making files; it serves, and says what is wrong; Deploy works after a restart, and puts it right',
  async run(stage) {
    const free = async (): Promise<number> =>
      Number(await stage.run('df --output=iavail /var | tail -1'))
    /** Who must be able to make files, whatever flows do. */
    const others = async (): Promise<void> => {
      for (const [user, folder] of [
        ['gatehouse', '/var/lib/gatehouse'],
        ['gatehouse-certs', '/var/lib/gatehouse-tls'],
        ['gatehouse-update', '/var/lib/gatehouse-update'],
        ['root', '/var/lib/gatehouse-config'],
      ] as const) {
        const made = await stage.machine.run(
          `for i in $(seq 50); do : >${folder}/.room.$i || exit 1; done; rm ${folder}/.room.*`,
          { user },
        )
        assert.equal(made.code, 0, `${user}: ${made.stderr}`)
      }
    }
    const before = await free()
    // Most of them by a program in C: an emulated Node.js makes a few hundred a second.
    const filled = await stage.machine.run(
      // With 255 xargs stops: there are no more to be had.
      `mkdir -p ${many}; cd ${many} && seq 1 10000000 | xargs -n 500 sh -c 'touch "$@" || exit 255' -; ` +
        'ls | tail -n 2000 | xargs rm && echo removed',
      { user: 'node-red', timeout: 400 },
    )
    assert.match(filled.stderr, /quota exceeded|No space/)
    assert.match(filled.stdout, /removed/)
    const taken = await stage.deploy(runaway)
    assert.equal(taken.status, 204, taken.body.toString())
    const left = await eventually('no file can be made any more', 400, async () => {
      // A file that is there already takes none, so it is gone again at once.
      const one = '/var/lib/node-red/one-more'
      const { stderr } = await stage.machine.run(`: >${one} && rm ${one}`, { user: 'node-red' })
      return /quota exceeded|No space/.test(stderr) ? await free() : undefined
    })
    assert.ok(left >= 1000, `${left} of ${before} are left to the others`)
    await others()
    const { cure } = await stage.problem(/^GH_DATA_FULL$/, 300)
    assert.match(cure, /switch the device off and on/)
    const deployed = (await stage.deploy(answers('hello', 'hello'))).status

    const served: number[] = []
    for (let i = 0; i < 2; i++) {
      await stage.machine.reboot({ timeout: 600 })
      served.push(await stage.served(600))
      await others()
      await stage.problem(/^GH_DATA_FULL$/, 300)
    }
    // As the status page says: flows are stopped, and what the editor deploys is saved.
    assert.match(
      await stage.run('journalctl -b -u node-red -o cat'),
      /had no room for a file, so flows are not started/,
    )
    const cleaning = await stage.deploy(runs(`rm -r ${many} && echo gone`, 'clean'))
    assert.equal(cleaning.status, 204, cleaning.body.toString())
    await eventually('the flow that removes them is asked', 300, async () =>
      (await stage.fetch('/app/clean', { timeout: 200_000 })).body.toString().startsWith('gone')
        ? true
        : undefined,
    )
    const after = await free()
    assert.ok(after > before - 500, `${after} of ${before} are free again`)
    await eventually('all is well again', 300, async () =>
      (await statusOf(stage.machine))['problems'].some(
        ({ code }: { code: string }) => code === 'GH_DATA_FULL',
      )
        ? undefined
        : true,
    )
    await stage.run('systemctl restart node-red')
    await stage.served()
    assert.equal(await stage.run('cat /var/lib/gatehouse-slots/node-red-limit'), 'usual for all')
    return (
      `Node-RED was stopped with ${left} of ${before} files left; a deploy is answered ` +
      `${deployed} then; serves ${served.map((s) => `${s.toFixed(0)} s`).join(', ')} after the ` +
      'restarts, and a deploy that removes them is saved'
    )
  },
}
