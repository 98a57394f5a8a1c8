/**
 * What `make run` ends in: the image, booted in QEMU inside an offline tailnet, and the proof that
 * it serves: a separate, natively compiled Tailscale client has fetched the Node-RED editor. Then
 * it stays up for a browser until Ctrl-C.
 *
 * Usage, as root: node test/showcase.ts amd64|arm64 [--once]   (--once: end after the proof)
 */
import { mkdir } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Lab } from './lab/lab.ts'
import { bootAppliance, editor, eventually, joined } from './vm/appliance.ts'
import type { Arch, Machine } from './vm/machine.ts'

const [arch, once] = process.argv.slice(2) as [Arch, string?]
if (arch !== 'amd64' && arch !== 'arm64') {
  console.error('usage: node test/showcase.ts amd64|arm64 [--once]')
  process.exit(2)
}

/**
 * Says what is under way, counts the seconds beside it on a terminal, and says how long it took.
 */
async function step<T>(what: string, work: Promise<T>, outcome: (value: T) => string): Promise<T> {
  const from = performance.now()
  const seconds = (): string => `${((performance.now() - from) / 1000).toFixed(0).padStart(4)} s`
  const show = (end: string): boolean => process.stdout.write(`\r${what.padEnd(44)} ${end}`)
  const ticker = process.stdout.isTTY ? setInterval(() => show(seconds()), 1000) : undefined
  try {
    const value = await work
    show(`${seconds()}   ${outcome(value)}\n`)
    return value
  } catch (err) {
    show(`${seconds()}   failed\n`)
    throw err
  } finally {
    clearInterval(ticker)
  }
}

let machine: Machine | undefined
let lab: Lab | undefined
let stopping: Promise<void> | undefined
const stop = (): Promise<void> =>
  (stopping ??= (async () => {
    await machine?.destroy()
    await lab?.stop()
  })())
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => {
    console.log('\nstopping')
    void stop().then(() => process.exit(signal === 'SIGINT' ? 0 : 1))
  })
}

try {
  const boot = performance.now()
  lab = await step(
    'Offline tailnet',
    Lab.start({ name: 'run' }),
    (l) => `control ${l.ready.controlURL}, ACME ${l.ready.acmeDirectory}`,
  )
  const net = lab
  const client = await step(
    'A native Tailscale client joins it',
    lab.client('laptop'),
    () => 'laptop',
  )
  const directory = path.resolve(import.meta.dirname, '../out/run')
  await mkdir(directory, { recursive: true })
  machine = await step(
    'Power on (QEMU, full emulation)',
    bootAppliance(lab, arch, { directory }),
    (m) => `console: ${path.relative('.', m.consoleLog)}`,
  )
  const vm = machine
  await step('Kernel and first boot', vm.ready({ timeout: 400 }), () => 'user space is up')
  const node = await step(
    'The appliance joins the tailnet',
    joined(net, 'gatehouse', 400),
    (n) => n.name,
  )
  const url = `https://${node.name}/`
  const page = await step(
    'Certificate, Node-RED, first page',
    editor(client, node.name, 400),
    (a) => `HTTP ${a.status}, ${a.body.length} bytes`,
  )
  const toFirstPage = (performance.now() - boot) / 1000
  const warm = await client.fetch(url)
  const pong = await client.pingDirect(node.addresses[0]!)
  const lease = await eventually('a DHCP lease', 10, async () => (await net.leases())[0]?.ip)

  console.log(`
${url}

  page         ${/<title>(.*?)<\/title>/.exec(page.body.toString())?.[1] ?? ''}, in ${warm.ms.toFixed(0)} ms once warm
  certificate  ${page.tls!.issuer}, for ${page.tls!.dnsNames.join(', ')}, verified against the lab's authority (${page.tls!.version})
  path         ${pong.direct ? `direct, UDP ${pong.endpoint}` : `relayed by DERP ${pong.derp}`}, ${pong.ms.toFixed(1)} ms
  LAN address  ${lease}: nothing listens there but WireGuard
  first page   ${toFirstPage.toFixed(0)} s after power-on (emulated; a board is many times faster)
  leaks        ${await net.leaked()} packets tried to leave the lab
`)
  if (!pong.direct || !page.tls?.verified) throw new Error('the proof does not hold: see above')
  if (once !== '--once') {
    const [editor, flows, own] = await Promise.all(
      ['', ':8443', ':10000'].map(async (port) => client.browse(`https://${node.name}${port}`)),
    )
    console.log(
      `In a browser on this machine (each forwards into the tailnet):\n  editor  ${editor}\n ` +
        ` flows   ${flows}\n  status  ${own}\nCtrl-C ends it all.`,
    )
    while (vm.running) await sleep(1000)
    throw new Error('the machine has ended')
  }
} catch (err) {
  if (!stopping) {
    console.error(`\nmake run: ${(err as Error).message}`)
    if ((err as Error).cause) console.error(`last: ${String((err as { cause: unknown }).cause)}`)
    process.exitCode = 1
  }
} finally {
  await stop()
}
