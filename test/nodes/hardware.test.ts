/**
 * Hardware that [node_red] devices grants, on the booted arm64 image, by the nodes that people use:
 * a USB serial adapter that is plugged in while flows run, and the pins of a GPIO chip. Both are
 * QEMU's. What is not granted stays shut; what a program of Node-RED's own gains is tried too.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { type Socket, connect } from 'node:net'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { Lab, type LabClient } from '../lab/lab.ts'
import { Attempts } from '../scenarios/attempts.ts'
import { breakIn, deployShell, noteAll, shell } from '../scenarios/shell.ts'
import { bootAppliance, editor, eventually, joined, settings } from '../vm/appliance.ts'
import type { Machine } from '../vm/machine.ts'
import { install, shop, shopList } from './shop.ts'

const json = { 'content-type': 'application/json' }
const from = 'Node-RED, serial and gpio'
let lab: Lab
let owner: LabClient
let machine: Machine
let name: string
const attempts = new Attempts()

before(async () => {
  lab = await Lab.start({ name: 'hard' })
  owner = await lab.client('laptop')
  await shop(lab)
  machine = await bootAppliance(lab, 'arm64', {
    sticks: true,
    acpi: false,
    toml: `${settings(lab)}${shopList({ devices: ['serial', 'gpio'] })}`,
  })
  name = (await joined(lab, 'gatehouse', 600)).name
  await editor(owner, name, 600)
  await deployShell(owner, name)
  await eventually("the attacker's flow answers", 200, async () =>
    (await shell(owner, name, 'id -un')).startsWith('node-red\n') ? true : undefined,
  )
})

after(async () => {
  if (attempts.count > 0) console.log(String(attempts))
  await machine?.destroy()
  await lab?.stop()
})

/** Adds a flow beside those that are there. */
async function add(label: string, nodes: object[], configs: object[] = []): Promise<void> {
  const added = await owner.fetch(`https://${name}/flow`, {
    method: 'POST',
    headers: json,
    body: JSON.stringify({ label, nodes, configs }),
    timeout: 120_000,
  })
  assert.equal(added.status, 200, added.body.toString())
}

const ask = async (url: string, body?: string): Promise<string> =>
  (
    await owner.fetch(`https://${name}/app/${url}`, {
      ...(body !== undefined && {
        method: 'POST',
        headers: { 'content-type': 'text/plain' },
        body,
      }),
      timeout: 60_000,
    })
  ).body.toString()

/** What a node has sent last, to be asked for at /app/`url`. */
const told = (url: string): object[] => [
  {
    id: `${url}-keep`,
    type: 'change',
    rules: [{ t: 'set', p: url, pt: 'flow', to: 'payload', tot: 'msg' }],
    wires: [[]],
  },
  { id: `${url}-ask`, type: 'http in', url: `/${url}`, method: 'get', wires: [[`${url}-get`]] },
  {
    id: `${url}-get`,
    type: 'change',
    rules: [{ t: 'set', p: 'payload', pt: 'msg', to: url, tot: 'flow' }],
    wires: [[`${url}-answer`]],
  },
  { id: `${url}-answer`, type: 'http response', statusCode: '200', headers: {}, wires: [] },
]

/** Hands what is posted to /app/`url` to a node. */
const said = (url: string, to: string): object[] => [
  {
    id: `${url}-in`,
    type: 'http in',
    url: `/${url}`,
    method: 'post',
    wires: [[to, `${url}-done`]],
  },
  { id: `${url}-done`, type: 'http response', statusCode: '200', headers: {}, wires: [] },
]

test('what is granted opens, and no other device; a program of its own runs in its own directory alone', async () => {
  const devices = { given: '^/dev/(tty(AMA|S)\\d+|gpiochip\\d+)$', wanted: ['/dev/gpiochip0'] }
  noteAll(attempts, from, await shell(owner, name, await breakIn('devices', devices)))
  const places = { home: '/var/lib/node-red', places: [] }
  noteAll(attempts, from, await shell(owner, name, await breakIn('write', places)))
  assert.deepEqual(attempts.through(), [])
})

test('serial: a native add-on is installed and loads, and a flow talks through an adapter that is plugged in later', async () => {
  const installed = await install(owner, name, 'node-red-node-serialport')
  assert.deepEqual(installed.said, [])
  assert.ok(installed.types.includes('serial out'), installed.types.join())
  const socket = path.join(lab.dir, 'adapter')
  await machine.plugSerial(socket)
  const port = await eventually('it has a name that stays', 100, async () => {
    const { stdout } = await machine.run('ls /dev/serial/by-id/')
    return stdout.trim() === '' ? undefined : `/dev/serial/by-id/${stdout.trim()}`
  })
  attempts.note(from, '(allowed) an adapter plugged in', port, /by-id\/usb-/.test(port))
  await add(
    'Serial',
    [
      { id: 'port-in', type: 'serial in', serial: 'port', wires: [['heard-keep']] },
      { id: 'port-out', type: 'serial out', serial: 'port', wires: [] },
      ...told('heard'),
      ...said('say', 'port-out'),
    ],
    [
      {
        id: 'port',
        type: 'serial-port',
        serialport: port,
        serialbaud: '9600',
        databits: '8',
        parity: 'none',
        stopbits: '1',
        newline: '\\n',
        bin: 'false',
        out: 'char',
        addchar: '\\n',
        responsetimeout: '10000',
      },
    ],
  )
  const line: Socket = connect(socket)
  await once(line, 'connect')
  let came = ''
  line.setEncoding('utf8').on('data', (text: string) => (came += text))
  await eventually('what a flow says comes out of the adapter', 100, async () => {
    await ask('say', 'out of the box')
    return came.includes('out of the box\n') ? true : undefined
  })
  await eventually('what comes in at the adapter reaches a flow', 100, async () => {
    line.write('21.5 C\n')
    return (await ask('heard')).includes('21.5 C') ? true : undefined
  })
  line.destroy()
})

test('gpio: node-red-node-pi-gpio drives a pin, and hears of a button', async () => {
  // The button's driver has the line that is to be read.
  const { stdout: freed } = await machine.run(
    'for k in /sys/bus/platform/drivers/gpio-keys/*; do [ ! -L "$k" ] || [ ! -d "$k/input" ] ' +
      '|| basename "$k" >/sys/bus/platform/drivers/gpio-keys/unbind; done; mount -t debugfs ' +
      'none /sys/kernel/debug 2>/dev/null; cat /sys/kernel/debug/gpio',
  )
  // Kernels count from 0, or from 512: which of both, it says.
  const first = Number(/^gpiochip0: GPIOs (\d+)-/m.exec(freed)![1])
  const installed = await install(owner, name, 'node-red-node-pi-gpio')
  assert.deepEqual(installed.said, [])
  assert.ok(installed.types.includes('rpi-gpio out'), installed.types.join())
  await add('Pins', [
    {
      id: 'led',
      type: 'rpi-gpio out',
      pin: '5',
      bcm: true,
      set: true,
      level: '0',
      out: 'out',
      wires: [],
    },
    { id: 'fan', type: 'rpi-gpio out', pin: '6', bcm: true, freq: '50', out: 'pwm', wires: [] },
    {
      id: 'button',
      type: 'rpi-gpio in',
      pin: '3',
      bcm: true,
      intype: 'tri',
      debounce: '5',
      read: true,
      wires: [['count']],
    },
    {
      id: 'count',
      type: 'function',
      func: "flow.set('n', (flow.get('n') || '') + msg.payload); msg.payload = flow.get('n'); return msg",
      outputs: 1,
      wires: [['pressed-keep']],
    },
    ...told('pressed'),
    ...said('light', 'led'),
    ...said('speed', 'fan'),
  ])
  const line = async (number: number): Promise<string> =>
    (await machine.run(`grep 'gpio-${first + number} ' /sys/kernel/debug/gpio | grep node-red`))
      .stdout
  for (const [level, shown] of [
    ['1', /out hi/],
    ['0', /out lo/],
    ['1', /out hi/],
  ] as const)
    await eventually(`the pin follows the flow: ${level}`, 60, async () => {
      await ask('light', level)
      return shown.test(await line(5)) ? true : undefined
    })
  await ask('speed', '50')
  const seen = new Set<string>()
  await eventually('pulses', 60, async () => {
    const { stdout } = await machine.run(
      'for i in 1 2 3 4 5 6 7 8 9 10 11 12; do grep -o "node-red.*out .." /sys/kernel/debug/gpio | tail -1; done',
    )
    for (const text of stdout.match(/out (?:hi|lo)/g) ?? []) seen.add(text)
    return seen.size === 2 ? true : undefined
  })
  await eventually('a press reaches the flow, up and down', 100, async () => {
    await machine.pressButton()
    return /10$|01$/.test(await ask('pressed')) ? true : undefined
  })
  const sizes = await machine.run(
    'for p in $(pgrep -f gatehouse/gpio/python3 || pidof python3); do grep -E ' +
      '"^(VmRSS|Threads)" /proc/$p/status | tr -s "\\t\\n " " "; echo; done',
  )
  attempts.note(from, '(allowed) pins: memory and threads of each', sizes.stdout, true)
})

test('nothing left the lab', async () => {
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
