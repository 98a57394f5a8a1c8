import { createHash } from 'node:crypto'
import { readFile, readdir } from 'node:fs/promises'
import { extname, join } from 'node:path'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { ports } from '../../config/ports.ts'
import { pathOf } from '../shared/path.ts'
import { plugin } from '../shared/plugin.ts'
import { peerOf } from '../tailnet/peer.ts'

/**
 * What the console's pages may load and do (CSP Level 3): their own script and style sheet, calls
 * of their own origin, nothing inline, nothing from elsewhere, and no other page around them.
 */
export const contentSecurityPolicy = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "connect-src 'self'",
  "img-src 'self' data:",
  "form-action 'self'",
  "frame-ancestors 'none'",
  "base-uri 'none'",
].join('; ')

/** A file of the console, read at the start. */
interface StaticFile {
  body: Buffer
  /** The same, compressed with Brotli; undefined where the bundle has none. */
  brotli: Buffer | undefined
  type: string
  /** Strong, of the body (RFC 9110 §8.8.3); a compressed form has one of its own. */
  tag: string
  /** Whether its name changes with its content, so that a browser may keep it for good. */
  hashed: boolean
}

const types: Record<string, string> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  // Licences of what the program is made of (tools/third-party.ts).
  '.txt': 'text/plain; charset=utf-8',
  // The laptop's command line, as an npm package (tools/cli.ts).
  '.tgz': 'application/gzip',
}

/** Options of {@link consolePages}. */
export interface ConsoleOptions {
  /** Where the bundle is (tools/console.ts); undefined or missing: there is no console. */
  directory: string | undefined
}

/**
 * The web console at the gateway's own origin: its page at `/`, script and style sheet below
 * `/console/`, and the laptop's command line as an npm package (tools/cli.ts). They hold nothing of
 * the device, so whoever may see the status gets them; what they show comes from the API, which
 * judges each call. All else goes on to the status page's plugin.
 *
 * The files, some 120 kB, are read once: the system's partition is read-only, and nothing that a
 * request says is ever part of a path.
 */
export const consolePages = plugin<ConsoleOptions>('console-pages', async (app, { directory }) => {
  const files = await readConsole(directory)
  app.addHook('onRequest', async (request, reply) => {
    if (request.route.right !== 'status') return
    if (request.method !== 'GET' && request.method !== 'HEAD') return
    const file = files.get(pathOf(request.url))
    if (file === undefined || peerOf(request.raw.socket).localPort !== ports.own) return
    return await send(request, reply, file)
  })
})

async function send(
  request: FastifyRequest,
  reply: FastifyReply,
  { body, brotli, type, tag, hashed }: StaticFile,
): Promise<FastifyReply> {
  const compressed = brotli !== undefined && acceptsBrotli(request.headers['accept-encoding'])
  const etag = `"${tag}${compressed ? '-br' : ''}"`
  reply.headers({
    'content-security-policy': contentSecurityPolicy,
    'x-content-type-options': 'nosniff',
    'referrer-policy': 'no-referrer',
    'permissions-policy': 'camera=(), geolocation=(), microphone=(), usb=(), serial=()',
    'cache-control': hashed ? 'private, max-age=31536000, immutable' : 'private, no-cache',
    vary: 'accept-encoding',
    etag,
  })
  const known = request.headers['if-none-match']?.split(',').map((one) => one.trim())
  if (known?.some((one) => one === '*' || one.replace(/^W\//, '') === etag) === true)
    return await reply.code(304).send()
  if (compressed) reply.header('content-encoding', 'br')
  return await reply.type(type).send(compressed ? brotli : body)
}

/** Whether Accept-Encoding names br and does not refuse it (RFC 9110 §12.5.3). */
function acceptsBrotli(accepted: string | string[] | undefined): boolean {
  const named = /(?:^|,)\s*br\s*(?:;\s*q=([\d.]+))?\s*(?:,|$)/i.exec(String(accepted))
  if (named === null) return false
  const weight = named[1]
  return weight === undefined || Number(weight) > 0
}

/** The files by the path they have for a browser; none where there is no bundle. */
async function readConsole(directory: string | undefined): Promise<Map<string, StaticFile>> {
  const files = new Map<string, StaticFile>()
  if (directory === undefined) return files
  const names = await readdir(directory).catch((err: NodeJS.ErrnoException): string[] => {
    if (err.code === 'ENOENT') return []
    throw err
  })
  for (const name of names) {
    const type = types[extname(name)]
    if (type === undefined) continue
    const body = await readFile(join(directory, name))
    const brotli = names.includes(`${name}.br`)
      ? await readFile(join(directory, `${name}.br`))
      : undefined
    const hashed = /-[0-9a-f]{12}\.\w+$/.test(name)
    const tag = createHash('sha256').update(body).digest('base64url').slice(0, 22)
    files.set(name === 'index.html' ? '/' : `/console/${name}`, { body, brotli, type, tag, hashed })
  }
  return files
}
