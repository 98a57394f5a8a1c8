/** Attacks from the tailnet, and from a page in the browser of somebody who is in it. */
import assert from 'node:assert/strict'
import type { LabClient } from '../../lab/lab.ts'
import { eventually, joined } from '../../vm/appliance.ts'
import { attempts, held, lab, machine, name, owner } from './support.ts'

/** Nobody without a right, a viewer, a tagged machine; other ports. */
export async function rights(): Promise<void> {
  const bob = await lab.client('bob')
  const vera = await lab.client('vera')
  const sensor = await lab.client('sensor')
  await lab.setOwner('bob', { user: 'bob@example.com' })
  await lab.setOwner('vera', { user: 'vera@example.com' })
  await lab.setOwner('sensor', { tags: ['tag:sensor'] })
  await lab.setGrants([
    {
      src: ['vera@example.com'],
      dst: ['*'],
      app: { 'gatehouse.internal/cap/app': [{ may: ['view'] }] },
    },
  ])
  await eventually('the viewer may open the editor', 200, async () =>
    (await vera.fetch(`https://${name}/`)).status === 200 ? true : undefined,
  )
  const login = 'owner@example.com'
  const forged = {
    'tailscale-user-login': login,
    'tailscale-user-name': 'Owner',
    'x-forwarded-for': '127.0.0.1',
    'x-webauth-user': login,
  }
  const shell = {
    method: 'POST',
    headers: { 'content-type': 'text/plain' },
    body: Buffer.from('id').toString('base64'),
  }
  const deploy = { method: 'POST', headers: { 'content-type': 'application/json' }, body: '[]' }
  const tries: [string, string, object][] = [
    ['open the editor', '/', {}],
    ['read the flows', '/flows', {}],
    ['deploy flows', '/flows', deploy],
    ['run a flow', '/app/shell', shell],
    [
      'deploy, with forged identity headers',
      '/flows',
      { ...deploy, headers: { ...deploy.headers, ...forged } },
    ],
    [
      'run a flow, with forged identity headers',
      '/app/shell',
      { ...shell, headers: { ...shell.headers, ...forged } },
    ],
    ["see the gateway's status", '/.gatehouse/status', {}],
    ['climb out of /app/ to the flows', '/app/%2e%2e/flows', deploy],
  ]
  for (const [who, client, may] of [
    ["nobody's", bob, []],
    ['viewer', vera, ['open the editor', 'read the flows']],
    ['tagged', sensor, []],
  ] as [string, LabClient, string[]][]) {
    const from = `tailnet, ${who}`
    for (const [what, url, options] of tries) {
      // An answer that comes before the body has been read may be lost in the reset that follows.
      const got = await client.fetch(`https://${name}${url}`, options).then(
        ({ status }) => `HTTP ${status}`,
        (error: Error) => error.message,
      )
      attempts.note(
        from,
        may.includes(what) ? `(allowed) ${what}` : what,
        got,
        may.includes(what) ? got === 'HTTP 200' : /^HTTP 40[0134]$|reset by peer/.test(got),
      )
    }
    held(from)
  }
  const ip = (await joined(lab)).addresses[0]!
  const from = 'tailnet'
  await Promise.all(
    [22, 53, 1880, 5252, 8080, 9090, 41641].map(async (port) => {
      const got = await Promise.race([
        bob.dial(ip, port).then(
          (stream) => (stream.destroy(), 'CONNECTED'),
          (error: Error) => error.message,
        ),
        new Promise<string>((done) => setTimeout(done, 10_000, 'silence')),
      ])
      attempts.note(from, `TCP ${port}`, got, got !== 'CONNECTED')
    }),
  )
  await lab.setGrants([])
  held(from)
}

/** A page elsewhere, in the browser of the owner. */
export async function webPage(): Promise<void> {
  const from = 'web page'
  const urlencoded = 'application/x-www-form-urlencoded'
  const form =
    'label=x&nodes[0][id]=w1&nodes[0][type]=inject&nodes[0][once]=true&nodes[0][wires][0][0]=w2&nodes[1][id]=w2&nodes[1][type]=exec&nodes[1][command]=touch+/var/lib/node-red/pwned'
  /** What a browser says of a page: where it is, and what it asks for. */
  const page = (site: string, origin: string, more: Record<string, string> = {}) => ({
    origin,
    'sec-fetch-site': site,
    'sec-fetch-mode': 'navigate',
    'sec-fetch-dest': 'document',
    ...more,
  })
  const elsewhere = page('cross-site', 'https://evil.example')
  const sibling = page('same-site', `https://other.${lab.ready.suffix}`)
  const upgrade = { connection: 'Upgrade', upgrade: 'websocket' }
  const tries: [string, string, string, Record<string, string>, string?][] = [
    [
      'a form that deploys a flow',
      'POST',
      '/flow',
      { ...elsewhere, 'content-type': urlencoded },
      form,
    ],
    ['the same of another node', 'POST', '/flow', { ...sibling, 'content-type': urlencoded }, form],
    [
      'the same of a page that a flow serves',
      'POST',
      '/flow',
      { ...page('same-site', `https://${name}:8443`), 'content-type': urlencoded },
      form,
    ],
    [
      'the same without an origin',
      'POST',
      '/flow',
      { origin: 'null', 'content-type': urlencoded },
      form,
    ],
    ['the same of an older browser', 'POST', '/flow', { origin: 'https://evil.example' }, form],
    ['a package uploaded to /nodes', 'POST', '/nodes', elsewhere, 'x'],
    ['an inject node set off', 'POST', '/inject/any', sibling, ''],
    ['a flow called', 'POST', ':8443/shell', sibling, ''],
    ['the WebSocket of the editor', 'GET', '/comms', { ...upgrade, ...sibling }],
    ['the editor in a frame', 'GET', '/', page('same-site', '', { 'sec-fetch-dest': 'iframe' })],
    [
      'a script of the editor included',
      'GET',
      '/red/red.min.js',
      page('cross-site', '', { 'sec-fetch-mode': 'no-cors', 'sec-fetch-dest': 'script' }),
    ],
    [
      'the status page fetched',
      'GET',
      ':10000/status',
      page('same-site', '', { 'sec-fetch-mode': 'cors' }),
    ],
    ['a preflight of /flows', 'OPTIONS', '/flows', elsewhere],
  ]
  for (const [what, method, url, headers, body] of tries) {
    if (headers['origin'] === '') delete headers['origin']
    // An answer that comes before the body has been read may be lost in the reset that follows.
    const got = await owner
      .fetch(`https://${name}${url}`, { method, headers, ...(body === undefined ? {} : { body }) })
      .then(
        ({ status }) => `HTTP ${status}`,
        (error: Error) => error.message,
      )
    attempts.note(from, what, got, /^HTTP 403$|reset by peer/.test(got))
  }
  const { origin: _origin, ...link } = elsewhere
  const got = (await owner.fetch(`https://${name}/`, { headers: link })).status
  attempts.note(from, '(allowed) a link to the editor', `HTTP ${got}`, got === 200)
  const { stdout } = await machine.run('ls /var/lib/node-red/pwned 2>&1')
  assert.match(stdout, /No such file/)
  held(from)
}
