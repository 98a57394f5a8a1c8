/**
 * The image's own systemd in namespaces, instead of a machine: in seconds, for what needs no kernel
 * of its own. What is laid over the image, and a shell script that runs as root in it, are the
 * test's.
 */
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'

const image = path.resolve(import.meta.dirname, '../../out/mkosi/gatehouse-amd64.root.raw')

/** Why there is none of it here; false where there is. */
export function imageSystemdSkip(): string | false {
  if (process.getuid?.() !== 0) return 'namespaces and mounts need root'
  if (process.arch !== 'x64') return 'runs programs of the amd64 image'
  return existsSync(image) ? false : 'there is no image: make image-amd64'
}

/** Units that need a machine. */
const masked = [
  ...['efi.mount', 'var.mount', 'run-node\\x2dred.mount', 'systemd-repart.service'],
  ...['gatehouse-certs.service', 'node-red.service', 'gatehouse-quota.service'],
  ...['gatehouse-reset.service', 'gatehouse-no-data.service', 'gatehouse-recover.service'],
  ...['systemd-udevd.service', 'systemd-udev-trigger.service', 'systemd-timesyncd.service'],
  'gatehouse-console.service',
]

/** What a test wants of it. */
export interface ImageSystemdOptions {
  /** Units that the test does without, beside those that need a machine. */
  masked?: readonly string[]
  /** Files by their paths in the image; they count more than its own. */
  laid: Readonly<Record<string, string | Buffer>>
  /** Files by their names in /probe, beside the script. */
  files?: Readonly<Record<string, string | Buffer>>
  /**
   * A shell script that systemd runs once it has started everything; `part WORD` begins a part of
   * its output. Ends the system by its own end.
   */
  probe: string
  /** /dev/net/tun, as udev has it; and /sys to read alone: systemd-networkd then waits for no udev. */
  tun?: boolean
  /** A cable from its eth0 to that of a network namespace of the test's, and its own addresses. */
  cable?: { to: string; addresses: readonly string[] }
}

/**
 * Starts it and waits for its end, five minutes at most.
 *
 * @returns what the script has printed, by the word that each part begins with
 * @throws Error with all that was said when it did not come to its end
 */
export async function runImageSystemd({
  masked: more = [],
  laid,
  files = {},
  probe,
  tun = false,
  cable,
}: ImageSystemdOptions): Promise<Map<string, string>> {
  const directory = await mkdtemp(path.join(tmpdir(), 'gh-systemd-'))
  const at = (...parts: string[]): string => path.join(directory, ...parts)
  const put = async (file: string, content: string | Buffer): Promise<void> => {
    await mkdir(path.dirname(file), { recursive: true })
    await writeFile(file, content)
  }
  try {
    for (const folder of ['image', 'over', 'root', 'laid/efi', 'out'])
      await mkdir(at(folder), { recursive: true })
    for (const [file, content] of Object.entries(laid)) await put(at('laid', file), content)
    for (const [file, content] of Object.entries(files)) await put(at('out', file), content)
    await put(
      at('out/probe'),
      `exec 2>&1\npart() { echo "=== $1"; }\n${probe}part end\nsystemctl --no-block exit\n`,
    )
    const units = at('laid/etc/systemd/system')
    await put(
      path.join(units, 'probe.service'),
      '[Unit]\nAfter=multi-user.target\n[Service]\nType=oneshot\nTimeoutStartSec=250\n' +
        'StandardOutput=file:/probe/said\nExecStart=/bin/bash /probe/probe\n',
    )
    await mkdir(path.join(units, 'multi-user.target.wants'), { recursive: true })
    await symlink('../probe.service', path.join(units, 'multi-user.target.wants/probe.service'))
    for (const name of [...masked, ...more]) await symlink('/dev/null', path.join(units, name))

    const namespaces = ['mount', 'pid', 'net', 'uts', 'ipc', 'cgroup'].map((kind) => `--${kind}`)
    const child = spawn(
      'unshare',
      [...namespaces, '--fork', '--kill-child', 'sh', '-c', start(tun, cable)],
      {
        env: { ...process.env, DIR: directory, IMAGE: image },
        stdio: ['ignore', 'pipe', 'pipe'],
      },
    )
    let said = ''
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (text: Buffer) => (said += text.toString()))
    const late = setTimeout(() => child.kill('SIGKILL'), 300_000)
    await new Promise((done) => child.once('close', done))
    clearTimeout(late)
    const all = await readFile(at('out/said'), 'utf8').catch(() => '')
    const seen = new Map<string, string>()
    for (const part of all.split('=== ').slice(1)) {
      const end = part.indexOf('\n')
      seen.set(part.slice(0, end), part.slice(end + 1).trim())
    }
    if (!seen.has('end')) throw new Error(`the system did not come to its end: ${said}\n${all}`)
    return seen
  } finally {
    await rm(directory, { recursive: true, force: true })
  }
}

const start = (tun: boolean, cable: ImageSystemdOptions['cable']): string => `set -e
mount --make-rprivate /
mount -o loop,ro -t erofs "$IMAGE" "$DIR/image"
mount -t tmpfs tmpfs "$DIR/over"; mkdir "$DIR/over/upper" "$DIR/over/work" "$DIR/over/dev"
mount -t overlay overlay -o "lowerdir=$DIR/laid:$DIR/image,upperdir=$DIR/over/upper,workdir=$DIR/over/work" "$DIR/root"
cd "$DIR/root"
mount -t proc proc proc; mount -t sysfs ${tun ? '-o ro ' : ''}sysfs sys; mount -t cgroup2 cgroup2 sys/fs/cgroup; mount --rbind /dev dev
${
  tun
    ? `mount -o remount,dev "$DIR/over" 2>/dev/null || true
mknod -m 666 "$DIR/over/dev/tun" c 10 200; mount --bind "$DIR/over/dev/tun" dev/net/tun`
    : ''
}
mount -t tmpfs tmpfs run; mount -t tmpfs tmpfs tmp
ip link set lo up
${
  cable === undefined
    ? ''
    : `ip link add eth0 type veth peer name eth0 netns ${cable.to}
${cable.addresses.map((address) => `ip addr add ${address} dev eth0 nodad\n`).join('')}ip link set eth0 up`
}
mkdir -p mnt/old; pivot_root . mnt/old
mkdir -p /probe; mount --bind "/mnt/old$DIR/out" /probe; umount -l /mnt/old; mount --make-rshared /
exec env -i container=gatehouse-test PATH=/usr/sbin:/usr/bin /usr/lib/systemd/systemd systemd.unit=multi-user.target systemd.default_device_timeout_sec=5
`
