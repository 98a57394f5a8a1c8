/** What follows from [certificates] mode and name in the gateway: names, redirects, cures. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { request } from 'node:http'
import type { IncomingHttpHeaders } from 'node:http'
import { existsSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { report } from '../../../../src/cli/report.ts'
import { defaults, parseConfig } from '../../../../src/config/config.ts'
import type { Config } from '../../../../src/config/config.ts'
import { certificateFile } from '../../../../src/certs/pem.ts'
import { table } from '../../../../src/gateway/operate/status-text.ts'
import { capabilityVersion } from '../../../../src/gateway/tailnet/probe.ts'
import { Bench, name } from '../../support/bench.ts'
import { LoopbackTailnet } from '../../support/tailnet.ts'

const own = 'gate.example.org'

function settings(toml: string): Config {
  return parseConfig(`[certificates]\n${toml}`, 'f')
}
const acme = settings(
  `mode = "acme"\nproof = "dns-persist"\nname = ["${own}", "*.gate.example.org"]\n`,
)

async function plain(
  bench: Bench,
  path: string,
): Promise<{ status: number; headers: IncomingHttpHeaders; text: string }> {
  const outgoing = request({
    createConnection: () => bench.tailnet.connect(80),
    path,
    headers: { host: 'gatehouse' },
  })
  outgoing.end()
  const [response] = await once(outgoing, 'response')
  return {
    status: response.statusCode,
    headers: response.headers as IncomingHttpHeaders,
    text: await text(response),
  }
}

/** A gateway whose certificates are for names of one's own. */
async function start(config: Config, certificates: string[]): Promise<Bench> {
  return await Bench.start({
    certificate: false,
    options: { load: async () => await Promise.resolve(config) },
    node: { controlURL: 'https://headscale.example.org' },
    before: (bench) => {
      bench.tailnet.current = { ...LoopbackTailnet.running(), certDomains: [] }
      for (const one of certificates)
        bench.putCertificate(bench.authority.issue(one), certificateFile(one))
    },
  })
}

test('a name of one’s own is served, shown and redirected to; the tailnet’s is an alias, others are 421', async () => {
  await using bench = await start(acme, [own, '*.gate.example.org'])
  await bench.gateway.reloader.reload()
  await bench.until(() => bench.log(`serving https://${own}/`).length > 0)
  const status = await bench.gateway.status()
  assert.deepEqual([status.ok, status.url], [true, `https://${own}/`])
  assert.deepEqual(
    status.certificate.names.map((one) => one.name),
    [own, '*.gate.example.org'],
  )
  assert.equal((await plain(bench, '/x')).headers.location, `https://${own}/x`)
  const get = async (
    host: string,
    servername = own,
  ): Promise<{ status: number; location: string | undefined; hsts: unknown }> => {
    const socket = await bench.connect(443, servername)
    const answer = await bench.fetch({ socket, path: '/a', headers: { host } })
    return {
      status: answer.status,
      location: answer.headers.location,
      hsts: answer.headers['strict-transport-security'],
    }
  }
  assert.deepEqual(await get(own), {
    status: 200,
    location: undefined,
    hsts: 'max-age=31536000',
  })
  for (const [host, servername] of [
    [name, own],
    ['gatehouse', own],
    ['other.gate.example.org', 'other.gate.example.org'],
  ] as const)
    assert.equal((await get(host, servername)).location, `https://${own}/a`, host)
  assert.equal((await get('evil.example.org')).status, 421)
  // What the agent is to look after: written once the node has joined, while it serves already.
  await bench.until(() => existsSync(join(bench.runtime, 'names')))
  assert.equal(await readFile(join(bench.runtime, 'names'), 'utf8'), `${own}\n*.gate.example.org\n`)
})

test('nobody is sent to a name that has no certificate: the one that has one is served meanwhile', async () => {
  const two = settings(
    `mode = "acme"\nproof = "dns-persist"\nname = ["new.example.org", "${own}"]\n`,
  )
  await using bench = await start(two, [own])
  await bench.gateway.reloader.reload()
  await bench.until(() => bench.log(`serving https://${own}/`).length > 0)
  assert.equal((await plain(bench, '/')).headers.location, `https://${own}/`)
  bench.putCertificate(bench.authority.issue('new.example.org'), 'new.example.org.pem')
  await bench.gateway.certificates.reload()
  assert.equal((await plain(bench, '/')).headers.location, 'https://new.example.org/')
})

test('renamed at the control server, a name of one’s own stays where it is', async () => {
  await using bench = await start(acme, [own])
  await bench.gateway.reloader.reload()
  await bench.until(() => bench.log(`serving https://${own}/`).length > 0)
  bench.tailnet.become({ ...LoopbackTailnet.running('renamed.tail.ts.net'), certDomains: [] })
  await bench.until(
    async () => (await bench.gateway.status()).tailnet.name === 'renamed.tail.ts.net',
  )
  assert.equal((await plain(bench, '/')).headers.location, `https://${own}/`)
})

test('renamed on a tailnet, port 80 says so until the new name has a certificate', async () => {
  await using bench = await Bench.start()
  bench.tailnet.become(LoopbackTailnet.running('renamed.tail.ts.net'))
  await bench.until(async () => (await plain(bench, '/')).status === 503)
  assert.match((await plain(bench, '/')).text, /certificate/)
})

test('an authority of one’s own: its root at port 80 alone, by any name, and no HSTS', async () => {
  await using bench = await start(settings('mode = "self"\n'), [name])
  const root = join(bench.tls, 'ca.crt')
  await bench.gateway.reloader.reload()
  await bench.until(() => bench.log('serving https').length > 0)
  assert.equal((await plain(bench, '/ca.crt')).status, 308, 'there is none yet')
  await writeFile(root, bench.authority.certificate)
  const { status, headers, text: body } = await plain(bench, '/ca.crt')
  assert.deepEqual([status, body], [200, bench.authority.certificate])
  assert.equal(headers['content-type'], 'application/x-x509-ca-cert')
  assert.equal((await plain(bench, '/ca.crt?x')).status, 308)
  assert.equal((await bench.fetch()).headers['strict-transport-security'], 'max-age=0')
  // Back to another mode: no root any more, and HSTS.
  bench.gateway.configure({ ...defaults(), certificates: acme.certificates })
  assert.notEqual((await plain(bench, '/ca.crt')).status, 200)
  bench.gateway.configure(defaults())
})

test('a control server without names for certificates: the other modes are named, no admin console', async () => {
  await using bench = await Bench.start({
    certificate: false,
    node: { controlURL: 'https://headscale.example.org' },
    before: (made) => {
      made.tailnet.current = { ...LoopbackTailnet.running(), certDomains: [] }
    },
  })
  await bench.until(() => bench.gateway.problems.get('https')?.code === 'GH_HTTPS_NAMES')
  const status = await bench.gateway.status()
  const page = await plain(bench, '/')
  assert.equal(page.status, 503)
  for (const said of [report(status), table(status), page.text]) {
    assert.match(said, /mode = (?:"|&#34;)self/)
    assert.doesNotMatch(said, /admin console/i)
  }
})

test('tags that a pre-auth key may not give, and keys in errors', async () => {
  for (const [message, cure] of [
    ['requested tags [tag:gatehouse] are invalid', /preauthkeys create --tags tag:gatehouse/],
    ['invalid pre auth key hskey-auth-aBc_1-9f_8', /`headscale preauthkeys create`/],
  ] as const) {
    await using bench = await Bench.start({
      node: {
        controlURL: 'https://headscale.example.org',
        tags: ['tag:gatehouse'],
        hasAuthKey: true,
      },
      before: (made) => {
        made.tailnet.upError = Object.assign(new Error(message), { code: 'TSNET_AUTH' })
      },
    })
    await bench.until(() => bench.gateway.problems.get('tailnet') !== undefined)
    const problem = bench.gateway.problems.get('tailnet')!
    assert.match(problem.cure, cure)
    assert.doesNotMatch(
      `${problem.cure} ${JSON.stringify(bench.lines)}`,
      /admin console|aBc_1|9f_8/,
    )
    if (message.includes('hskey')) assert.match(problem.message, /hskey-…/)
  }
})

test('the capability version told to control servers is that of the Tailscale that is built in', async (t) => {
  const source = 'src/tsnet/build/tailscale.com/tailcfg/tailcfg.go'
  const code = await readFile(source, 'utf8').catch(() => undefined)
  if (code === undefined) {
    t.skip(`${source} is not there: make wasm unpacks it (test/lab/headscale.test.ts sees it too)`)
    return
  }
  const current = /^const CurrentCapabilityVersion CapabilityVersion = (\d+)$/m.exec(code)![1]
  assert.equal(capabilityVersion, Number(current))
})

test('doctor says where a name of one’s own leads, and which record is missing', async () => {
  let addresses: string[] = []
  await using bench = await Bench.start({
    certificate: false,
    options: {
      load: async () => await Promise.resolve(acme),
      resolve: async () => await Promise.resolve(addresses),
    },
    before: (made) => {
      made.tailnet.current = { ...LoopbackTailnet.running(), certDomains: [] }
    },
  })
  await bench.gateway.reloader.reload()
  const check = async (): Promise<string[]> =>
    (await bench.gateway.examine())
      .filter((one) => one.name === 'name')
      .map(({ result, found, cure }) => `${result}: ${found}. ${cure}`)
  const [nowhere] = await check()
  assert.match(
    nowhere!,
    /^warn: gate\.example\.org leads nowhere.*A record gate\.example\.org with 100\.64\.0\.1/,
  )
  addresses = ['203.0.113.9']
  assert.match((await check())[0]!, /^warn: gate\.example\.org leads to 203\.0\.113\.9/)
  addresses = ['100.64.0.1']
  assert.deepEqual(await check(), ['ok: gate.example.org leads to this device. undefined'])
  bench.gateway.configure(defaults())
  assert.deepEqual(await check(), [])
})
