/**
 * Boots an image and says what came of it: `node test/vm/probe.ts amd64|arm64`, as root. A look at
 * the machine by hand; the test cases are elsewhere. Its network is a namespace of its own with a
 * DHCP server and nothing else.
 *
 * @module
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { type Arch, Machine } from './machine.ts'

const arch = process.argv[2] as Arch
if (arch !== 'amd64' && arch !== 'arm64') throw new Error('usage: probe.ts amd64|arm64')
const namespace = `ghprobe${randomBytes(2).toString('hex')}`
const ip = (...args: string[]): unknown => execFileSync('ip', args, { stdio: 'inherit' })
ip('netns', 'add', namespace)
ip('-n', namespace, 'link', 'add', 'br0', 'type', 'bridge')
ip('-n', namespace, 'address', 'add', '10.77.0.1/24', 'dev', 'br0')
ip('-n', namespace, 'link', 'set', 'br0', 'up')
ip('-n', namespace, 'link', 'set', 'lo', 'up')
const dhcp = spawn(
  'ip',
  [
    'netns',
    'exec',
    namespace,
    'dnsmasq',
    '--keep-in-foreground',
    '--conf-file=/dev/null',
    '--port=0',
    '--interface=br0',
    '--bind-interfaces',
    '--user=root',
    '--leasefile-ro',
    '--dhcp-range=10.77.0.100,10.77.0.120,1h',
    '--dhcp-option=3,10.77.0.1',
    '--dhcp-option=6,10.77.0.1',
    '--dhcp-option=42,10.77.0.1',
  ],
  { stdio: 'ignore' },
)
let machine: Machine | undefined
try {
  machine = await Machine.boot({
    image: `out/gatehouse-${arch}.img`,
    arch,
    namespace,
    bridge: 'br0',
    directory: `out/vm-probe-${arch}`,
    files: {
      'gatehouse.toml':
        '[tailnet]\nauth_key = "tskey-auth-test"\ncontrol_url = "https://control.lab.test"\n',
    },
  })
  const vm = machine
  const show = async (command: string, options = {}): Promise<void> => {
    const { code, stdout, stderr } = await vm.run(command, { timeout: 120, ...options })
    console.log(`# ${command}${code ? ` → ${code}` : ''}\n${stdout}${stderr}`)
  }
  await machine.ready({ timeout: 300 })
  console.log(`shell after ${machine.bootSeconds.toFixed(1)} s`)
  await show(
    'systemctl is-system-running --wait; systemd-analyze; systemctl --failed --no-legend; systemctl list-jobs',
  )
  const wait = 'for i in $(seq 100); do [ -S /run/node-red/http.sock ] && break; sleep 1; done'
  await show(
    `${wait}; ls -la /run/node-red /run/*.sock; systemctl status --no-pager -n 15 node-red`,
  )
  await show(
    `/usr/bin/node -e 'require("http").get({socketPath:"/run/node-red/http.sock",path:require("/usr/lib/gatehouse/node-red-auth.cjs").editorRoot(require("fs").readFileSync("/run/gatehouse-provision/channel"))},r=>{let ` +
      `t="";r.on("data",d=>t+=d).on("end",()=>console.log(r.statusCode,t.length,/<title>.*<.title>/.exec(t)?.[0]))})'`,
  )
  await show(
    'networkctl --no-pager status | head -20; resolvectl status --no-pager; timedatectl ' +
      'show-timesync --no-pager | head -8; findmnt --real; lsblk; cat /proc/cmdline; head -3 ' +
      '/proc/meminfo; df -h /var /efi; ls -la /efi /var/lib',
  )
  await show('nft list ruleset')
  await show(
    'systemd-analyze critical-chain --no-pager; systemd-analyze blame --no-pager | head -30; ' +
      'systemd-analyze security --no-pager | grep -E "gatehouse|node-red"',
  )
  await show(
    'journalctl -b --no-pager -p warning | tail -60; journalctl --no-pager -u gatehouse -u ' +
      'gatehouse-provision | tail -20',
  )
  await show(
    'getent passwd root gatehouse gatehouse-certs node-red; grep ^root /etc/shadow; for u in ' +
      'root node-red gatehouse; do setpriv --reuid $u --clear-groups bash -c "timeout 3 bash ' +
      "-c ': </dev/tcp/10.77.0.1/80'\" 2>&1 | tail -1; done; nft list counters; cat " +
      '/proc/net/tcp /proc/net/tcp6 /proc/net/udp | cut -c1-90; echo kept >/var/kept; sync',
  )
  // From the LAN: no TCP port answers, not even to say no.
  const { stdout: address } = await machine.run(
    "networkctl status --no-pager | grep -oE '10\\.77\\.0\\.[0-9]+' | head -1",
  )
  for (const port of [22, 53, 80, 443, 1880, 5355, 41641]) {
    const result = spawnSync('ip', [
      'netns',
      'exec',
      namespace,
      'timeout',
      '2',
      'bash',
      '-c',
      `: </dev/tcp/${address.trim()}/${port}`,
    ])
    console.log(
      `LAN → ${address.trim()}:${port}: ` +
        `${result.status === 124 ? 'silence' : `ANSWERED (${result.status}) ${String(result.stderr)}`}`,
    )
  }
  await show('nft list counter inet gatehouse dropped-in')
  await machine.reboot()
  console.log(`again after ${machine.bootSeconds.toFixed(1)} s`)
  await show(
    'systemctl is-system-running --wait; systemd-analyze; cat /var/kept; ls -la ' +
      '/var/lib/node-red /var/lib/node-red-secret; systemctl --failed --no-legend',
  )
  await show(
    'for i in $(seq 100); do [ -S /run/node-red/http.sock ] && break; sleep 1; done; ' +
      'journalctl --no-pager -o short-monotonic -u node-red | grep -E ' +
      `'Started|Starting|running'`,
  )
  await show('echo lost-or-kept >/var/kept2')
  await machine.kill()
  await machine.start()
  await show(
    'systemctl is-system-running --wait; cat /var/kept; findmnt -n /var; systemctl --failed --no-legend',
  )
  console.log(`after a power cut: ${machine.bootSeconds.toFixed(1)} s`)
  await machine.powerOff()
  console.log('off')
  await machine.destroy()

  machine = await Machine.boot({
    ...machine.options,
    credentials: {
      'systemd.unit-dropin.nftables.service': '[Service]\nExecStart=\nExecStart=/bin/false\n',
    },
  })
  console.log((await machine.waitFor(/gatehouse: the firewall did not load.*/)).at(0))
  const closed = machine
  console.log(
    await closed.run(
      'sleep 20; systemctl is-active systemd-networkd nftables gatehouse; networkctl ' +
        '--no-pager; cat /sys/class/net/en*/operstate',
    ),
  )
} catch (error) {
  console.error(error)
  process.exitCode = 1
} finally {
  await machine?.destroy()
  dhcp.kill()
  ip('netns', 'delete', namespace)
}
