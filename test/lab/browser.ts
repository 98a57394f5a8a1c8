/**
 * A real browser in a namespace of the lab: Debian's chromium-headless-shell, driven by
 * playwright-core over a pipe.
 */
import { X509Certificate, createHash } from 'node:crypto'
import { once } from 'node:events'
import { access, chmod, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { createServer as createTLSServer } from 'node:https'
import { createServer as createNetServer } from 'node:net'
import path from 'node:path'
import type { Duplex } from 'node:stream'
import { chromium } from 'playwright-core'
import type { Browser } from 'playwright-core'
import { eventually } from './appliance.ts'
import type { Lab, LabClient } from './lab.ts'

const program = '/usr/bin/chromium-headless-shell'
/** Prints the addresses that nobody may use yet, since somebody else may have them. */
const tentative = ['ip', '-6', 'address', 'show', 'tentative']

/**
 * Starts a browser beside a tailnet client, in its namespace: what it sends anywhere but to the
 * client is dropped and counted as all in the lab is. The client verifies the origin's certificate
 * and passes on what the browser asks of `url`.
 */
export async function browse(
  lab: Lab,
  client: LabClient,
  origin: string,
): Promise<{ browser: Browser; url: string }> {
  const port = await forward(lab, client, await client.proxy(origin))
  return { browser: await launch(lab, client), url: `http://127.0.0.1:${port}/` }
}

/** A page, or anything else, of a site that is not in the tailnet or is another node of it. */
export type Site = (request: IncomingMessage, response: ServerResponse) => void

/** Options of {@link browseNames}. */
export interface Names {
  /** PEM files of certificates the browser is to trust: an authority's or a server's own. */
  trust: readonly string[]
  /** Sites of tests, by host name: plain http. */
  http: Readonly<Record<string, Site>>
  /** The same over https; `pem` is certificate and key. */
  https: Readonly<Record<string, { pem: string; site: Site }>>
}

/**
 * Starts a browser as {@link browse} does, which has all addresses as a person's has: names and
 * ports of the tailnet's nodes lead there through the client, TLS and all, and those of test sites
 * to the test. So an origin is to the browser what it is in life. Nothing else leads anywhere.
 */
export async function browseNames(
  lab: Lab,
  client: LabClient,
  { trust, http, https }: Names,
): Promise<Browser> {
  const sites = new Map(
    Object.entries(https).map(([host, { pem, site }]) => [
      host,
      createTLSServer({ cert: pem, key: pem }, site),
    ]),
  )
  const proxy = createServer((request, response) => {
    const url = URL.parse(request.url ?? '')
    const site = url === null ? undefined : http[url.host]
    if (site === undefined) response.writeHead(502).end()
    else site(request, response)
  })
  proxy.on('connect', (request, socket: Duplex, head) => {
    socket.on('error', () => socket.destroy())
    const [host = '', port] = (request.url ?? '').split(':')
    const site = port === '443' ? sites.get(host) : undefined
    socket.unshift(head)
    if (site !== undefined) {
      socket.write('HTTP/1.1 200 OK\r\n\r\n')
      site.emit('connection', socket)
      return
    }
    client
      .dial(host, Number(port))
      .then((peer) => {
        peer.on('error', () => socket.destroy()).once('close', () => socket.destroy())
        socket.once('close', () => peer.destroy())
        socket.write('HTTP/1.1 200 OK\r\n\r\n')
        peer.pipe(socket).pipe(peer)
      })
      .catch(() => socket.end('HTTP/1.1 502 Bad Gateway\r\n\r\n'))
  })
  const listening = path.join(client.dir, 'names.sock')
  proxy.listen(listening).unref()
  await once(proxy, 'listening')
  const port = await forward(lab, client, listening)
  const keys = trust.map((pem) =>
    createHash('sha256')
      .update(new X509Certificate(pem).publicKey.export({ type: 'spki', format: 'der' }))
      .digest('base64'),
  )
  return await launch(lab, client, [
    `--proxy-server=http://127.0.0.1:${port}`,
    `--ignore-certificate-errors-spki-list=${keys.join(',')}`,
  ])
}

/** Leads a port in the client's namespace, default a free one, to a unix socket of the test's. */
async function forward(lab: Lab, client: LabClient, socket: string, at = 0): Promise<string> {
  const forwarder = lab.exec(client.ns, [
    process.execPath,
    '-e',
    `
    const net = require('node:net')
    const server = net.createServer((incoming) => {
      const outgoing = net.connect(process.argv[1])
      const end = () => { incoming.destroy(); outgoing.destroy() }
      incoming.on('error', end).on('close', end)
      outgoing.on('error', end).on('close', end)
      incoming.pipe(outgoing).pipe(incoming)
    }).listen(${at}, '127.0.0.1', () => console.log(server.address().port))`,
    socket,
  ])
  const [port] = (await once(forwarder.stdout!.setEncoding('utf8'), 'data')) as [string]
  return port.trim()
}

/**
 * Lets programs in the client's namespace reach a port of a name in the tailnet as they do beside
 * tailscaled: by that name and port, TLS untouched.
 */
export async function reachable(
  lab: Lab,
  client: LabClient,
  name: string,
  port: number,
): Promise<void> {
  const listening = path.join(client.dir, `port-${port}.sock`)
  const server = createNetServer((socket) => {
    socket.on('error', () => socket.destroy())
    client
      .dial(name, port)
      .then((peer) => {
        peer.on('error', () => socket.destroy()).once('close', () => socket.destroy())
        socket.once('close', () => peer.destroy())
        peer.pipe(socket).pipe(peer)
      })
      .catch(() => socket.destroy())
  })
  server.listen(listening).unref()
  await once(server, 'listening')
  await forward(lab, client, listening, port)
  await writeFile(`/etc/netns/${client.ns}/hosts`, `127.0.0.1 localhost ${name}\n`)
}

/**
 * Starts the browser once the namespace's addresses are settled: Chromium ends all that is under
 * way when one changes (ERR_NETWORK_CHANGED), and a namespace that was just made has its IPv6
 * address after a second or two (RFC 4862, 5.4).
 */
async function launch(lab: Lab, client: LabClient, more: readonly string[] = []): Promise<Browser> {
  await access(program).catch(() => {
    throw new Error(
      `${program} is not there: run tools/setup, which installs the package chromium-headless-shell`,
    )
  })
  await eventually(
    `the addresses of ${client.ns} are settled`,
    30,
    async () => (await lab.run(client.ns, tentative)).stdout === '',
  )
  const wrapper = path.join(client.dir, 'browser')
  await writeFile(
    wrapper,
    `#!/bin/sh\nexec setpriv --pdeathsig KILL -- ip netns exec ${client.ns} ${program} "$@"\n`,
  )
  await chmod(wrapper, 0o755)
  return await chromium.launch({
    executablePath: wrapper,
    args: [
      '--disable-background-networking',
      '--disable-component-update',
      '--no-first-run',
      ...more,
    ],
    timeout: 120_000,
  })
}
