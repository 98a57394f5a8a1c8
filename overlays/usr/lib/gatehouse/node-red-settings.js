// Node-RED's settings on the appliance: stock Node-RED, reachable by one unix socket and nothing
// else. https://nodered.org/docs/user-guide/runtime/configuration
'use strict'

const fs = require('node:fs')
const os = require('node:os')
const path = require('node:path')

/** What systemd handed over for this start, by name: see node-red.service. */
const credential = (name) => path.join(process.env.CREDENTIALS_DIRECTORY ?? '/nonexistent', name)

const socket = '/run/node-red/http.sock'
// A socket left by a killed process would stop the next one with EADDRINUSE. The unit has emptied
// the directory; a test has not.
fs.rmSync(socket, { force: true })

const gate = require('./node-red-auth.cjs')
const channel = fs.readFileSync(credential('channel'))

/**
 * [node_red.env]: flows read it as `$(NAME)` or env.get. Put here and not by the unit, whose settings
 * every user of the machine may read; and it is not in what the kernel shows of the process either.
 */
function environment() {
  let text = ''
  try {
    text = fs.readFileSync(credential('env'), 'utf8').trim()
  } catch {
    // None is handed over.
  }
  if (text !== '') Object.assign(process.env, JSON.parse(text))
}
environment()

/**
 * What gatehouse.toml switches on, as gatehouse-provision passes it on in the unit's environment.
 */
const palette = process.env.GATEHOUSE_PALETTE === 'yes'
const projects = process.env.GATEHOUSE_PROJECTS === 'yes'
const functionModules = process.env.GATEHOUSE_FUNCTION_MODULES === 'yes'
const prebuilt = process.env.GATEHOUSE_PREBUILT === 'yes'

// npm within bounds, and a sentence for the editor where it fails.
if (palette && require.main !== undefined)
  require('./node-red-install.cjs').bound(require.main.require('@node-red/util').exec, { prebuilt })

/**
 * What belongs to the appliance: the door, the keys, the limits. A user's own settings cannot
 * change it.
 */
const fixed = {
  uiPort: socket,
  uiHost: undefined,
  https: undefined,

  // Who may do what is the gateway's to say. Editor and flows are at ports of their own there: the
  // one's requests come below a path that nobody else knows, the others' as they are.
  adminAuth: gate(channel),
  httpAdminRoot: gate.editorRoot(channel),
  httpNodeRoot: '/',

  // Without it Node-RED must not start: with another it would throw the credentials stored with the
  // flows away.
  credentialSecret: fs.readFileSync(credential('credential-secret'), 'utf8'),
  userDir: '/var/lib/node-red',

  // Installed only where the list of targets (gatehouse.toml, [node_red] allow) has "palette":
  // without, a try would only time out.
  externalModules: {
    autoInstall: false,
    palette: { allowInstall: palette, allowUpload: palette, allowUpdate: palette },
    modules: { allowInstall: palette && functionModules },
  },
  functionExternalModules: functionModules,
  telemetry: { enabled: false, updateNotification: false },
}

/** What a user's own settings may replace. */
const defaults = {
  flowFile: 'flows.json',
  flowFilePretty: true,
  editorTheme: {
    page: { title: 'Node-RED' },
    // The browser, which is in the internet, reads the catalogue; the appliance does not.
    palette: palette ? {} : { catalogues: [] },
    tours: false,
  },
  logging: { console: { level: 'info', metrics: false, audit: false } },
  // What flows keep outlives a restart, within their share of the disk. Written once a minute, which
  // spares the card, and when Node-RED ends; a store `memory` beside it is for what need not.
  contextStorage: {
    default: { module: 'localfilesystem', config: { flushInterval: 60 } },
    memory: { module: 'memory' },
  },
}

/**
 * The user's own settings: the file beside gatehouse.toml that `settings_file` names. What is wrong
 * in it is said in the journal, and Node-RED starts without it: the editor is needed to put most
 * things right.
 *
 * @returns {object}
 */
function additions() {
  if (!fs.existsSync(credential('settings.js'))) return {}
  try {
    const given = require(credential('settings.js'))
    if (given === null || typeof given !== 'object')
      throw new Error('it exports no object: write module.exports = { … }')
    const refused = Object.keys(given).filter((key) => Object.hasOwn(fixed, key))
    if (refused.length > 0)
      console.error(
        `settings_file: ${refused.join(', ')} cannot be set there and is ignored: the appliance sets it`,
      )
    return given
  } catch (error) {
    console.error(`settings_file is not used: ${error.message}`)
    return {}
  }
}

/**
 * Whether flows are to be left stopped: they have brought Node-RED down three times within ten
 * minutes, or have left no room for a file. The editor is then there to put them right, and says
 * so; a deploy starts them. A start that ends in good order leaves no trace.
 *
 * Times are those since power-on: a board without a clock may believe anything. And they are gone with
 * the power: a new boot is a new attempt, since a mains that comes and goes is no fault of flows.
 */
function leftStopped() {
  const run = process.env.GATEHOUSE_NODE_RED_RUN ?? path.dirname(socket)
  const file = path.join(run, 'starts')
  const now = os.uptime()
  let starts = []
  try {
    starts = JSON.parse(fs.readFileSync(file, 'utf8')).filter((at) => at <= now && at > now - 600)
  } catch {
    // None yet, or no list.
  }
  try {
    fs.writeFileSync(file, JSON.stringify([...starts, now].slice(-3)), { mode: 0o600 })
    process.on('exit', (code) => {
      if (code === 0) fs.writeFileSync(file, '[]')
    })
  } catch (error) {
    console.error(`${file} cannot be written: ${error.message}`)
  }
  // Said by the unit (node-red-room), which has then given it room for what the editor saves.
  if (fs.existsSync(path.join(run, 'full'))) {
    console.error(
      'Node-RED had no room for a file, so flows are not started. Open the editor, change what fills the disk, have it emptied (an exec node with rm -r and the folder), and deploy',
    )
    return true
  }
  if (starts.length < 3) return false
  console.error(
    'Node-RED has gone down three times within ten minutes, so flows are not started. Open the editor, change what brings it down, and deploy',
  )
  return true
}

/**
 * For Dashboard 2, which takes the address of who is there (`msg._client.socketIp`) from the
 * connection: that is the gateway's, a unix socket's, and has none. The gateway says it in a header
 * that nobody else can send. What the user's own settings have of the dashboard's stays.
 *
 * @returns {object}
 */
function dashboard({ dashboard, ui }) {
  const own = dashboard ?? ui ?? {}
  const address = (socket, next) => {
    const [first] = (socket.handshake.headers['x-forwarded-for'] ?? '').split(',')
    if (first !== '') socket.handshake.address = first.trim()
    next()
  }
  return { ...own, ioMiddleware: [address, ...[own.ioMiddleware ?? []].flat()] }
}

const given = additions()
module.exports = { ...defaults, ...given, ...fixed, ...(leftStopped() ? { safeMode: true } : {}) }
module.exports.httpNodeAuth = gate.beforeFlows(
  fixed.httpAdminRoot,
  given.httpNodeAuth,
  (password, hash) => require.main.require('bcryptjs').compareSync(password, hash),
)
module.exports.dashboard = dashboard(given)
// Of the editor's looks all is the user's but this: gatehouse.toml says whether there are projects.
module.exports.editorTheme = {
  ...module.exports.editorTheme,
  projects: { ...given.editorTheme?.projects, enabled: projects },
}
