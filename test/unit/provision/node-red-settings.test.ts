import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { editorRoot } from '../../../src/gateway/access/channel.ts'

const root = mkdtempSync(join(tmpdir(), 'gh-node-red-settings-'))
after(() => rmSync(root, { recursive: true, force: true }))
const source = join(import.meta.dirname, '../../../overlays/usr/lib/gatehouse')

/**
 * Node-RED's settings as the appliance has them, with what systemd hands over; and what was said on
 * standard error.
 */
function settings(
  own: string | undefined,
  env: Record<string, string> = {},
): { settings: Record<string, any>; said: string } {
  const { stdout, stderr } = run(own, 'console.log(JSON.stringify(require(process.argv[1])))', env)
  return { settings: JSON.parse(stdout), said: stderr }
}

/** What a program prints that gets the settings' path as its argument. */
function run(
  own: string | undefined,
  program: string,
  env: Record<string, string> = {},
  handed?: string,
): { stdout: string; stderr: string } {
  const directory = mkdtempSync(join(root, 's-'))
  const credentials = join(directory, 'credentials')
  mkdirSync(credentials)
  writeFileSync(join(credentials, 'channel'), 'c'.repeat(64))
  writeFileSync(join(credentials, 'credential-secret'), 'ab'.repeat(32))
  if (handed !== undefined) writeFileSync(join(credentials, 'env'), handed)
  if (own !== undefined) writeFileSync(join(credentials, 'settings.js'), own)
  // Beside no package.json that says "module".
  copyFileSync(join(source, 'node-red-settings.js'), join(directory, 'settings.cjs'))
  copyFileSync(join(source, 'node-red-auth.cjs'), join(directory, 'node-red-auth.cjs'))
  const { stdout, stderr, status } = spawnSync(
    process.execPath,
    ['-e', program, join(directory, 'settings.cjs')],
    {
      encoding: 'utf8',
      env: { PATH: process.env.PATH, CREDENTIALS_DIRECTORY: credentials, ...env },
    },
  )
  assert.equal(status, 0, stderr)
  return { stdout, stderr }
}

test('nothing is installed and nothing fetched unless the list allows the palette', () => {
  const { settings: strict } = settings(undefined)
  assert.deepEqual(strict['externalModules'].palette, {
    allowInstall: false,
    allowUpload: false,
    allowUpdate: false,
  })
  assert.deepEqual(
    [
      strict['externalModules'].modules.allowInstall,
      strict['functionExternalModules'],
      strict['editorTheme'].palette.catalogues,
    ],
    [false, false, []],
  )
  const { settings: open } = settings(undefined, {
    GATEHOUSE_PALETTE: 'yes',
    GATEHOUSE_FUNCTION_MODULES: 'yes',
  })
  assert.deepEqual(
    [
      open['externalModules'].palette.allowInstall,
      open['externalModules'].modules.allowInstall,
      open['functionExternalModules'],
    ],
    [true, true, true],
  )
  assert.equal(strict['credentialSecret'], 'ab'.repeat(32))
  assert.equal(strict['uiPort'], '/run/node-red/http.sock')
})

test("a user's own settings count, but not for what belongs to the appliance", () => {
  const { settings: merged, said } = settings(
    'module.exports = { flowFilePretty: false, functionGlobalContext: { answer: 42 }, ' +
      'uiPort: 1880, adminAuth: null, credentialSecret: "mine" }',
  )
  assert.deepEqual(
    [merged['flowFilePretty'], merged['functionGlobalContext']],
    [false, { answer: 42 }],
  )
  assert.deepEqual(
    [merged['uiPort'], merged['credentialSecret']],
    ['/run/node-red/http.sock', 'ab'.repeat(32)],
  )
  assert.ok(merged['adminAuth'])
  assert.match(said, /uiPort, adminAuth, credentialSecret cannot be set there/)
})

test('projects are on by configuration and not otherwise, whatever else of the editor a user sets', () => {
  const own =
    'module.exports = { editorTheme: { page: { title: "Mine" }, projects: { enabled: true, ' +
    'workflow: { mode: "auto" } } } }'
  for (const [env, enabled] of [
    [{}, false],
    [{ GATEHOUSE_PROJECTS: 'yes' }, true],
  ] as const) {
    assert.equal(settings(undefined, env).settings['editorTheme'].projects.enabled, enabled)
    const { editorTheme } = settings(own, env).settings
    assert.deepEqual(
      [editorTheme.page.title, editorTheme.projects],
      ['Mine', { enabled, workflow: { mode: 'auto' } }],
    )
  }
})

test('the dashboard learns the address that the gateway says, and keeps what a user set', () => {
  const probe = `const { dashboard } = require(process.argv[1])
    const socket = { handshake: { address: '', headers: { 'x-forwarded-for': '100.64.0.7' } } }
    const seen = []
    for (const use of dashboard.ioMiddleware) use(socket, () => seen.push(socket.handshake.address))
    console.log(JSON.stringify({ seen, size: dashboard.maxHttpBufferSize }))`
  for (const [own, expected] of [
    [undefined, { seen: ['100.64.0.7'] }],
    [
      'module.exports = { dashboard: { maxHttpBufferSize: 10e6, ioMiddleware: (s, next) => { ' +
        's.handshake.address += "!"; next() } } }',
      { seen: ['100.64.0.7', '100.64.0.7!'], size: 10e6 },
    ],
    ['module.exports = { ui: { maxHttpBufferSize: 5 } }', { seen: ['100.64.0.7'], size: 5 }],
  ] as const)
    assert.deepEqual(JSON.parse(run(own, probe).stdout), expected)
})

test('a mistake in them is said, and Node-RED starts without them', () => {
  for (const own of ['throw new Error("oops")', 'module.exports = 5', 'require("./not-there")']) {
    const { settings: without, said } = settings(own)
    assert.equal(without['flowFile'], 'flows.json')
    assert.match(said, /settings_file is not used: /)
  }
})

test('flows that bring Node-RED down three times are left stopped, until a start ends in good order', () => {
  const cache = mkdtempSync(join(root, 'cache-'))
  const credentials = mkdtempSync(join(root, 'credentials-'))
  writeFileSync(join(credentials, 'channel'), 'c'.repeat(64))
  writeFileSync(join(credentials, 'credential-secret'), 'ab'.repeat(32))
  copyFileSync(join(source, 'node-red-settings.js'), join(cache, 'settings.cjs'))
  copyFileSync(join(source, 'node-red-auth.cjs'), join(cache, 'node-red-auth.cjs'))
  const start = (end: string): { safe: string; said: string } => {
    const { stdout, stderr } = spawnSync(
      process.execPath,
      [
        '-e',
        `const { safeMode } = require(${JSON.stringify(join(cache, 'settings.cjs'))}); ` +
          `require('node:fs').writeSync(1, String(safeMode)); ${end}`,
      ],
      {
        encoding: 'utf8',
        env: {
          PATH: process.env.PATH,
          CREDENTIALS_DIRECTORY: credentials,
          GATEHOUSE_NODE_RED_RUN: cache,
        },
      },
    )
    return { safe: stdout, said: stderr }
  }
  const down = "process.kill(process.pid, 'SIGKILL')"
  assert.deepEqual(
    [start(down).safe, start('process.exit(1)').safe, start(down).safe],
    ['undefined', 'undefined', 'undefined'],
  )
  const fourth = start(down)
  assert.equal(fourth.safe, 'true')
  assert.match(fourth.said, /gone down three times within ten minutes.*deploy/)
  assert.equal(start('process.exit(0)').safe, 'true')
  assert.equal(start(down).safe, 'undefined', 'that one was stopped in good order')
  // What no start can have left: times that are still to come, half a list.
  writeFileSync(join(cache, 'starts'), JSON.stringify([1e9, 1e9, 1e9]))
  assert.equal(start('process.exit(0)').safe, 'undefined')
  writeFileSync(join(cache, 'starts'), '[1, 2')
  assert.equal(start('process.exit(0)').safe, 'undefined')
})

/** What overlays/usr/lib/gatehouse/node-red-auth.cjs exports, beside adminAuth itself. */
interface Gate {
  editorRoot: (key: Buffer) => string
  beforeFlows: (
    root: string,
    given?: unknown,
    compare?: (password: string, hash: string) => boolean,
  ) => Array<
    (
      request: { originalUrl: string; method: string; headers: Record<string, string> },
      response: { sendStatus: (status: number) => void; set: (name: string) => void },
      next: () => void,
    ) => void
  >
}
const gate = createRequire(import.meta.url)(join(source, 'node-red-auth.cjs')) as Gate

/** What comes of a request on its way to flows: a status, or `passes`. */
function onTheWay(
  given: unknown,
  originalUrl: string,
  headers: Record<string, string> = {},
): number | string {
  const root = gate.editorRoot(Buffer.alloc(64, 'k'))
  let outcome: number | string = 'passes'
  const compare = (password: string, hash: string): boolean => `hash of ${password}` === hash
  for (const step of gate.beforeFlows(root, given, compare)) {
    let next = false
    step(
      { originalUrl, method: 'GET', headers },
      {
        sendStatus: (status) => {
          outcome = status
        },
        set: () => {},
      },
      () => {
        next = true
      },
    )
    if (!next) break
  }
  return outcome
}

test('the editor is where the gateway looks for it, and what it does not have ends there', () => {
  const root = gate.editorRoot(Buffer.alloc(64, 'k'))
  assert.equal(root, editorRoot(Buffer.alloc(64, 'k')))
  assert.notEqual(root, editorRoot(Buffer.alloc(64, 'j')))
  for (const url of [root, root.slice(0, -1), `${root}x?y`, root.toUpperCase(), `${root}?a=/b`])
    assert.equal(onTheWay(undefined, url), 404, url)
  for (const url of ['/', '/hello', `/x${root}`, `${root.slice(0, -1)}x/`, `/hello?${root}`])
    assert.equal(onTheWay(undefined, url), 'passes', url)
  const { settings: plain } = settings(undefined)
  assert.deepEqual(
    [plain['httpAdminRoot'], plain['httpNodeRoot']],
    [editorRoot(Buffer.from('c'.repeat(64))), '/'],
  )
})

test("a user's own httpNodeAuth counts for what flows serve, in each of its forms", () => {
  const basic = (text: string): Record<string, string> => ({
    authorization: `Basic ${Buffer.from(text).toString('base64')}`,
  })
  const user = { user: 'u', pass: 'hash of p:w' }
  assert.equal(onTheWay(user, '/x'), 401)
  assert.equal(onTheWay(user, '/x', basic('u:p:w')), 'passes')
  assert.equal(onTheWay(user, '/x', basic('u:other')), 401)
  assert.equal(onTheWay(user, '/x', basic('v:p:w')), 401)
  assert.equal(onTheWay(user, '/x', { authorization: 'Bearer x' }), 401)
  const md5 = { user: 'u', pass: createHash('md5').update('old').digest('hex') }
  assert.equal(onTheWay(md5, '/x', basic('u:old')), 'passes')
  assert.equal(onTheWay(md5, '/x', basic('u:new')), 401)
  const teapot = (_request: unknown, response: { sendStatus: (status: number) => void }): void =>
    response.sendStatus(418)
  assert.equal(onTheWay(teapot, '/x'), 418)
  assert.equal(onTheWay([teapot], '/x'), 418)
})

test('variables of [node_red.env] are in the process, and not in what the kernel shows of it', () => {
  const program =
    'require(process.argv[1]); console.log(JSON.stringify([process.env.TOKEN, ' +
    'require("node:child_process").execSync("echo $TOKEN", { encoding: "utf8" }).trim(), ' +
    'require("node:fs").readFileSync("/proc/self/environ", "utf8").includes("s3cret")]))'
  const { stdout } = run(undefined, program, {}, JSON.stringify({ TOKEN: 's3cret' }))
  assert.deepEqual(JSON.parse(stdout), ['s3cret', 's3cret', false])
  assert.deepEqual(JSON.parse(run(undefined, program, {}, '\n').stdout), [null, '', false])
})

test('what flows keep outlives a restart, unless settings_file says otherwise', () => {
  assert.equal(settings(undefined).settings['contextStorage'].default.module, 'localfilesystem')
  assert.deepEqual(
    settings('module.exports = { contextStorage: { default: "memory" } }').settings[
      'contextStorage'
    ],
    { default: 'memory' },
  )
})
