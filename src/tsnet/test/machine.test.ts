/** What a node says of the machine it runs on: what the tailnet's admin console shows. */
import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { Lab } from '../../../test/lab/lab.ts'
import { Program } from '../../../test/lab/program.ts'
import { machine } from '../host/machine.ts'
import { endBoth, startBoth } from './beside.ts'

let lab: Lab
before(async () => {
  lab = await Lab.start({ name: 'tmach' })
})
after(async () => await lab?.stop())

/** A system's files below a directory. */
function system(t: { after: (f: () => void) => void }, files: Record<string, string>): string {
  const root = mkdtempSync(path.join(os.tmpdir(), 'machine-'))
  t.after(() => rmSync(root, { recursive: true }))
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(path.dirname(path.join(root, name)), { recursive: true })
    writeFileSync(path.join(root, name), content)
  }
  return `${root}/`
}

test('a Raspberry Pi with Debian is that, with its model', (t) => {
  const about = machine(
    system(t, {
      'etc/os-release':
        'NAME="Debian GNU/Linux"\nID=debian\nVERSION_ID="13"\nVERSION_CODENAME=trixie\n',
      'etc/debian_version': '13.2\n',
      'sys/firmware/devicetree/base/model': 'Raspberry Pi 4 Model B Rev 1.4\0',
      'proc/1/cgroup': '0::/init.scope\n',
      'proc/net/unix': '0000: 00000002 0001 /run/systemd/notify\n',
    }),
  )
  const { osVersion, machine: kind, arch, ...rest } = about
  assert.deepEqual(rest, {
    os: 'linux',
    distro: 'debian',
    distroVersion: '13.2',
    distroCodeName: 'trixie',
    deviceModel: 'Raspberry Pi 4 Model B Rev 1.4',
    container: false,
    desktop: false,
  })
  assert.deepEqual([osVersion, kind], [os.release(), os.machine()])
  assert.match(arch, /^(amd64|arm64)$/)
})

test('without os-release, in a container, on a desktop: what there is to say is said', (t) => {
  const about = machine(
    system(t, {
      '.dockerenv': '',
      'usr/lib/os-release': 'ID=debian\n',
      'etc/debian_version': 'forky/sid\n',
      'proc/net/unix': '0000: @/tmp/.X11-unix/X0\n',
    }),
  )
  assert.deepEqual(
    [about.distroVersion, about.distroCodeName, about.container, about.desktop],
    ['', 'forky/sid', true, true],
  )
  assert.equal(about.deviceModel, '')
})

test('the control server is told the same of the bindings as of natively compiled tsnet', async () => {
  let n = 60
  const both = await startBoth(lab, () => lab.host(`m${n}`, `10.77.0.${n++}`))
  const of = async (kind: string): Promise<Record<string, unknown>> => {
    const node = (await lab.nodes()).find((one) => one.hostname.endsWith(kind))
    assert.ok(node?.hostinfo, kind)
    const { Hostname, NetInfo, Services, ...rest } = node.hostinfo
    assert.ok(Hostname)
    void [NetInfo, Services]
    return rest
  }
  const [native, wasm] = [await of('native'), await of('wasm')]
  assert.equal(wasm['OS'], 'linux')
  // Of the build and of the node, not of the machine.
  for (const field of ['GoArchVar', 'IPNVersion', 'GoVersion', 'BackendLogID']) {
    delete native[field]
    delete wasm[field]
  }
  assert.deepEqual(wasm, native)
  await endBoth(both)
})

test('an app has a name', async () => {
  const program = await Program.start(lab, await lab.host('app', '10.77.0.70'), 'wasm', {
    hostname: 'app',
    server: { app: 'gatehouse' },
  })
  const node = (await lab.nodes()).find(({ hostname }) => hostname === 'app')
  assert.equal(node?.hostinfo?.['App'], 'gatehouse')
  await program.end()
  assert.equal(await lab.leaked(), 0, JSON.stringify(await lab.leaks()))
})
