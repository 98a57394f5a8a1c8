// Node-RED's settings on the appliance: stock Node-RED, reachable by one unix socket and nothing else.
// https://nodered.org/docs/user-guide/runtime/configuration
'use strict';

const fs = require('node:fs');
const path = require('node:path');

/** What systemd handed over for this start, by name: see node-red.service. */
const credential = (name) => path.join(process.env.CREDENTIALS_DIRECTORY ?? '/nonexistent', name);

const socket = '/run/node-red/http.sock';
// A socket left by a killed process would stop the next one with EADDRINUSE. No other process has this directory.
fs.rmSync(socket, { force: true });

/** What gatehouse.toml switches on, as gatehouse-provision passes it on in the unit's environment. */
const palette = process.env.GATEHOUSE_PALETTE === 'yes';
const projects = process.env.GATEHOUSE_PROJECTS === 'yes';
const functionModules = process.env.GATEHOUSE_FUNCTION_MODULES === 'yes';

/** What belongs to the appliance: the door, the keys, the limits. A user's own settings cannot change it. */
const fixed = {
  uiPort: socket,
  uiHost: undefined,
  https: undefined,

  // Who may do what is the gateway's to say. What flows serve has a root of its own, so that the gateway can tell it from the editor.
  adminAuth: require('./node-red-auth.cjs')(fs.readFileSync(credential('channel'))),
  httpAdminRoot: '/',
  httpNodeRoot: '/app/',

  // Without it Node-RED must not start: with another it would throw the credentials stored with the flows away.
  credentialSecret: fs.readFileSync(credential('credential-secret'), 'utf8'),
  userDir: '/var/lib/node-red',

  // Installed only where the list of targets (gatehouse.toml, [node_red] allow) has "palette": without, a try would only time out.
  externalModules: {
    autoInstall: false,
    palette: { allowInstall: palette, allowUpload: palette, allowUpdate: palette },
    modules: { allowInstall: palette && functionModules },
  },
  functionExternalModules: functionModules,
  telemetry: { enabled: false, updateNotification: false },
};

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
};

/**
 * The user's own settings: the file beside gatehouse.toml that `settings_file` names. What is wrong in it is said in the journal,
 * and Node-RED starts without it: the editor is needed to put most things right.
 *
 * @returns {object}
 */
function additions() {
  if (!fs.existsSync(credential('settings.js'))) return {};
  try {
    const given = require(credential('settings.js'));
    if (given === null || typeof given !== 'object') throw new Error('it exports no object: write module.exports = { … }');
    const refused = Object.keys(given).filter((key) => Object.hasOwn(fixed, key));
    if (refused.length > 0) console.error(`settings_file: ${refused.join(', ')} cannot be set there and is ignored: the appliance sets it`);
    return given;
  } catch (error) {
    console.error(`settings_file is not used: ${error.message}`);
    return {};
  }
}

const given = additions();
module.exports = { ...defaults, ...given, ...fixed };
// Of the editor's looks all is the user's but this: gatehouse.toml says whether there are projects.
module.exports.editorTheme = { ...module.exports.editorTheme, projects: { ...given.editorTheme?.projects, enabled: projects } };
