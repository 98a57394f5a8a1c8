/**
 * A real browser in a namespace of the lab: Debian's chromium-headless-shell, driven by
 * playwright-core over a pipe.
 */
import { access, chmod, writeFile } from 'node:fs/promises'
import { once } from 'node:events'
import path from 'node:path'
import { chromium } from 'playwright-core'
import type { Browser } from 'playwright-core'
import type { Lab, LabClient } from './lab.ts'

const program = '/usr/bin/chromium-headless-shell'

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
  await access(program).catch(() => {
    throw new Error(
      `${program} is not there: run tools/setup, which installs the package chromium-headless-shell`,
    )
  })
  const socket = await client.proxy(origin)
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
    }).listen(0, '127.0.0.1', () => console.log(server.address().port))`,
    socket,
  ])
  const [port] = (await once(forwarder.stdout!.setEncoding('utf8'), 'data')) as [string]
  const wrapper = path.join(client.dir, 'browser')
  await writeFile(
    wrapper,
    `#!/bin/sh\nexec setpriv --pdeathsig KILL -- ip netns exec ${client.ns} ${program} "$@"\n`,
  )
  await chmod(wrapper, 0o755)
  const browser = await chromium.launch({
    executablePath: wrapper,
    args: ['--disable-background-networking', '--disable-component-update', '--no-first-run'],
    timeout: 120_000,
  })
  return { browser, url: `http://127.0.0.1:${port.trim()}/` }
}
