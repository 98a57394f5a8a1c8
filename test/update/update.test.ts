/**
 * Updates on the booted image: from a web server in the lab, by command, and from a stick that is
 * plugged in. What is refused, a new version that cannot join and is left again, and one that
 * serves and stays. The new version is the same system with a higher number: `make update-amd64`.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createHash, generateKeyPairSync, randomInt, sign } from 'node:crypto'
import { once } from 'node:events'
import {
  copyFile,
  mkdir,
  readFile,
  readdir,
  rm,
  symlink,
  truncate,
  writeFile,
} from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { signature, signingKey } from '../../tools/signing.ts'
import { Lab, type LabClient } from '../lab/lab.ts'
import { rounds } from '../scenarios/stage.ts'
import {
  bootAppliance,
  card,
  editor,
  eventually,
  firmware,
  joined,
  settings,
  tried,
} from '../vm/appliance.ts'
import { makeStick } from '../vm/disk.ts'
import { withoutSystem } from '../vm/kernel-image.ts'
import type { Machine } from '../vm/machine.ts'

const next = path.resolve(import.meta.dirname, `../../out/next-${tried}`)
const keys = process.env['GATEHOUSE_KEYS'] ?? path.resolve(import.meta.dirname, '../../keys')
const mirror = '10.77.0.70'
const marks = '/var/lib/gatehouse-slots'

let lab: Lab
let client: LabClient
let machine: Machine
let name: string
let offered: string
let first: string
const second = '9.1'

/** The version that runs; rejects while the machine is between two boots. */
const version = async (): Promise<string> =>
  /^IMAGE_VERSION="?([^"\n]+)/m.exec(
    (await machine.run('cat /usr/lib/os-release', { timeout: 10 })).stdout,
  )![1]!
const entries = async (): Promise<string[]> =>
  (await machine.run('ls /efi/EFI/Linux')).stdout.trim().split('\n').toSorted()
const record = async (): Promise<Record<string, unknown>> =>
  JSON.parse((await machine.run(`cat ${marks}/record.json`)).stdout)

/**
 * Offers the update, with what a test changes in it. The files are links: one to be changed is
 * replaced.
 */
async function offer(
  change: (folder: string, names: string[]) => Promise<void> = async () => {},
): Promise<void> {
  const folder = path.join(offered, 'gatehouse')
  await rm(folder, { recursive: true, force: true })
  await mkdir(folder)
  const names = await readdir(next)
  for (const file of names) await symlink(path.join(next, file), path.join(folder, file))
  await change(folder, names)
}

/** Another key's signature in place of ours. */
async function signByAnother(folder: string): Promise<void> {
  const signature = path.join(folder, 'SHA256SUMS.sig')
  await rm(signature)
  await writeFile(
    signature,
    sign(
      null,
      await readFile(path.join(folder, 'SHA256SUMS')),
      generateKeyPairSync('ed25519').privateKey,
    ),
  )
}

/** The list with the sum of what a test has put there, signed as the image's maker does. */
async function signAnew(folder: string, name: string, content: Buffer): Promise<void> {
  const sums = (await readFile(path.join(folder, 'SHA256SUMS'), 'utf8')).replace(
    new RegExp(`^[0-9a-f]{64}(?= [ *]${name.replaceAll('.', '\\.')}$)`, 'm'),
    createHash('sha256').update(content).digest('hex'),
  )
  for (const file of ['SHA256SUMS', 'SHA256SUMS.sig']) await rm(path.join(folder, file))
  await writeFile(path.join(folder, 'SHA256SUMS'), sums)
  await writeFile(
    path.join(folder, 'SHA256SUMS.sig'),
    signature(signingKey(keys).privateKey, Buffer.from(sums)),
  )
}

/**
 * What an update costs people: asks for the editor's page every half second, and holds a WebSocket
 * as an open editor does, which comes again when it is cut off. @returns what says the longest
 * silence of either, in seconds
 */
async function inUse(): Promise<() => Promise<{ page: number; socket: number }>> {
  const url = await client.browse(`https://${name}`)
  let over = false
  const longest = { page: 0, socket: 0 }
  /** `answers` resolves to true with each answer, until there is none. */
  const watch = async (
    what: keyof typeof longest,
    answers: (seen: () => void) => Promise<void>,
  ): Promise<void> => {
    let last = performance.now()
    const seen = (): void => {
      const now = performance.now()
      longest[what] = Math.max(longest[what], (now - last) / 1000)
      last = now
    }
    while (!over) {
      await answers(seen).catch(() => {})
      await sleep(500)
    }
  }
  const watched = [
    watch('page', async (seen) => {
      const { ok } = await fetch(url, { signal: AbortSignal.timeout(5_000) })
      if (ok) seen()
    }),
    watch('socket', async (seen) => {
      const socket = new WebSocket(`${url.replace('http', 'ws')}comms`)
      const { promise: closed, resolve: close } = Promise.withResolvers<void>()
      for (const event of ['close', 'error']) socket.addEventListener(event, () => close())
      const late = setTimeout(() => socket.close(), 5_000)
      socket.addEventListener('open', () => {
        clearTimeout(late)
        seen()
      })
      // Silent, it is there: what counts is from its end to the next one.
      const alive = setInterval(() => {
        if (over) socket.close()
        if (socket.readyState === WebSocket.OPEN) seen()
      }, 200)
      await closed
      clearInterval(alive)
      clearTimeout(late)
    }),
  ]
  return async () => {
    over = true
    await Promise.all(watched)
    return longest
  }
}

/** Plugs in a stick with what is offered, in a folder `gatehouse`. @returns what pulls it out */
async function plug(): Promise<() => Promise<void>> {
  const folder = path.join(offered, 'gatehouse')
  const image = path.join(lab.dir, 'stick.img')
  await makeStick(
    image,
    Object.fromEntries(
      (await readdir(folder)).map((file) => [`gatehouse/${file}`, path.join(folder, file)]),
    ),
  )
  return await machine.plug(image)
}

/** `gatehouse update`, and all it said. */
async function update(args = '', timeout = 400): Promise<{ code: number; said: string }> {
  const { code, stdout, stderr } = await machine.run(`gatehouse update ${args}`, { timeout })
  return { code, said: `${stdout}${stderr}`.trim() }
}

before(async () => {
  first = ''
  lab = await Lab.start({ name: 'update' })
  client = await lab.client('laptop')
  offered = path.join(lab.dir, 'offered')
  await mkdir(offered)
  const ns = await lab.host('mirror', mirror)
  const server = lab.exec(
    ns,
    [
      process.execPath,
      '--disable-warning=ExperimentalWarning',
      path.join(import.meta.dirname, 'static-server.ts'),
      offered,
      mirror,
      '80',
    ],
    { stdio: ['pipe', 'pipe', 'inherit'] },
  )
  await once(server.stdout!, 'data')
  server.stdout!.resume()
  machine = await bootAppliance(lab, tried, {
    ...firmware,
    ...card,
    sticks: true,
    toml: `${settings(lab)}[updates]\nurl = "http://${mirror}/gatehouse"\n`,
    credentials: {
      // The new version's gateway is cut off from the network while a test wants it so.
      'systemd.extra-unit.gatehouse-test-cut-off.service': [
        '[Unit]',
        'ConditionPathExists=!/etc/initrd-release',
        `ConditionOSRelease=IMAGE_VERSION=${second}`,
        `ConditionPathExists=${marks}/test-cut-off`,
        `RequiresMountsFor=${marks}`,
        'After=nftables.service',
        'Before=gatehouse.service',
        '[Service]',
        'Type=oneshot',
        'ExecStart=/usr/sbin/nft insert rule inet gatehouse out meta skuid gatehouse drop',
        '',
      ].join('\n'),
      'systemd.unit-dropin.gatehouse.service':
        '[Unit]\nWants=gatehouse-test-cut-off.service\nAfter=gatehouse-test-cut-off.service\n',
      'systemd.unit-dropin.gatehouse-trial.service': `[Service]\nEnvironmentFile=-${marks}/test-trial\n`,
    },
  })
  name = (await joined(lab)).name
  await editor(client, name)
  first = await version()
})

after(async () => {
  await machine?.destroy()
  await lab?.stop()
})

test('an update that another key has signed is refused, and nothing of it is downloaded', async () => {
  await offer(signByAnother)
  const { code, said } = await update()
  assert.equal(code, 1)
  assert.match(said, /not signed with the key that this device trusts.*GH_UPDATE_SIGNATURE/s)
  assert.equal((await machine.run('ls -A /var/lib/gatehouse-update')).stdout, '')
})

test('a truncated update is refused', async () => {
  await offer(async (folder, names) => {
    const root = names.find((file) => file.endsWith('.root'))!
    await rm(path.join(folder, root))
    await copyFile(path.join(next, root), path.join(folder, root))
    await truncate(path.join(folder, root), 5_000_000)
  })
  const { code, said } = await update()
  assert.equal(code, 1)
  assert.match(
    said,
    /\.root of http:.* is not what SHA256SUMS says: truncated or damaged.*GH_UPDATE_DAMAGED/s,
  )
  assert.deepEqual(await entries(), [`gatehouse_${first}.efi`], 'no boot entry has come')
  await editor(client, name)
})

test('a stick with an update that another key has signed: nothing is changed, and status, console and card say why', async (t) => {
  await offer(signByAnother)
  const begun = performance.now()
  const pull = await plug()
  const line = await eventually(
    'status says so',
    120,
    async () =>
      /^! USB stick .*$/m.exec(
        (await machine.run('gatehouse status', { timeout: 120 })).stdout,
      )?.[0],
  )
  t.diagnostic(`after ${((performance.now() - begun) / 1000).toFixed(0)} s: ${line}`)
  assert.match(line, /not signed with the key that this device trusts.*GH_UPDATE_SIGNATURE/)
  assert.match(
    await machine.console(),
    /USB stick: the update is not signed with the key that this device trusts/,
  )
  await eventually(
    'the card says so',
    120,
    async () =>
      (await machine.run('cat /efi/gatehouse-status.txt')).stdout.includes(
        '! update, USB stick: the update is not signed',
      ) || undefined,
  )
  assert.doesNotMatch(
    (await machine.run('ls -A /var/lib/gatehouse-update')).stdout,
    /SHA256SUMS/,
    'nothing to install',
  )
  assert.equal((await machine.run('findmnt -rno TARGET -S /dev/sda1')).stdout, '', 'it is let go')
  assert.equal(
    (await machine.run('systemctl --failed --no-legend --plain | cut -d" " -f1')).stdout,
    'gatehouse-update.service\n',
    'of the web server before, and nothing of the stick',
  )
  await pull()
})

test('a version from a stick that cannot join is left again by itself, and status, console and card say why', async (t) => {
  await offer()
  await machine.run(
    `touch ${marks}/test-cut-off; echo GATEHOUSE_TRIAL_SECONDS=60 >${marks}/test-trial`,
  )
  const begun = performance.now()
  const seconds = (): string => ((performance.now() - begun) / 1000).toFixed(0)
  const pull = await plug()
  await machine.waitFor(new RegExp(`${second} is installed; starting it`), { timeout: 400 })
  t.diagnostic(`copied from the stick and installed in ${seconds()} s`)
  await eventually(`${second} runs`, 300, async () => (await version()) === second || undefined)
  t.diagnostic(`${second} runs after ${seconds()} s`)
  // The shell is there before the card is mounted.
  await eventually(
    'it is not what another start would take',
    200,
    async () =>
      (await entries()).some((entry) => entry.startsWith(`gatehouse_${second}+0`)) || undefined,
  )
  await eventually(`${first} is back`, 400, async () => (await version()) === first || undefined)
  t.diagnostic(`${first} is back after ${seconds()} s`)
  await editor(client, name)
  const { failure, good } = await record()
  assert.equal(good, undefined)
  assert.match(String(failure), /^it did not serve in time: .*(?:tailnet|control server)/)
  const status = await machine.run('gatehouse status', { timeout: 120 })
  assert.match(
    status.stdout,
    new RegExp(
      `! Update .*${second} of .* was given up, and ${first} is back: it did not serve in time: .`,
    ),
  )
  t.diagnostic(status.stdout.split('\n').find((line) => line.startsWith('! Update'))!)
  await eventually(
    'the card says so',
    300,
    async () =>
      (await machine.run('cat /efi/gatehouse-status.txt')).stdout.includes('! update:') ||
      undefined,
  )
  assert.match(await machine.console(), new RegExp(`! update: ${second} of .* was given up`))
  // It has been plugged in all the while.
  await eventually(
    'the stick is not tried again',
    120,
    async () =>
      new RegExp(`\nUSB stick +${second} is on it, which was given up before`).test(
        (await machine.run('gatehouse status', { timeout: 120 })).stdout,
      ) || undefined,
  )
  await pull()
})

test('what was given up is not tried again by itself', async () => {
  const { code, said } = await update()
  assert.deepEqual([code, said], [0, 'nothing newer is offered'])
})

test('a version whose kernel panics at once is left after one try, and tried again, as if the power had gone; but three times at most', async (t) => {
  await machine.run(`rm -f ${marks}/test-*`)
  await offer(async (folder, names) => {
    const kernel = names.find((file) => file.endsWith('.efi'))!
    const broken = withoutSystem(await readFile(path.join(next, kernel)))
    await rm(path.join(folder, kernel))
    await writeFile(path.join(folder, kernel), broken)
    await signAnew(folder, kernel, broken)
  })
  // The version was given up already, in the test before; and of three tries the second is like the
  // first.
  for (const [tries, args] of [
    [1, '--force'],
    [3, ''],
  ] as const) {
    if (tries === 3) await machine.run(`sed -i 's/"tries":1/"tries":2/' ${marks}/record.json; sync`)
    const begun = performance.now()
    const panics = (await machine.console()).split('Kernel panic').length
    await update(args).catch(() => {})
    await eventually(
      'its kernel panics',
      400,
      async () => (await machine.console()).split('Kernel panic').length > panics || undefined,
    )
    await eventually(`${first} is back`, 400, async () => (await version()) === first || undefined)
    await editor(client, name, 500)
    t.diagnostic(`${first} serves again after ${((performance.now() - begun) / 1000).toFixed(0)} s`)
    assert.equal((await machine.console()).split('Kernel panic').length, panics + 1)
    assert.equal((await record())['tries'], tries)
    const line = (await machine.run('gatehouse status', { timeout: 120 })).stdout
      .split('\n')
      .find((text) => text.startsWith('! Update'))!
    t.diagnostic(line)
    assert.match(line, tries < 3 ? /did not stay, and .* is back/ : /was given up, and .* is back/)
  }
  assert.deepEqual(await update(), { code: 0, said: 'nothing newer is offered' })
})

test('the power goes at random moments of an update: it serves in one version or the other, as the same node, and nothing is left half done', async (t) => {
  await offer()
  await machine.run(`rm -f ${marks}/test-*; sync`)
  const node = await joined(lab)
  // Each round begins with the card as it is now, and so does the test after this one.
  const saved = path.join(lab.dir, 'saved.img')
  await machine.kill()
  await promisify(execFile)('cp', ['--sparse=always', machine.disk, saved])
  const back = async (): Promise<void> => {
    await promisify(execFile)('cp', ['--sparse=always', saved, machine.disk])
    await machine.start()
    await editor(client, name)
  }
  for (let cuts = 0; cuts < rounds;) {
    await back()
    // The same update is cut off up to four times, and goes on from what is there.
    for (
      let more = Math.min(4, rounds - cuts), runs = first;
      more > 0 && runs === first;
      more--, cuts++
    ) {
      void update('--force').catch(() => {})
      // From the download to the new version's boot.
      const ms = randomInt(70_000)
      await sleep(ms)
      await machine.kill()
      const begun = performance.now()
      await machine.start()
      await editor(client, name, 500)
      runs = await version()
      assert.ok([first, second].includes(runs), runs)
      t.diagnostic(
        `cut after ${(ms / 1000).toFixed(1)} s: ${runs} serves ` +
          `${((performance.now() - begun) / 1000).toFixed(0)} s after the start`,
      )
    }
    const begun = performance.now()
    if ((await version()) === first) await update('--force').catch(() => {})
    await eventually(
      `${second} is good`,
      500,
      async () => ((await version()) === second && (await record())['good'] === true) || undefined,
    )
    await editor(client, name)
    assert.deepEqual(
      (await lab.nodes())
        .filter((n) => n.hostname === 'gatehouse')
        .map((n) => [n.name, n.addresses]),
      [[node.name, node.addresses]],
    )
    assert.equal((await machine.run('systemctl --failed --no-legend --plain')).stdout, '')
    t.diagnostic(
      `${second} is good after ${((performance.now() - begun) / 1000).toFixed(0)} s more`,
    )
    await machine.kill()
  }
  await back()
})

test('a version that serves through the tailnet stays, with name, address and certificate', async (t) => {
  await offer()
  const node = await joined(lab)
  const used = await inUse()
  const begun = performance.now()
  await update('--force').catch(() => {})
  await eventually(`${second} runs`, 300, async () => (await version()) === second || undefined)
  await editor(client, name)
  await eventually('it is good', 300, async () => (await record())['good'] === true || undefined)
  t.diagnostic(
    `installed, started and good in ${((performance.now() - begun) / 1000).toFixed(0)} s`,
  )
  const { page, socket } = await used()
  t.diagnostic(
    `the editor's page was away for ${page.toFixed(1)} s, its WebSocket for ${socket.toFixed(1)} s`,
  )
  assert.ok(
    (await entries()).includes(`gatehouse_${second}.efi`),
    `it is counted no more: ${(await entries()).join(' ')}`,
  )
  assert.equal((await machine.run('systemctl is-active gatehouse-trial')).stdout, 'active\n')
  assert.match(
    (await machine.run('gatehouse status', { timeout: 120 })).stdout,
    new RegExp(`\nUpdate +${second}, since .*; before ${first}`),
  )
  assert.deepEqual(
    (await lab.nodes()).filter((n) => n.hostname === 'gatehouse').map((n) => [n.name, n.addresses]),
    [[node.name, node.addresses]],
  )
  assert.equal((await machine.run('systemctl --failed --no-legend --plain')).stdout, '')
  assert.deepEqual(await update(), { code: 0, said: 'nothing newer is offered' })
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0)
})
