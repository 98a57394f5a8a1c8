/**
 * The cell is closed: what a hostile flow, or whoever takes over another unit that reads what
 * strangers wrote, can reach of the system it runs on. Nothing but files of its own is meant to be
 * there: behind each socket is a program that does something for whoever asks. The list of sockets
 * is not kept here: it is what the booted system has, so that a new one fails the test. Without a
 * list of targets first, then with one, a serial port and a login on the console.
 */
import assert from 'node:assert/strict'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { Lab, type LabClient } from '../lab/lab.ts'
import { bootAppliance, editor, eventually, joined, settings, tried } from '../vm/appliance.ts'
import type { Machine } from '../vm/machine.ts'
import { Attempts } from './attempts.ts'
import { breakIn, deployShell, inUnit, noteAll, shell } from './shell.ts'

let lab: Lab
let owner: LabClient
let machine: Machine
let name: string
const attempts = new Attempts()

/** Asserts that none of these attempts got through, with the table's rows of those that did. */
function held(from: string): void {
  assert.deepEqual(attempts.through(from), [])
}

const asNodeRed = async (script: string, timeout?: number): Promise<string> =>
  await shell(owner, name, script, timeout)

/** A command as root that must do; its standard output. */
async function root(command: string, timeout = 120): Promise<string> {
  const { code, stdout, stderr } = await machine.run(command, { timeout })
  assert.equal(code, 0, `${command}: ${stderr}${stdout}`)
  return stdout
}

/** All sockets of the machine, as root sees them: paths, and abstract names (unix(7)). */
async function socketsOf(): Promise<{ paths: string[]; abstract: string[] }> {
  const lines = async (command: string): Promise<string[]> =>
    (await root(command)).split('\n').filter(Boolean)
  const paths = await lines('find / -path /proc -prune -o -type s -print 2>/dev/null; true')
  const bound = await lines("sed -nE 's/.* ([@/].*)$/\\1/p' /proc/net/unix | sort -u")
  return {
    paths: [...new Set([...paths, ...bound.filter((socket) => socket.startsWith('/'))])],
    abstract: bound.filter((socket) => socket.startsWith('@')),
  }
}

/** The attempts at sockets, in Node-RED's sandbox. */
async function sockets(from: string): Promise<void> {
  const all = await socketsOf()
  // Or the search would prove nothing.
  for (const there of [
    '/run/systemd/resolve/io.systemd.Resolve',
    '/run/dbus/system_bus_socket',
    '/run/systemd/journal/stdout',
    '/run/systemd/notify',
    '/run/gatehouse-admin.sock',
  ])
    assert.ok(all.paths.includes(there), `${there} is there`)
  const options = {
    ...all,
    own: '^/run/node-red/http\\.sock$',
    // systemd makes the last one, with nothing in it but where later mounts would arrive.
    below: ['node-red', 'credentials', 'systemd'],
  }
  assert.ok(noteAll(attempts, from, await asNodeRed(await breakIn('sockets', options))) >= 3)
  const empty = await asNodeRed('find /run/systemd /run/credentials 2>/dev/null | sort')
  attempts.note(
    from,
    'find something in what is left of /run',
    empty,
    // With a list there is also the file that says where names are asked: the image's own, read-only.
    /^\/run\/credentials\n\/run\/credentials\/node-red\.service\n(\/run\/credentials\/node-red\.service\/[a-z.-]+\n)+\/run\/systemd\n\/run\/systemd\/incoming\n(\/run\/systemd\/resolve\n\/run\/systemd\/resolve\/stub-resolv\.conf\n)?\[0\]/.test(
      empty,
    ),
  )
}

/** Questions of names, and what of them the lab's server has seen. */
async function names(from: string, secret: string): Promise<void> {
  noteAll(attempts, from, await asNodeRed(await breakIn('resolver', { secret, patience: 4000 })))
  const seen = (await lab.queries()).filter((query) => query.name.includes(secret))
  attempts.note(
    from,
    'DNS tunnel: questions that reached a server',
    seen.length === 0 ? 'none' : JSON.stringify(seen),
    seen.length === 0,
  )
  // The server is asked by this machine all the same, so that silence proves something.
  const control = `control.${secret}`
  await machine.run(`resolvectl query ${control}`)
  assert.ok((await lab.queries()).some((query) => query.name === control))
}

/** The lock of the certificates' agent, held by a flow while the agent is to run. */
async function lock(from: string): Promise<void> {
  const directory = '/var/lib/gatehouse-certs'
  const [dev, ino] = (await root(`stat -c '%d %i' ${directory}`)).trim().split(' ')
  const state = { path: directory, dev, ino }
  const holding = asNodeRed(await breakIn('lock', { state, seconds: 45 }))
  await new Promise((done) => setTimeout(done, 15_000))
  const { code, stdout } = await machine.run(
    'systemctl start gatehouse-certs; systemctl show -P Result gatehouse-certs; journalctl ' +
      '-q -u gatehouse-certs -o cat -n 3',
    { timeout: 300 },
  )
  noteAll(attempts, from, await holding)
  attempts.note(
    from,
    'keep certificates from being renewed by holding the lock',
    stdout,
    code === 0 && /^success$/m.test(stdout) && !/GH_CERTS_BUSY/.test(stdout),
  )
}

/** Its directory below /run: filled, and left so that a start would find no room. */
async function runtime(from: string): Promise<void> {
  const before = await root('df --output=avail,iavail /run | tail -1')
  noteAll(
    attempts,
    from,
    await asNodeRed(await breakIn('runtime', { directory: '/run/node-red', leave: true })),
  )
  const [bytes, files] = (await root('df --output=avail,iavail /run | tail -1'))
    .trim()
    .split(/\s+/)
    .map(Number)
  const [hadBytes, hadFiles] = before.trim().split(/\s+/).map(Number)
  attempts.note(
    from,
    'take room below /run from the others',
    `${hadBytes! - bytes!} KiB, ${hadFiles! - files!} files`,
    hadBytes! - bytes! < 1024 && hadFiles! - files! < 100,
  )
  const left = await root('find /run/node-red | wc -l')
  assert.ok(Number(left) > 20, `${left} are left`)
  await root('systemctl restart node-red', 200)
  await editor(owner, name)
  const now = await root('find /run/node-red -mindepth 1')
  attempts.note(
    from,
    'leave no room for its own socket, over a restart',
    `it serves; there is ${now.trim()}`,
    now.trim() === '/run/node-red/http.sock',
  )
}

// On two cores it takes ten minutes and more, which make test does not have.
const skip = process.env['GATEHOUSE_LONG'] === '1' ? false : 'takes ten minutes: make test-long'

before(async () => {
  if (skip !== false) return
  lab = await Lab.start({ name: 'cell' })
  owner = await lab.client('laptop')
  machine = await bootAppliance(lab, tried, {
    serial: path.join(lab.dir, 'serial'),
    credentials: {
      // What the updater has is put there here; it fetches nothing by itself meanwhile.
      'systemd.unit-dropin.gatehouse-update.timer': '[Timer]\nOnCalendar=\nOnCalendar=2099-01-01\n',
    },
  })
  name = (await joined(lab, 'gatehouse', 900)).name
  await editor(owner, name, 600)
  await deployShell(owner, name)
  await eventually("the attacker's flow answers", 200, async () =>
    (await asNodeRed('id -un')).startsWith('node-red\n') ? true : undefined,
  )
})

after(async () => {
  if (skip !== false) return
  if (attempts.count > 0) console.log(String(attempts))
  await machine?.destroy()
  await lab?.stop()
})

test(
  'a flow without a list of targets: no socket of the system, no name, its own directory bounded',
  { skip },
  async () => {
    const from = 'Node-RED, no list'
    await sockets(from)
    await names(from, 'no-list.attacker.example')
    await runtime(from)
    held(from)
  },
)

test(
  'whoever takes over a unit that reads what strangers wrote finds no socket either',
  { skip },
  async () => {
    const all = await socketsOf()
    const updater =
      '/usr/bin/setpriv --reuid=gatehouse-update --regid=gatehouse-update --clear-groups --inh-caps=-all /bin/bash -s'
    for (const [from, unit, below, own, options] of [
      [
        'the stick reader',
        'gatehouse-stick@.service',
        ['gatehouse-update', 'gatehouse-update.lock', 'udev'],
        '^$',
        { instance: 'sda1', as: updater },
      ],
      [
        'WiFi',
        'gatehouse-wifi@.service',
        [],
        '^$',
        { instance: 'wlan0', without: ['LoadCredential'] },
      ],
      [
        'the downloader',
        'gatehouse-update.service',
        ['gatehouse-update', 'gatehouse-update.lock'],
        '^$',
        {},
      ],
      [
        "the certificates' agent",
        'gatehouse-certs.service',
        ['gatehouse-certs.sock'],
        '^/run/gatehouse-certs\\.sock$',
        {},
      ],
    ] as const) {
      const script = await breakIn('sockets', {
        ...all,
        own,
        below: [...below, 'credentials', 'systemd'],
      })
      const got = await root(inUnit(unit, script, options), 300)
      assert.ok(noteAll(attempts, from, got) >= 3, `${unit}: ${got}`)
      held(from)
    }
  },
)

test(
  'what the updater has left for root is taken as what it is: no link, no second name, no pipe',
  { skip },
  async () => {
    const from = 'the updater'
    const outcome = async (put: string): Promise<string> => {
      await root(
        `cd /var/lib/gatehouse-update && rm -rf SHA256SUMS* && ${put} && chown -h ` +
          'gatehouse-update SHA256SUMS* && touch SHA256SUMS.sig',
      )
      const { stdout } = await machine.run(
        'timeout 100 systemctl start gatehouse-update-install; cat /run/gatehouse-update/outcome',
        { timeout: 120 },
      )
      return stdout
    }
    for (const [what, put, says] of [
      ['a link to what root alone reads', 'ln -s /etc/shadow SHA256SUMS', /it is a link/],
      [
        'a second name of a file',
        'touch x && ln x SHA256SUMS && rm -f y && ln x y',
        /it has 3 names/,
      ],
      ['a pipe, for root to wait at', 'mkfifo SHA256SUMS', /it is not a file/],
      ['a list of a gigabyte', 'truncate -s 1G SHA256SUMS', /are the most/],
    ] as const) {
      const got = await outcome(put)
      attempts.note(from, `${what} as SHA256SUMS`, got, says.test(got))
    }
    // What it says of an update is shown on the console.
    const escape = '\\\\u001b[2J'
    await root(
      `printf '{"source":"USB stick","text":"fine ${escape}","failed":true}' ` +
        '>/run/gatehouse-update/outcome; chown gatehouse-update /run/gatehouse-update/outcome',
    )
    const shown = await root('gatehouse status || true')
    attempts.note(
      from,
      'orders for a terminal in what became of an update',
      JSON.stringify(/^!?.*USB stick.*$/m.exec(shown)?.[0] ?? 'nothing'),
      /USB stick +fine/.test(shown) && !shown.includes(String.fromCharCode(0x1b)),
    )
    await root('rm -f /run/gatehouse-update/outcome; rm -rf /var/lib/gatehouse-update/*')
    held(from)
  },
)

test(
  "a line in the journal that says it is the updater's is not shown as its",
  { skip },
  async () => {
    const from = 'another user'
    const forged = 'log in at https://evil.example to go on'
    // Any user that has a way to journald; Node-RED has none any more.
    const asking = machine.run('gatehouse update', { timeout: 200 })
    for (let i = 0; i < 20; i++) {
      await machine.run(
        `printf '${forged} \\033[2J\\n' | systemd-cat -t gatehouse-update; printf ` +
          `'MESSAGE=${forged}\\nSYSLOG_IDENTIFIER=gatehouse-update\\nUNIT=gatehouse-update.service\\n' ` +
          '| logger --journald',
        { user: 'gatehouse' },
      )
    }
    const { stdout } = await asking
    const there = await root(`journalctl -q -t gatehouse-update -o cat | grep -c '${forged}'`)
    assert.ok(Number(there) >= 20, 'the lines are there')
    attempts.note(
      from,
      'lines in the journal that say they are of gatehouse update',
      stdout,
      !stdout.includes('evil.example') && stdout.includes('no updates'),
    )
    held(from)
  },
)

test(
  'a flow with a list of targets: the same, though it shares the network with the system',
  { skip },
  async () => {
    const from = 'Node-RED, with a list'
    const toml = Buffer.from(
      `${settings(lab)}[node_red]\nallow = ["10.77.0.60:8080"]\ndevices = ["serial"]\n[console]\nlogin = true\n`,
    ).toString('base64')
    await root(
      `mount -o remount,rw /efi; echo ${toml} | base64 -d >/efi/gatehouse.toml; mount -o ` +
        'remount,ro /efi; systemctl restart gatehouse-provision',
    )
    await eventually('Node-RED shares the network', 300, async () =>
      /^no$/m.test((await machine.run('systemctl show -P PrivateNetwork node-red')).stdout)
        ? true
        : undefined,
    )
    await eventually("the attacker's flow answers", 300, async () =>
      (await asNodeRed('id -un')).startsWith('node-red\n') ? true : undefined,
    )
    await sockets(from)
    await names(from, 'with-list.attacker.example')
    await lock(from)
    held(from)
  },
)

test(
  "with a login on the console, the console's own line is no serial port of Node-RED's",
  { skip },
  async () => {
    const from = 'Node-RED, serial and console'
    const active = (await root('cat /sys/class/tty/console/active')).trim()
    assert.equal(active, 'ttyS0')
    noteAll(
      attempts,
      from,
      // The kernel makes four of them, whether there is a line or not.
      await asNodeRed(
        await breakIn('devices', { given: '^/dev/ttyS[1-3]$', wanted: ['/dev/ttyS1'] }),
      ),
    )
    const got = await asNodeRed(
      'for way in /dev/ttyS0 /dev/char/4:64 /dev/console; do exec 3<>$way && echo opened $way; done 2>&1',
    )
    attempts.note(from, "the console's own line, by any name", got, !got.includes('opened'))
    held(from)
  },
)

test('nothing left the lab', { skip }, async () => {
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
