import { createHmac } from 'node:crypto'
import type { WhoIs } from '@gatehouse/tsnet'
import type { Access } from './access.ts'

/**
 * Where Node-RED has its editor: a path that nobody can guess, anew at each boot, so that it is
 * reached through the port whose requests get it in front and through no other. What flows serve
 * has the root. The other end is overlays/usr/lib/gatehouse/node-red-auth.cjs.
 *
 * @param key as for {@link assertion}
 * @returns with a slash at both ends
 */
export function editorRoot(key: Buffer): string {
  return `/${createHmac('sha256', key).update('editor root').digest('hex').slice(0, 32)}/`
}

/**
 * An assertion is good for this long: it is checked on the same machine a moment later.
 * Milliseconds.
 */
const lifetime = 60_000

/**
 * The gateway's word to Node-RED on who a request is from and what they may do, as the value of
 * the header that config/header-names.ts names: `<base64url of JSON>.<base64url of its
 * HMAC-SHA256>`. The other end is overlays/usr/lib/gatehouse/node-red-auth.cjs.
 *
 * The key is made at each boot and known to these two alone. The socket's permissions keep other
 * users of the machine out; the key keeps out what may use the socket and is not the gateway, such
 * as a request that somebody talked a flow into sending.
 *
 * @param key at least 32 bytes
 */
export function assertion(
  key: Buffer,
  peer: WhoIs | 'local network',
  access: Access,
  now: number = Date.now(),
): string {
  const payload = Buffer.from(
    JSON.stringify({
      username: typeof peer === 'string' ? peer : usernameOf(peer),
      permissions: permissionsOf(access),
      expires: now + lifetime,
    }),
  ).toString('base64url')
  return `${payload}.${createHmac('sha256', key).update(payload).digest('base64url')}`
}

function usernameOf({ node, user }: WhoIs): string {
  return node.tags.length === 0 && user !== undefined ? user.loginName : node.name
}

/** In the words of Node-RED's adminAuth. */
function permissionsOf({ rights }: Access): '*' | 'read' | '' {
  if (rights.has('edit')) return '*'
  return rights.has('view') ? 'read' : ''
}
