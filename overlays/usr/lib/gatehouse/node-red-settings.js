// Node-RED's settings on the appliance: stock Node-RED, reachable by one unix socket and nothing else.
// https://nodered.org/docs/user-guide/runtime/configuration
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');

/**
 * This device's key for the credentials in flows. Made once, and kept outside the flows' directory, so that a copy of the
 * flows (a backup, a project repository) does not carry the key to its own secrets.
 *
 * @returns {string} 64 hexadecimal digits.
 * @throws if the file exists and cannot be read, or cannot be made: Node-RED must then not start, because with another key
 *   it would throw the stored credentials away.
 */
function credentialSecret() {
  const file = '/var/lib/node-red-secret/credential-secret';
  try {
    const secret = fs.readFileSync(file, 'utf8').trim();
    if (/^[0-9a-f]{64}$/.test(secret)) return secret;
    throw new Error(`${file} is damaged: restore it from a backup, or delete it and enter the flows' credentials anew`);
  } catch (error) {
    if (error.code !== 'ENOENT') throw error;
  }
  const secret = crypto.randomBytes(32).toString('hex');
  const fresh = `${file}.new`;
  // On disk before it has its name, and its name on disk before it is used: a power cut leaves all or nothing.
  const fd = fs.openSync(fresh, 'w', 0o600);
  fs.writeSync(fd, `${secret}\n`);
  fs.fsyncSync(fd);
  fs.closeSync(fd);
  fs.renameSync(fresh, file);
  const directory = fs.openSync(path.dirname(file), 'r');
  fs.fsyncSync(directory);
  fs.closeSync(directory);
  return secret;
}

const socket = '/run/node-red/http.sock';
// A socket left by a killed process would stop the next one with EADDRINUSE. No other process has this directory.
fs.rmSync(socket, { force: true });

/** What gatehouse.toml switches on, as gatehouse-provision passes it on in the unit's environment. */
const palette = process.env.GATEHOUSE_PALETTE === 'yes';
const functionModules = process.env.GATEHOUSE_FUNCTION_MODULES === 'yes';

/** What belongs to the appliance: the door, the keys, the limits. A user's own settings cannot change it. */
const fixed = {
  uiPort: socket,
  uiHost: undefined,
  https: undefined,

  // Who may do what is the gateway's to say. What flows serve has a root of its own, so that the gateway can tell it from the editor.
  adminAuth: require('./node-red-auth.cjs')(fs.readFileSync(path.join(process.env.CREDENTIALS_DIRECTORY ?? '/nonexistent', 'channel'))),
  httpAdminRoot: '/',
  httpNodeRoot: '/app/',

  credentialSecret: credentialSecret(),
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
    projects: { enabled: false },
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
  const directory = process.env.CREDENTIALS_DIRECTORY;
  if (directory === undefined || !fs.existsSync(`${directory}/settings.js`)) return {};
  try {
    const given = require(`${directory}/settings.js`);
    if (given === null || typeof given !== 'object') throw new Error('it exports no object: write module.exports = { … }');
    const refused = Object.keys(given).filter((key) => Object.hasOwn(fixed, key));
    if (refused.length > 0) console.error(`settings_file: ${refused.join(', ')} cannot be set there and is ignored: the appliance sets it`);
    return given;
  } catch (error) {
    console.error(`settings_file is not used: ${error.message}`);
    return {};
  }
}

module.exports = { ...defaults, ...additions(), ...fixed };
