/**
 * Power cuts by the dozen, in turn during a first boot, deploys, the issue of a certificate, an
 * update, a change of settings and a backup, on a card with a cache of its own (test/vm/cache-card.ts).
 * With GATEHOUSE_LONG=1: GATEHOUSE_CUTS (default 12) of them; GATEHOUSE_CARD=lying on a card that
 * says of what is in its cache that it has been written.
 */
import assert from 'node:assert/strict'
import { randomInt } from 'node:crypto'
import { once } from 'node:events'
import { mkdir, readdir, symlink } from 'node:fs/promises'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Lab } from '../lab/lab.ts'
import { bootAppliance, card, eventually, settings, tried } from '../vm/appliance.ts'
import { Stage, answers } from './stage.ts'

const long = process.env['GATEHOUSE_LONG'] === '1'
const cuts = Number(process.env['GATEHOUSE_CUTS'] ?? 12)
const manner = card.card ?? 'honest'
const mirror = '10.77.0.70'
const next = path.resolve(import.meta.dirname, `../../out/next-${tried}`)

test(
  `${cuts} power cuts on a card that is ${manner}: each time it serves again, as the same node, with its flows, certificate and settings whole`,
  { skip: long ? false : 'two minutes a cut: GATEHOUSE_LONG=1' },
  async (t) => {
    const offered = await readdir(next).catch(() => [])
    assert.notEqual(offered.length, 0, `${next} is missing: make update-${tried}`)
    const lab = await Lab.start({ name: 'cuts' })
    t.after(async () => {
      await lab.stop()
    })
    const client = await lab.client('laptop')
    const folder = path.join(lab.dir, 'offered')
    await mkdir(path.join(folder, 'gatehouse'), { recursive: true })
    for (const name of offered)
      await symlink(path.join(next, name), path.join(folder, 'gatehouse', name))
    const server = lab.exec(
      await lab.host('mirror', mirror),
      [
        process.execPath,
        '--disable-warning=ExperimentalWarning',
        path.resolve(import.meta.dirname, '../update/static-server.ts'),
        folder,
        mirror,
        '80',
      ],
      { stdio: ['pipe', 'pipe', 'inherit'] },
    )
    await once(server.stdout!, 'data')
    server.stdout!.resume()

    const before = `${settings(lab)}[updates]\nurl = "http://${mirror}/gatehouse"\nautomatic = false\n`
    const machine = await bootAppliance(lab, tried, { card: manner, toml: before })
    t.after(async () => {
      await machine.destroy()
    })
    const stage = new Stage(lab, client, machine)
    const firstVersion = async (): Promise<string> =>
      await stage.run('. /usr/lib/os-release; echo $IMAGE_VERSION')

    const seen: string[] = []
    let hold = false
    let running = ''
    /** What goes on when the power goes; each says within how many milliseconds that is. */
    const kinds: [what: string, within: number, begin: () => Promise<void>][] = [
      [
        'deploys',
        3_000,
        async () => {
          const power = seen.length
          void (async () => {
            for (let number = 1; seen.length === power; number++)
              await stage
                .deploy([
                  ...answers('which', `deploy ${number}`),
                  {
                    id: 'much',
                    type: 'comment',
                    z: 'f6f2187d.f17ca8',
                    name: '',
                    info: 'x'.repeat(300_000),
                    wires: [],
                  },
                ])
                .catch(async () => {
                  await sleep(500)
                })
          })()
          await sleep(2_000)
        },
      ],
      [
        'a certificate',
        12_000,
        async () => {
          await stage.run(
            'systemctl stop gatehouse-certs.service; rm -f /var/lib/gatehouse-tls/*.pem; sync; systemctl start --no-block gatehouse-certs.service',
          )
        },
      ],
      [
        'an update',
        100_000,
        async () => {
          // It was updated in an earlier round: back first, which is a restart.
          if ((await firstVersion()) !== running) {
            await machine.run('gatehouse update back', { timeout: 120 }).catch(() => {})
            await eventually(
              'the version before is back',
              400,
              async () => (await firstVersion()) === running || undefined,
            )
            await stage.served(500)
          }
          void machine.run('gatehouse update --force', { timeout: 400 }).catch(() => {})
        },
      ],
      [
        'a change of settings',
        4_000,
        async () => {
          hold = !hold
          const api = `https://${await stage.name()}:10000/api/v1`
          const { digest, text } = await eventually('the settings', 120, async () => {
            const answer = await client.fetch(`${api}/settings`)
            return JSON.parse(answer.body.toString()) as { digest: string; text: string }
          })
          const changed = text.includes('hold = ')
            ? text.replace(/hold = \w+/, `hold = ${hold}`)
            : `${text}hold = ${hold}\n`
          void client
            .fetch(`${api}/settings/try`, {
              method: 'POST',
              headers: { 'content-type': 'application/json' },
              body: JSON.stringify({ text: changed, digest }),
            })
            .catch(() => {})
        },
      ],
      [
        'a backup',
        8_000,
        async () => {
          void machine
            .run(
              'printf "%s\\n%s\\n" "a long passphrase" "a long passphrase" | gatehouse backup /var/backup.age',
              { timeout: 200 },
            )
            .catch(() => {})
        },
      ],
    ]
    // In a run of hours one wants to know now; what the reporter keeps comes at its end.
    const say = (line: string): void => {
      console.log(`${new Date().toISOString().slice(11, 19)} ${line}`)
    }
    const cut = async (what: string, within: number): Promise<void> => {
      const ms = randomInt(within)
      await sleep(ms)
      await machine.kill()
      const number = seen.push(what)
      const { blocks, flushed } = machine.loss!
      if (manner === 'honest') assert.equal(flushed, 0)
      await machine.start()
      say(
        `${number} of ${cuts}, ${what}: cut after ${(ms / 1000).toFixed(1)} s, ${blocks} blocks of ` +
          `4 KiB lost (${flushed} of them flushed)`,
      )
    }

    const each = kinds.length + 1
    for (let number = 0; number < Math.ceil(cuts / each); number++) {
      await sleep(6_000)
      await cut('the first boot', 60_000)
    }
    say(`serves ${(await stage.served(600)).toFixed(0)} s after the last of them`)
    running = await firstVersion()
    const node = await stage.node()
    await stage.deploy(answers('which', 'deploy 0'))
    await stage.run('sync')
    for (let number = 0; seen.length < cuts; number++) {
      const [what, within, begin] = kinds[number % kinds.length]!
      await begin()
      await cut(what, within)
      const seconds = await stage.served(600)
      assert.deepEqual(await stage.node(), node, 'the same node')
      assert.equal(
        (await lab.nodes()).filter(({ hostname }) => hostname === 'gatehouse').length,
        1,
        'and no other',
      )
      const text = await eventually('a flow answers', 200, async () => {
        const answer = await stage.fetch('/app/which')
        return answer.status === 200 ? answer.body.toString() : undefined
      })
      assert.match(text, /^deploy \d+$/)
      const toml = await stage.run('cat /efi/gatehouse.toml')
      const kept = toml.replaceAll('\r', '').replace(/\nhold = \w+$/, '')
      for (const line of before
        .trim()
        .split('\n')
        .filter((entry) => !entry.startsWith('auth_key')))
        assert.ok(kept.includes(line), `gatehouse.toml still says ${line}: ${toml}`)
      const failed = await stage.run(
        'for unit in $(systemctl --failed --no-legend --plain | cut -d " " -f 1); do ' +
          'systemctl status --no-pager --full --lines 30 $unit; done; true',
      )
      assert.equal(failed, '')
      say(`  serves ${seconds.toFixed(0)} s later; the flow says ${text}`)
    }
    assert.equal(await lab.leaked(), 0)
  },
)
