// Who is at the other end, in Node-RED's terms: adminAuth that believes the gateway and nobody
// else. https://nodered.org/docs/user-guide/runtime/securing-node-red#custom-user-authentication
'use strict'

const crypto = require('node:crypto')

/**
 * Node-RED's adminAuth setting. There is no login page and no session: each request, and the
 * handshake of the editor's WebSocket, carries an assertion of the gateway's
 * (src/gateway/access/channel.ts) in a header, which is checked here. Without one nobody is logged
 * in, and nothing may be read or done.
 *
 * @param {Buffer} key the gateway's and ours alone; at least 32 bytes
 * @returns {{tokenHeader: string, tokens: (token: string) => Promise<{username: string,
 *   permissions: string} | null>}}
 * @throws if the key is too short: Node-RED must then not start, because anybody might guess it
 */
module.exports = function adminAuth(key) {
  if (key.length < 32)
    throw new Error(
      'the key shared with the gateway is missing or too short: restart the device, it is made at each boot',
    )
  return {
    tokenHeader: 'x-gatehouse-user',
    tokens: async (token) => {
      const [payload, signature, ...rest] = String(token).split('.')
      if (!payload || !signature || rest.length > 0) return null
      const expected = crypto.createHmac('sha256', key).update(payload).digest()
      const given = Buffer.from(signature, 'base64url')
      if (given.length !== expected.length || !crypto.timingSafeEqual(given, expected)) return null
      const { username, permissions, expires } = JSON.parse(
        Buffer.from(payload, 'base64url').toString('utf8'),
      )
      if (!(expires > Date.now())) return null
      // The editor puts the name into its menu as HTML.
      return { username: String(username).replace(/[<>&"'`]/g, '_'), permissions }
    },
  }
}

/**
 * Where the editor is: where the gateway looks for it, and where nobody else can know it to be
 * (editorRoot of src/gateway/access/channel.ts). What flows serve has the root.
 *
 * @param {Buffer} key as above
 * @returns {string} with a slash at both ends
 */
module.exports.editorRoot = function editorRoot(key) {
  return `/${crypto.createHmac('sha256', key).update('editor root').digest('hex').slice(0, 32)}/`
}

/**
 * Node-RED's httpNodeAuth setting: asked before what flows serve, and after the editor. Express
 * passes on what the editor does not have, so that a flow with a pattern for its address would
 * answer at the editor's, to a browser as the editor's own. It ends here.
 *
 * @param {string} root as {@link editorRoot} gives it
 * @param {undefined | Function | Function[] | {user: string, pass: string}} given the user's own
 *   httpNodeAuth
 * @param {(password: string, hash: string) => boolean} compare of bcrypt, for that
 * @returns {Function[]}
 */
module.exports.beforeFlows = function beforeFlows(root, given, compare) {
  const own = root.slice(0, -1)
  const guard = (request, response, next) => {
    const path = request.originalUrl.split('?', 1)[0].toLowerCase()
    if (path === own || path.startsWith(root)) response.sendStatus(404)
    else next()
  }
  if (given === undefined || given === null) return [guard]
  if (typeof given === 'function' || Array.isArray(given)) return [guard, given].flat()
  return [guard, basic(given, compare)]
}

/** One user and a bcrypt hash of the password, as Node-RED has it where httpNodeAuth is an object. */
function basic({ user, pass }, compare) {
  let known
  return (request, response, next) => {
    if (request.method === 'OPTIONS') return next()
    const [, encoded = ''] = /^basic +(.+)$/i.exec(request.headers.authorization ?? '') ?? []
    const [name, ...rest] = Buffer.from(encoded, 'base64').toString('utf8').split(':')
    const password = rest.join(':')
    // Of 32 characters it is an MD5 sum, from Node-RED's early days.
    const right = () =>
      pass.length === 32
        ? crypto.createHash('md5').update(password).digest('hex') === pass
        : compare(password, pass)
    if (name === user && (password === known || right())) {
      // A hash takes its time by design, and it is the same one until the next start.
      known = password
      return next()
    }
    response.set('WWW-Authenticate', 'Basic realm="Authorization Required"')
    return response.sendStatus(401)
  }
}
