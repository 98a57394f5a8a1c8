/**
 * Nodes that people install, through the gateway and the editor's own API, by the image's Node-RED
 * and npm: from a registry in the lab that has what the real one has (test/nodes). Without the
 * image's sandbox, which is test/nodes' business. What came of each is kept for docs/nodes.md.
 * GATEHOUSE_TRY: names of test/nodes/list.ts with commas, or `all`; default: one of each kind.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { presets } from '../../src/config/egress.ts'
import { candidates } from '../nodes/list.ts'
import type { Tried } from '../nodes/report.ts'
import { install, registry, shop } from '../nodes/shop.ts'
import { Appliance, eventually } from './appliance.ts'
import { Lab, type LabClient } from './lab.ts'
import { devicePorts, secrets } from '../nodes/devices.ts'

const asked = (process.env['GATEHOUSE_TRY'] ?? 'quick').split(',')
const chosen = candidates.filter(
  ({ name, quick }) =>
    asked.includes('all') || asked.includes(name) || (asked.includes('quick') && quick),
)
const results = path.resolve(import.meta.dirname, '../../out/nodes/lab.json')
/** As many are installed beside one another; a person has fewer. */
const batch = 8

let lab: Lab
let owner: LabClient
let appliance: Appliance
let name: string
/** Namespace of what nodes talk to. */
let devices: string
/** What they were asked. */
let heard = ''
const came: Record<string, Tried> = {}

before(async () => {
  lab = await Lab.start({ name: 'shop' })
  owner = await lab.client('laptop')
  await shop(lab)
  devices = await lab.host('devices', '10.77.0.62')
  await lab.setHost('devices.lab.test', '10.77.0.62')
  const child = lab.exec(devices, [
    process.execPath,
    '--disable-warning=ExperimentalWarning',
    path.resolve(import.meta.dirname, '../nodes/devices.ts'),
  ])
  child.stdout!.setEncoding('utf8').on('data', (text: string) => (heard += text))
  let said = ''
  child.stderr!.setEncoding('utf8').on('data', (text: string) => (said += text))
  await Promise.race([
    once(child.stdout!, 'data'),
    once(child, 'exit').then(() => {
      throw new Error(`the devices have ended: ${said}`)
    }),
  ])
  appliance = await Appliance.start(lab, { registry })
  name = (await appliance.names())[0]!
})

after(async () => {
  await appliance?.stop()
  await lab?.stop()
})

test('nodes are installed from the editor', { timeout: 3_600_000 }, async (t) => {
  for (const [i, { name: module, version }] of chosen.entries()) {
    if (i > 0 && i % batch === 0) {
      await appliance.stopNodeRed()
      for (const left of ['node_modules', 'package.json', 'package-lock.json'])
        await rm(path.join(appliance.dir, 'node-red', left), { recursive: true, force: true })
      await rm(appliance.env['GATEHOUSE_NODE_RED_SOCKET']!, { force: true })
      await appliance.startNodeRed()
      await eventually('the editor answers', 120, async () =>
        (await owner.fetch(`https://${name}/settings`)).status === 200 ? true : undefined,
      )
    }
    came[module] = { ...(await install(owner, name, module, version)), peak: 0 }
    t.diagnostic(`${module}: ${JSON.stringify(came[module])}`)
    const known: object = JSON.parse(await readFile(results, 'utf8').catch(() => '{}'))
    await mkdir(path.dirname(results), { recursive: true })
    await writeFile(results, `${JSON.stringify({ ...known, ...came }, null, 2)}\n`)
  }
})

test('a native add-on that comes compiled loads; what is to be compiled is said, with what to do', () => {
  const serial = came['node-red-node-serialport']
  if (serial !== undefined) {
    assert.deepEqual(serial.said, [])
    assert.ok(serial.types.includes('serial in'), serial.types.join())
  }
  const sqlite = came['node-red-node-sqlite']
  if (sqlite !== undefined)
    assert.match(
      sqlite.said.join(),
      /^Install failed: sqlite3 has to be compiled .* no compiler here\. Add "prebuilt" to allow/,
    )
  const gpio = came['node-red-node-pi-gpio']
  if (gpio !== undefined) assert.deepEqual(gpio.said, [])
})

/** Installed beside one another, so that they can be used; in a long run they are gone again. */
const used = (module: string): { skip: false | string } => ({
  skip:
    chosen.length <= batch && chosen.some((one) => one.name === module)
      ? false
      : 'not among what this run installs',
})

/** Adds a flow beside those that are there. */
async function add(label: string, nodes: object[], configs: object[] = []): Promise<void> {
  const added = await owner.fetch(`https://${name}/flow`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ label, nodes, configs }),
    timeout: 60_000,
  })
  assert.equal(added.status, 200, added.body.toString())
}

/** What a flow answers at a path of its own, as soon as it is what it should be. */
async function answers(url: string, expected: RegExp): Promise<void> {
  let last = ''
  await eventually(`/${url} answers ${expected}`, 40, async () => {
    const answer = await owner.fetch(`https://${name}:8443/${url}`, { timeout: 5_000 })
    last = `${answer.status} ${answer.body}`
    return expected.test(answer.body.toString())
  }).catch((err: unknown) => {
    throw new Error(`the last answer was ${last.slice(0, 500)}`, { cause: err })
  })
}

/** http in, then the nodes given from `first` on, which lead to `url-out`. */
const web = (url: string, first: string): object[] => [
  { id: `${url}-in`, type: 'http in', url: `/${url}`, method: 'get', wires: [[first]] },
  { id: `${url}-out`, type: 'http response', statusCode: '', headers: {}, wires: [] },
]
/** What a node has told last, answered at a path. */
const kept = (url: string): object[] => [
  {
    id: `${url}-keep`,
    type: 'change',
    rules: [{ t: 'set', p: url, pt: 'flow', to: 'payload', tot: 'msg' }],
    wires: [[]],
  },
  ...web(url, `${url}-get`),
  {
    id: `${url}-get`,
    type: 'change',
    rules: [{ t: 'set', p: 'payload', pt: 'msg', to: url, tot: 'flow' }],
    wires: [[`${url}-out`]],
  },
]

test('modbus: registers of a device are read', used('node-red-contrib-modbus'), async () => {
  assert.deepEqual(came['node-red-contrib-modbus']!.said, [])
  await add(
    'Modbus',
    [
      ...web('registers', 'get'),
      {
        id: 'get',
        type: 'modbus-getter',
        unitid: '1',
        dataType: 'HoldingRegister',
        adr: '2',
        quantity: '3',
        server: 'meter',
        keepMsgProperties: true,
        wires: [['registers-out'], []],
      },
    ],
    [
      {
        id: 'meter',
        type: 'modbus-client',
        clienttype: 'tcp',
        bufferCommands: true,
        tcpHost: 'devices.lab.test',
        tcpPort: String(devicePorts.modbus),
        tcpType: 'DEFAULT',
        unit_id: '1',
        commandDelay: '1',
        clientTimeout: '2000',
        reconnectOnTimeout: true,
        reconnectTimeout: '2000',
        parallelUnitIdsAllowed: true,
      },
    ],
  )
  await answers('registers', /^\[102,103,104\]$/)
})

test(
  'aedes: a client on the local network publishes, a flow hears it',
  used('node-red-contrib-aedes'),
  async () => {
    assert.deepEqual(came['node-red-contrib-aedes']!.said, [])
    await add(
      'Broker',
      [
        {
          id: 'broker',
          type: 'aedes broker',
          mqtt_port: '1883',
          mqtt_ws_bind: 'port',
          mqtt_ws_port: '',
          mqtt_ws_path: '',
          persistence_bind: 'memory',
          dburl: '',
          usetls: false,
          wires: [[], []],
        },
        {
          id: 'hear',
          type: 'mqtt in',
          topic: 'roof/#',
          qos: '0',
          datatype: 'utf8',
          broker: 'own',
          wires: [['heard-keep']],
        },
        ...kept('heard'),
      ],
      [
        {
          id: 'own',
          type: 'mqtt-broker',
          broker: '127.0.0.1',
          port: '1883',
          clientid: '',
          autoConnect: true,
          keepalive: '60',
          cleansession: true,
          protocolVersion: '4',
        },
      ],
    )
    const mqtt = path.resolve(
      import.meta.dirname,
      `../../out/cache/node-red-${process.arch}/node_modules/mqtt`,
    )
    const publish = `const client = require(${JSON.stringify(mqtt)}).connect('mqtt://10.77.0.60:1883', { reconnectPeriod: 500 });
    client.on('connect', () => setInterval(() => client.publish('roof/temperature', '21.5 C'), 300)); setTimeout(() => process.exit(), 30000)`
    const sensor = lab.exec(devices, [process.execPath, '-e', publish])
    await answers('heard', /^21\.5 C$/)
    sensor.kill()
  },
)

test(
  'home-assistant-websocket: the state of an entity reaches a flow',
  used('node-red-contrib-home-assistant-websocket'),
  async () => {
    assert.deepEqual(came['node-red-contrib-home-assistant-websocket']!.said, [])
    await add(
      'Home',
      [
        ...web('roof', 'state'),
        {
          id: 'state',
          type: 'api-current-state',
          server: 'home',
          version: 3,
          outputs: 1,
          halt_if: '',
          halt_if_type: 'str',
          halt_if_compare: 'is',
          entity_id: 'sensor.roof',
          state_type: 'str',
          blockInputOverrides: true,
          outputProperties: [
            { property: 'payload', propertyType: 'msg', value: '', valueType: 'entityState' },
          ],
          for: '0',
          forType: 'num',
          forUnits: 'minutes',
          wires: [['roof-out']],
        },
      ],
      [
        {
          id: 'home',
          type: 'server',
          name: 'Home',
          version: 5,
          addon: false,
          rejectUnauthorizedCerts: true,
          ha_boolean: 'y|yes|true|on|home|open',
          connectionDelay: false,
          cacheJson: false,
          heartbeat: false,
          heartbeatInterval: '30',
          credentials: {
            host: `http://devices.lab.test:${devicePorts.homeAssistant}`,
            access_token: secrets.homeAssistant,
          },
        },
      ],
    )
    await answers('roof', /^21\.5$/)
  },
)

test(
  "telegrambot: a bot says and hears; by itself it asks for the preset's host",
  used('node-red-contrib-telegrambot'),
  async () => {
    assert.deepEqual(came['node-red-contrib-telegrambot']!.said, [])
    // Two with one token are one bot, which the node refuses.
    const bot = (id: string, baseapiurl: string, token: string): object => ({
      id,
      type: 'telegram bot',
      // Not its id: Node-RED takes a value that is one for a node that is needed first.
      botname: `the ${id} one`,
      usernames: '',
      chatids: '',
      baseapiurl,
      updatemode: 'polling',
      pollinterval: '300',
      usesocks: false,
      credentials: { token },
    })
    await add(
      'Bots',
      [
        ...web('say', 'word'),
        {
          id: 'word',
          type: 'function',
          func:
            "node.send([{ payload: { chatId: 7, type: 'message', content: 'hello' } }, { " +
            "...msg, payload: 'sent' }])",
          outputs: 2,
          wires: [['sender'], ['say-out']],
        },
        {
          id: 'sender',
          type: 'telegram sender',
          bot: 'near',
          haserroroutput: false,
          outputs: 1,
          wires: [[]],
        },
        {
          id: 'receiver',
          type: 'telegram receiver',
          bot: 'near',
          saveDataDir: '',
          filterCommands: false,
          wires: [['text'], []],
        },
        {
          id: 'text',
          type: 'function',
          func: 'return { payload: msg.payload.content }',
          outputs: 1,
          wires: [['told-keep']],
        },
        ...kept('told'),
        {
          id: 'sender2',
          type: 'telegram sender',
          bot: 'far',
          haserroroutput: false,
          outputs: 1,
          wires: [[]],
        },
        {
          id: 'receiver2',
          type: 'telegram receiver',
          bot: 'far',
          saveDataDir: '',
          filterCommands: false,
          wires: [[], []],
        },
      ],
      [
        bot('near', `http://devices.lab.test:${devicePorts.telegram}`, secrets.bot),
        bot('far', '', '7:another'),
      ],
    )
    await eventually('the bot is asked for what came', 30, async () => heard.includes('getUpdates'))
    await answers('say', /^sent$/)
    await answers('told', /^you said hello$/).catch((err: unknown) => {
      throw new Error(heard.slice(-1_500), { cause: err })
    })
    await eventually('it asks for api.telegram.org', 30, async () =>
      (await lab.queries()).some((query) => query.name.replace(/\.$/, '') === 'api.telegram.org'),
    )
    assert.ok(presets.telegram.targets.includes('api.telegram.org:443'))
  },
)

test(
  'dashboard 2: a page of it is served where flows are',
  used('@flowfuse/node-red-dashboard'),
  async () => {
    assert.deepEqual(came['@flowfuse/node-red-dashboard']!.said, [])
    await add(
      'Board',
      [
        {
          id: 'board-text',
          type: 'ui-text',
          group: 'group',
          order: 1,
          width: 0,
          height: 0,
          name: '',
          label: 'Roof',
          format: '{{msg.payload}}',
          layout: 'row-spread',
          wires: [],
        },
      ],
      [
        {
          id: 'base',
          type: 'ui-base',
          name: 'Board',
          path: '/dashboard',
          includeClientData: true,
          acceptsClientConfig: [],
          showPathInSidebar: false,
          navigationStyle: 'default',
        },
        {
          id: 'theme',
          type: 'ui-theme',
          name: 'Theme',
          colors: {
            surface: '#ffffff',
            primary: '#0094CE',
            bgPage: '#eeeeee',
            groupBg: '#ffffff',
            groupOutline: '#cccccc',
          },
          sizes: {
            density: 'default',
            pagePadding: '12px',
            groupGap: '12px',
            groupBorderRadius: '4px',
            widgetGap: '12px',
          },
        },
        {
          id: 'page',
          type: 'ui-page',
          name: 'Page',
          ui: 'base',
          path: '/page1',
          icon: 'home',
          layout: 'grid',
          theme: 'theme',
          order: 1,
          className: '',
          visible: true,
          disabled: false,
        },
        {
          id: 'group',
          type: 'ui-group',
          name: 'Group',
          page: 'page',
          width: '6',
          height: '1',
          order: 1,
          showTitle: true,
          className: '',
          visible: true,
          disabled: false,
        },
      ],
    )
    await answers('dashboard/', /id="app"/)
    await answers('dashboard/_setup', /socketio/)
  },
)

test('nothing left the lab', async () => {
  // npm asks where a maker's compiled add-on is; the lab's DNS has no answer, and nothing goes out.
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
