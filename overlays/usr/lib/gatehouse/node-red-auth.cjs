// Who is at the other end, in Node-RED's terms: adminAuth that believes the gateway and nobody
// else. https://nodered.org/docs/user-guide/runtime/securing-node-red#custom-user-authentication
'use strict'

const crypto = require('node:crypto')

/**
 * Node-RED's adminAuth setting. There is no login page and no session: each request, and the
 * handshake of the editor's WebSocket, carries a statement of the gateway's
 * (src/gateway/access/channel.ts) in a header, which is checked here. Without one nobody is logged in, and
 * nothing may be read or done.
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
