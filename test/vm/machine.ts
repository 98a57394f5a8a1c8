/**
 * Boots the disk image in QEMU, as it would boot on a board: firmware, systemd-boot, unified kernel
 * image. The image itself is not changed and holds nothing for tests. What a test needs reaches the
 * machine from outside:
 *
 * - files on the FAT partition (`files`), as a person would write them with the card in a reader;
 * - the network: one Ethernet card on a bridge in a network namespace of the caller's, DHCP and all
 *   else being the caller's;
 * - a root shell (`run`) on a virtio serial port, whose unit is handed over as systemd credentials
 *   in SMBIOS type 11 strings (systemd.system-credentials(7): systemd.extra-unit.*,
 *   systemd.unit-dropin.*). Only a hypervisor can do that.
 *
 * QEMU, its firmware and mtools come from the tools tree that image/build leaves in
 * out/mkosi/tools, so a machine that built an image can boot it; they are run by that tree's own
 * loader, since this machine's libraries may be older. Needs root (tap devices), `ip` (iproute2)
 * and `setpriv` (util-linux) on this machine.
 *
 * ```ts
 * const machine = await Machine.boot({ image: 'out/gatehouse-amd64.img', arch: 'amd64', namespace: 'lab1', bridge: 'br0',
 *   files: { 'gatehouse.toml': '[tailnet]\nauth_key = "…"\n' } });
 * try {
 *   await machine.ready();
 *   const { code, stdout } = await machine.run('systemctl is-system-running');
 * } finally {
 *   await machine.destroy();
 * }
 * ```
 *
 * @module
 */

import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, rmSync } from 'node:fs'
import { copyFile, mkdir, mkdtemp, open, readFile, rm, truncate, writeFile } from 'node:fs/promises'
import { type Socket, connect } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { block, readTables } from '../../tools/gpt.ts'

/** The processor an image is made for, in Debian's words. */
export type Arch = 'amd64' | 'arm64'

/** What to boot, and where. */
export interface MachineOptions {
  /** The image, e.g. `out/gatehouse-amd64.img`. Read only: the machine gets a copy. */
  image: string
  arch: Arch
  /** A named network namespace (`ip netns add …`) that exists already; QEMU runs in it. */
  namespace: string
  /** A bridge in that namespace, which exists already; the machine's Ethernet card is put on it. */
  bridge: string
  /** Files for the FAT partition by name, `gatehouse.toml` for one. Default: none. */
  files?: Record<string, string | Buffer>
  /**
   * Where the copy of the disk and the console's log go. Default: a new directory in /tmp, which
   * destroy() removes.
   */
  directory?: string
  /** Memory in MiB. Default: 1024. */
  memory?: number
  /** Processors. Default: 2. */
  cpus?: number
  /**
   * arm64: raspi3b is QEMU's Raspberry Pi 3B, as far as it is emulated: U-Boot and device tree from
   * the image's FAT partition, where the Pi's own firmware, which is not, would start them; SD
   * card, serial console, Ethernet over USB; 1 GiB, four processors, no clock. It takes nothing
   * from outside, so there is no shell in it: only the console and the network tell. Disk sizes
   * must be powers of two. Default: QEMU's virtual machine.
   */
  board?: 'raspi3b'
  /** Size of the disk in MiB, of which /var gets what the image leaves. Sparse. Default: 2048. */
  diskSize?: number
  /**
   * A file that gets what the machine sends to a second serial port (/dev/ttyS1, a PC's). Default:
   * there is none.
   */
  serial?: string
  /**
   * A controller for sticks (see {@link Machine.plug}): USB on arm64; SCSI with removable disks on
   * amd64, whose kernel knows no USB. Default: false.
   */
  sticks?: boolean
  /** The card's hardware address. Default: a random one with QEMU's prefix. */
  mac?: string
  /**
   * The clock at start, as QEMU's `-rtc base=`: `utc` or `2006-06-17T16:01:21`. Default: `utc`. A
   * Pi has no clock at all.
   */
  clock?: string
  /**
   * More systemd credentials, by name, as a hypervisor hands them over:
   * `systemd.unit-dropin.nftables.service` breaks the firewall, for one. Default: none.
   */
  credentials?: Record<string, string>
  /**
   * Default: environment variable GATEHOUSE_VM_ACCEL, else `tcg` (full emulation, which works
   * everywhere).
   */
  accelerator?: 'tcg' | 'kvm'
}

/** What a command in the machine came to. */
export interface RunResult {
  /**
   * Exit status; 124 when `timeout` ended it (as timeout(1) has it), 128 + signal when a signal
   * did.
   */
  code: number
  stdout: string
  stderr: string
}

/** How to run a command in the machine. */
export interface RunOptions {
  /** Seconds until the command is ended. Default: 60. */
  timeout?: number
  /** The user to run it as, with that user's groups. Default: root. */
  user?: string
}

/** What a Pi 3B's firmware would start (image/rpi/config.txt). */
const ubootFiles = ['u-boot.bin', 'bcm2837-rpi-3-b.dtb'] as const

/**
 * What QEMU's Pi cannot do is taken out of this machine's copies of U-Boot and the device tree,
 * text by text of one length:
 *
 * - The watchdog: the register that starts it is that of a reset, and QEMU resets at once
 *   (hw/misc/bcm2835_powermgt.c). To start it is systemd's first act.
 * - U-Boot's look for USB keyboards: the kernel's driver (dwc2) finds the emulated controller as
 *   U-Boot leaves it, and then no device ("Not connected").
 */
const notEmulated: readonly [file: (typeof ubootFiles)[number], there: string, instead: string][] =
  [
    [
      'bcm2837-rpi-3-b.dtb',
      'brcm,bcm2835-pm\0brcm,bcm2835-pm-wdt\0',
      'none,bcm2835-pm\0none,bcm2835-pm-wdt\0',
    ],
    ['u-boot.bin', 'preboot=pci enum; usb start;', 'preboot=pci enum; true     ;'],
  ]

const toolsTree = resolve(import.meta.dirname, '../../out/mkosi/tools')

/**
 * The shell in the machine. One line in: id, user, seconds, command (base64). One line out: DONE,
 * id, status, stdout, stderr (base64).
 */
const agent = `
port=/dev/virtio-ports/gatehouse.test
until [ -e "$port" ]; do sleep 0.2; done
mkdir -p -m 0711 /run/gatehouse-test
cd /run/gatehouse-test
exec 3<>"$port"
echo "HELLO $(cat /proc/sys/kernel/random/boot_id)" >&3
while :; do
  while read -r id user limit command <&3; do
    (
      printf %s "$command" | base64 -d >"$id.sh"
      as=()
      [ "$user" = root ] || as=(setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups)
      timeout -k 5 "$limit" "\${as[@]}" /bin/bash "/run/gatehouse-test/$id.sh" >"$id.out" 2>"$id.err" </dev/null 3>&-
      code=$?
      out=$(base64 -w0 <"$id.out") err=$(base64 -w0 <"$id.err")
      rm -f "$id".*
      { flock 9; echo "DONE $id $code \${out:--} \${err:--}" >&3; } 9>lock
    ) &
  done
  sleep 0.2
done
`

const agentUnit = `[Unit]
Description=Root shell for tests, handed in by the hypervisor
ConditionPathExists=!/etc/initrd-release
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target
[Service]
ExecStart=/bin/bash -c 'eval "$$(echo ${Buffer.from(agent).toString('base64')} | base64 -d)"'
Environment=HOME=/root
`

/**
 * Runs a program on this machine to its end and returns its output; an Error with what it said on
 * stderr if it fails.
 */
function tool(
  file: string,
  args: string[],
  input?: string | Buffer,
  env?: Record<string, string>,
): Promise<string> {
  return new Promise((done, fail) => {
    const child = execFile(
      file,
      args,
      { maxBuffer: 1 << 24, env: { ...process.env, ...env } },
      (error, stdout, stderr) => {
        if (error)
          fail(new Error(`machine: ${file} ${args.join(' ')}: ${stderr.trim() || error.message}`))
        else done(stdout)
      },
    )
    child.stdin?.end(input)
  })
}

/**
 * A program of the tools tree, as the arguments that run it with that tree's loader and libraries.
 */
function fromTree(program: string): string[] {
  const triplet = process.arch === 'arm64' ? 'aarch64-linux-gnu' : 'x86_64-linux-gnu'
  const loader = process.arch === 'arm64' ? 'ld-linux-aarch64.so.1' : 'ld-linux-x86-64.so.2'
  return [
    join(toolsTree, 'usr/lib', triplet, loader),
    '--library-path',
    join(toolsTree, 'usr/lib', triplet),
    join(toolsTree, 'usr/bin', program),
  ]
}

const treeEnvironment = {
  GCONV_PATH: join(
    toolsTree,
    'usr/lib',
    process.arch === 'arm64' ? 'aarch64-linux-gnu' : 'x86_64-linux-gnu',
    'gconv',
  ),
  QEMU_MODULE_DIR: '/nonexistent', // the host's modules, of another version, are not for this QEMU
}

/** Where the EFI system partition begins, in bytes. */
async function espOffset(image: string): Promise<number> {
  const file = await open(image, 'r')
  try {
    const [table] = await readTables(file, (await file.stat()).size)
    const esp = table?.partitions.find((partition) => partition.esp)
    if (esp === undefined)
      throw new Error(`machine: ${image} has no EFI system partition: not an image of image/build?`)
    return esp.first * block
  } finally {
    await file.close()
  }
}

/**
 * Makes the image of a stick: one FAT32 partition behind an MBR, as sticks are sold, with `files`
 * (of this machine, by where they go on the stick).
 */
export async function makeStick(
  image: string,
  files: Record<string, string>,
  { megabytes = 400 } = {},
): Promise<void> {
  await rm(image, { force: true })
  const start = 2048
  const sectors = megabytes * 2048
  const mbr = Buffer.alloc(512)
  // One entry: type 0x0c (FAT32, LBA), first sector, number of sectors; then the signature.
  mbr[446 + 4] = 0x0c
  mbr.writeUInt32LE(start, 446 + 8)
  mbr.writeUInt32LE(sectors, 446 + 12)
  mbr.writeUInt16LE(0xaa55, 510)
  const file = await open(image, 'w')
  await file.write(mbr)
  await file.truncate((start + sectors) * 512)
  await file.close()
  const [mkfs = '', ...mkfsArgs] = fromTree('../sbin/mkfs.vfat')
  await tool(mkfs, [
    ...mkfsArgs,
    '-F',
    '32',
    '-n',
    'STICK',
    '--offset',
    String(start),
    image,
    String(sectors / 2),
  ])
  const [mtools = '', ...mtoolsArgs] = fromTree('mtools')
  const at = `${image}@@${start * 512}`
  for (const folder of new Set(Object.keys(files).map((name) => dirname(name)))) {
    if (folder !== '.')
      await tool(
        mtools,
        [...mtoolsArgs, '-c', 'mmd', '-i', at, `::${folder}`],
        undefined,
        treeEnvironment,
      )
  }
  for (const [name, source] of Object.entries(files))
    await tool(
      mtools,
      [...mtoolsArgs, '-c', 'mcopy', '-o', '-i', at, source, `::${name}`],
      undefined,
      treeEnvironment,
    )
}

/**
 * A virtual machine that runs, or has run, a copy of the image. Make one with {@link Machine.boot}.
 */
export class Machine {
  readonly options: Readonly<MachineOptions>
  /** The card's hardware address, for the caller's DHCP server. */
  readonly mac: string
  /** The copy of the disk. It keeps its content over kill() and start(). */
  readonly disk: string
  /** The serial console's log: a file that grows over all starts of this machine. */
  readonly consoleLog: string
  /**
   * Seconds from the last start of QEMU, or the last reboot(), to the answer of the shell in the
   * machine; NaN before.
   */
  bootSeconds = Number.NaN

  #directory: string
  #ownDirectory: boolean
  #sockets = ''
  #tap: string
  #clock = 'utc'
  #qemu: ChildProcess | undefined
  #exited: Promise<void> = Promise.resolve()
  #stderr = ''
  #shell: Socket | undefined
  #startedAt = 0
  #bootId: string | undefined
  #serial = 0
  #pending = new Map<number, { done: (result: RunResult) => void; fail: (error: Error) => void }>()
  #greeted = new Set<() => void>()
  #onExit = (): void => {
    this.#qemu?.kill('SIGKILL')
    if (this.#sockets) rmSync(this.#sockets, { recursive: true, force: true })
  }

  private constructor(options: MachineOptions, directory: string) {
    this.options = options
    this.#directory = directory
    this.#ownDirectory = options.directory === undefined
    this.disk = join(directory, 'disk.img')
    this.consoleLog = join(directory, 'console.log')
    const random = randomBytes(3)
    this.mac =
      options.mac ??
      ['52', '54', '00', ...[...random].map((byte) => byte.toString(16).padStart(2, '0'))].join(':')
    this.#tap = `ghvm${random.toString('hex')}`
  }

  /**
   * Copies the image, writes `files` onto the copy and starts QEMU. Returns as soon as QEMU runs:
   * see ready() and waitFor().
   *
   * @throws Error if the image, the namespace, the bridge or the tools tree is missing, saying
   *   which and what to do.
   */
  static async boot(options: MachineOptions): Promise<Machine> {
    if (!existsSync(options.image))
      throw new Error(
        `machine: ${options.image} is missing: build it with image/build ${options.arch}`,
      )
    if (!existsSync(join(toolsTree, 'usr/bin')))
      throw new Error(
        `machine: ${toolsTree} is missing: image/build ${options.arch} makes it, and QEMU is in it`,
      )
    if (options.directory !== undefined) await mkdir(options.directory, { recursive: true })
    const machine = new Machine(
      options,
      resolve(options.directory ?? (await mkdtemp(join(tmpdir(), 'gatehouse-vm-')))),
    )
    try {
      await tool('cp', ['--reflink=auto', '--sparse=always', options.image, machine.disk])
      await truncate(machine.disk, (options.diskSize ?? 2048) * 1024 * 1024)
      await machine.writeFiles(options.files ?? {})
      if (options.board === undefined)
        await copyFile(
          join(toolsTree, machine.#firmware().vars),
          join(machine.#directory, 'efivars.fd'),
        )
      else {
        await machine.#mcopy([...ubootFiles.map((name) => `::${name}`), machine.#directory])
        for (const [name, there, instead] of notEmulated) {
          const path = join(machine.#directory, name)
          const content = await readFile(path)
          const at = content.indexOf(there)
          if (at < 0)
            throw new Error(
              `machine: ${name} of the image has no ${JSON.stringify(there)} any more: see notEmulated`,
            )
          content.write(instead, at)
          await writeFile(path, content)
        }
      }
      await machine.start()
    } catch (error) {
      await machine.destroy()
      throw error
    }
    return machine
  }

  /** Writes files onto the FAT partition of the disk. Only while the machine is off. */
  async writeFiles(files: Record<string, string | Buffer>): Promise<void> {
    if (this.#qemu)
      throw new Error(
        'machine: writeFiles: the machine is running, and its FAT partition with it: power it off first',
      )
    if (Object.keys(files).length === 0) return
    for (const [name, content] of Object.entries(files))
      await this.#mcopy(['-', `::${name}`], content)
  }

  /** mcopy(1) to or from the FAT partition of the disk. */
  async #mcopy(names: string[], input?: string | Buffer): Promise<void> {
    const [loader = '', ...args] = fromTree('mtools')
    await tool(
      loader,
      [...args, '-c', 'mcopy', '-o', '-i', `${this.disk}@@${await espOffset(this.disk)}`, ...names],
      input,
      treeEnvironment,
    )
  }

  /** The firmware's two files in the tools tree. */
  #firmware(): { code: string; vars: string } {
    return this.options.arch === 'amd64'
      ? { code: 'usr/share/OVMF/OVMF_CODE_4M.fd', vars: 'usr/share/OVMF/OVMF_VARS_4M.fd' }
      : { code: 'usr/share/AAVMF/AAVMF_CODE.no-secboot.fd', vars: 'usr/share/AAVMF/AAVMF_VARS.fd' }
  }

  #arguments(): string[] {
    return this.options.board === undefined
      ? this.#virtual()
      : [
          ...fromTree('qemu-system-aarch64'),
          '-L',
          join(toolsTree, 'usr/share/qemu'),
          '-nodefaults',
          '-no-user-config',
          '-display',
          'none',
          '-monitor',
          'none',
          '-parallel',
          'none',
          // Time goes by with the instructions: by the clock, the emulated USB controller asks its
          // device so often that the processors get nothing done.
          '-machine',
          this.options.board,
          '-accel',
          'tcg,thread=single,tb-size=512',
          '-icount',
          'shift=2',
          '-kernel',
          join(this.#directory, ubootFiles[0]),
          '-dtb',
          join(this.#directory, ubootFiles[1]),
          '-drive',
          `if=sd,format=raw,cache=unsafe,file=${this.disk}`,
          '-netdev',
          `tap,id=lan,ifname=${this.#tap},script=no,downscript=no`,
          '-device',
          `usb-net,netdev=lan,mac=${this.mac}`,
          // The first is the one that Bluetooth is on.
          '-serial',
          'null',
          '-chardev',
          `file,id=console,path=${this.consoleLog},append=on`,
          '-serial',
          'chardev:console',
        ]
  }

  #virtual(): string[] {
    const { arch, memory = 1024, cpus = 2 } = this.options
    const clock = this.#clock
    const accelerator = this.options.accelerator ?? process.env['GATEHOUSE_VM_ACCEL'] ?? 'tcg'
    const credential = (name: string, content: string): string[] => [
      '-smbios',
      `type=11,value=io.systemd.credential.binary:${name}=${Buffer.from(content).toString('base64')}`,
    ]
    // TCG: la57 (five-level page tables) only makes every page walk longer. arm64: the Pi 4's
    // processor.
    const emulated = arch === 'amd64' ? 'max,la57=off' : 'cortex-a72'
    const cpu = accelerator === 'kvm' ? 'host' : emulated
    return [
      ...fromTree(arch === 'amd64' ? 'qemu-system-x86_64' : 'qemu-system-aarch64'),
      '-L',
      join(toolsTree, 'usr/share/qemu'),
      '-nodefaults',
      '-no-user-config',
      '-display',
      'none',
      '-monitor',
      'none',
      '-parallel',
      'none',
      '-machine',
      arch === 'amd64' ? 'q35' : 'virt,gic-version=3',
      '-accel',
      accelerator === 'kvm' ? 'kvm' : 'tcg,thread=multi,tb-size=512',
      '-cpu',
      cpu,
      '-smp',
      String(cpus),
      '-m',
      `${memory}M`,
      '-rtc',
      `base=${clock}`,
      '-drive',
      `if=pflash,unit=0,format=raw,readonly=on,file=${join(toolsTree, this.#firmware().code)}`,
      '-drive',
      `if=pflash,unit=1,format=raw,file=${join(this.#directory, 'efivars.fd')}`,
      // unsafe: what the guest has written survives the death of QEMU, which is all that these
      // tests kill.
      '-drive',
      `if=none,id=disk,format=raw,cache=unsafe,discard=unmap,file=${this.disk}`,
      '-device',
      'virtio-blk-pci,drive=disk,bootindex=0',
      '-netdev',
      `tap,id=lan,ifname=${this.#tap},script=no,downscript=no`,
      '-device',
      `virtio-net-pci,netdev=lan,mac=${this.mac},romfile=`,
      '-device',
      'virtio-rng-pci',
      // The PC's firmware has a network stack, which answers before the system is there; a Pi's has
      // none.
      '-fw_cfg',
      'name=opt/org.tianocore/IPv4Support,string=no',
      '-fw_cfg',
      'name=opt/org.tianocore/IPv6Support,string=no',
      '-chardev',
      `file,id=console,path=${this.consoleLog},append=on`,
      '-serial',
      'chardev:console',
      '-chardev',
      `socket,id=qmp,path=${join(this.#sockets, 'qmp')},server=on,wait=off`,
      '-mon',
      'chardev=qmp,mode=control',
      ...(this.options.sticks === true
        ? ['-device', arch === 'amd64' ? 'virtio-scsi-pci,id=sticks' : 'qemu-xhci,id=sticks']
        : []),
      ...(this.options.serial === undefined ? [] : ['-serial', `file:${this.options.serial}`]),
      '-chardev',
      `socket,id=shell,path=${join(this.#sockets, 'shell')},server=on,wait=off`,
      '-device',
      'virtio-serial-pci',
      '-device',
      'virtserialport,chardev=shell,name=gatehouse.test',
      ...credential('systemd.extra-unit.gatehouse-test.service', agentUnit),
      ...credential('systemd.unit-dropin.sysinit.target', '[Unit]\nWants=gatehouse-test.service\n'),
      ...Object.entries(this.options.credentials ?? {}).flatMap(([name, content]) =>
        credential(name, content),
      ),
    ]
  }

  /** Starts QEMU on the disk as it is: after powerOff() or kill(), the same machine once more. */
  async start({
    clock = this.options.clock ?? 'utc',
  }: Pick<MachineOptions, 'clock'> = {}): Promise<void> {
    this.#clock = clock
    if (this.#qemu) throw new Error('machine: start: it is running already')
    const { namespace, bridge } = this.options
    // A path in sun_path has 107 bytes at most: not under `directory`.
    this.#sockets = await mkdtemp(join(tmpdir(), 'ghvm-'))
    await tool('ip', ['-n', namespace, 'tuntap', 'add', 'dev', this.#tap, 'mode', 'tap'])
    await tool('ip', ['-n', namespace, 'link', 'set', 'dev', this.#tap, 'master', bridge, 'up'])

    this.#bootId = undefined
    this.#stderr = ''
    this.#startedAt = performance.now()
    // Should this process die without a chance to clean up, the kernel ends QEMU (prctl(2),
    // PR_SET_PDEATHSIG).
    const qemu = spawn(
      'setpriv',
      ['--pdeathsig', 'KILL', 'ip', 'netns', 'exec', namespace, ...this.#arguments()],
      {
        stdio: ['ignore', 'ignore', 'pipe'],
        env: { ...process.env, ...treeEnvironment },
      },
    )
    this.#qemu = qemu
    process.on('exit', this.#onExit)
    qemu.stderr.on(
      'data',
      (data: Buffer) => (this.#stderr = (this.#stderr + data.toString()).slice(-4000)),
    )
    this.#exited = new Promise((done) => {
      const ended = (): void => {
        if (this.#qemu !== qemu) return done()
        this.#qemu = undefined
        process.off('exit', this.#onExit)
        this.#shell?.destroy()
        this.#failPending(new Error(`machine: QEMU has ended. ${this.#stderr.trim()}`))
        void Promise.all([
          tool('ip', ['-n', namespace, 'link', 'del', 'dev', this.#tap]).catch(() => {}), // the namespace may be gone, and the tap with it
          rm(this.#sockets, { recursive: true, force: true }),
        ]).then(() => done())
      }
      qemu.once('exit', ended)
      qemu.once('error', (error) => {
        this.#stderr += error.message
        ended()
      })
    })
    if (this.options.board === undefined) await this.#connectShell()
  }

  async #connectShell(): Promise<void> {
    const path = join(this.#sockets, 'shell')
    for (let attempt = 0; ; attempt++) {
      if (!this.#qemu) throw new Error(`machine: QEMU did not start: ${this.#stderr.trim()}`)
      try {
        this.#shell = await new Promise<Socket>((done, fail) => {
          const socket = connect(path, () => done(socket))
          socket.once('error', fail)
        })
        break
      } catch (error) {
        if (attempt > 200)
          throw new Error(
            `machine: QEMU does not open ${path}: ${String(error)} ${this.#stderr.trim()}`,
          )
        await sleep(50)
      }
    }
    this.#shell.on('error', () => {}) // QEMU's end is told by its exit
    let rest = ''
    this.#shell.setEncoding('latin1')
    this.#shell.on('data', (data) => {
      const lines = (rest + String(data)).split('\n')
      rest = lines.pop() ?? ''
      for (const line of lines) this.#heard(line)
    })
  }

  #heard(line: string): void {
    const [word, ...rest] = line.split(' ')
    if (word === 'HELLO') {
      this.#bootId = rest[0]
      this.bootSeconds = (performance.now() - this.#startedAt) / 1000
      // A new boot: nobody is left to answer the old one's questions.
      this.#failPending(new Error('machine: it has rebooted meanwhile'))
      for (const greeted of this.#greeted) greeted()
    } else if (word === 'DONE') {
      const [id, code, stdout, stderr] = rest
      const text = (data = '-'): string =>
        data === '-' ? '' : Buffer.from(data, 'base64').toString()
      const pending = this.#pending.get(Number(id))
      this.#pending.delete(Number(id))
      pending?.done({ code: Number(code), stdout: text(stdout), stderr: text(stderr) })
    }
  }

  #failPending(error: Error): void {
    for (const { fail } of this.#pending.values()) fail(error)
    this.#pending.clear()
  }

  /** True while QEMU runs. */
  get running(): boolean {
    return this.#qemu !== undefined
  }

  /** QEMU's process, while it runs. */
  get pid(): number | undefined {
    return this.#qemu?.pid
  }

  /**
   * Waits until the machine's shell answers, which is early in the boot: before /var is there, and
   * before any network.
   *
   * @param timeout Seconds. Default: 300.
   * @throws Error with the end of the console's log when it does not.
   */
  async ready({ timeout = 300 }: { timeout?: number } = {}): Promise<void> {
    const deadline = performance.now() + timeout * 1000
    while (this.#bootId === undefined) {
      if (!this.#qemu)
        throw new Error(
          `machine: QEMU has ended before the system was up. ${this.#stderr.trim()}\n${await this.#consoleEnd()}`,
        )
      if (performance.now() > deadline)
        throw new Error(
          `machine: no answer from its shell in ${timeout} s. The console's last lines:\n${await this.#consoleEnd()}`,
        )
      await sleep(100)
    }
  }

  /**
   * Runs a command (a bash script) in the machine as root or another user. Several may run at once.
   *
   * @throws Error when the machine ends, reboots or does not answer; a command that fails is a
   *   result, not an error.
   */
  async run(command: string, { timeout = 60, user = 'root' }: RunOptions = {}): Promise<RunResult> {
    await this.ready()
    const id = ++this.#serial
    return new Promise<RunResult>((done, fail) => {
      const timer = setTimeout(
        () => {
          this.#pending.delete(id)
          fail(new Error(`machine: no answer in ${timeout + 30} s to: ${command}`))
        },
        (timeout + 30) * 1000,
      )
      this.#pending.set(id, {
        done: (result) => (clearTimeout(timer), done(result)),
        fail: (error) => (clearTimeout(timer), fail(error)),
      })
      this.#shell?.write(`${id} ${user} ${timeout} ${Buffer.from(command).toString('base64')}\n`)
    })
  }

  /**
   * Reboots in good order and waits for the shell of the new boot. @param timeout Seconds for all
   * of it. Default: 300.
   */
  async reboot({ timeout = 300 }: { timeout?: number } = {}): Promise<void> {
    await this.ready()
    this.#startedAt = performance.now()
    const greeted = new Promise<void>((done) => {
      const once = (): void => {
        this.#greeted.delete(once)
        done()
      }
      this.#greeted.add(once)
    })
    await this.run('systemctl --no-block reboot').catch(() => {}) // it may be quicker than its answer
    const late = AbortSignal.timeout(timeout * 1000)
    await Promise.race([
      greeted,
      new Promise<never>((_, fail) =>
        late.addEventListener('abort', () =>
          fail(new Error(`machine: not back from its reboot in ${timeout} s`)),
        ),
      ),
      this.#exited.then(() =>
        Promise.reject(new Error(`machine: QEMU ended in the reboot. ${this.#stderr.trim()}`)),
      ),
    ]).catch(async (error: Error) => {
      throw new Error(`${error.message}\n${await this.#consoleEnd()}`)
    })
  }

  /**
   * Shuts down in good order and waits for QEMU's end; kills it after `timeout` seconds (default
   * 90) and says so.
   */
  async powerOff({ timeout = 90 }: { timeout?: number } = {}): Promise<void> {
    if (!this.#qemu) return
    await this.ready()
    await this.run('systemctl --no-block poweroff').catch(() => {})
    const tooLate = Symbol()
    if (
      (await Promise.race([this.#exited, sleep(timeout * 1000, tooLate, { ref: false })])) ===
      tooLate
    ) {
      const end = await this.#consoleEnd()
      await this.kill()
      throw new Error(
        `machine: did not shut down in ${timeout} s and was killed. The console's last lines:\n${end}`,
      )
    }
  }

  /** The power cut: QEMU is killed at once. The disk stays as it is. */
  async kill(): Promise<void> {
    this.#qemu?.kill('SIGKILL')
    await this.#exited
  }

  /**
   * Plugs in a stick whose content is the file `image`, read only. Needs `sticks`. Pull it out with
   * what is returned.
   */
  async plug(image: string): Promise<() => Promise<void>> {
    if (this.options.sticks !== true) throw new Error('machine: plug: boot it with sticks: true')
    const id = `stick${++this.#serial}`
    await this.#monitor({
      execute: 'blockdev-add',
      arguments: {
        'node-name': id,
        driver: 'raw',
        'read-only': true,
        file: { driver: 'file', filename: resolve(image) },
      },
    })
    const bus =
      this.options.arch === 'amd64'
        ? { driver: 'scsi-hd', bus: 'sticks.0', removable: true }
        : { driver: 'usb-storage', bus: 'sticks.0', removable: true }
    await this.#monitor({
      execute: 'device_add',
      arguments: { ...bus, id: `${id}-device`, drive: id },
    })
    return async () => {
      await this.#monitor({ execute: 'device_del', arguments: { id: `${id}-device` } })
      // The guest lets go of it first.
      for (let tries = 0; ; tries++) {
        const gone = await this.#monitor({
          execute: 'blockdev-del',
          arguments: { 'node-name': id },
        }).then(
          () => true,
          (error: Error) => (tries > 300 ? Promise.reject(error) : false),
        )
        if (gone) return
        await sleep(200)
      }
    }
  }

  /** One command to QEMU (QMP, docs/interop/qmp-spec.rst). */
  async #monitor(command: object): Promise<unknown> {
    return await new Promise((done, fail) => {
      const socket = connect(join(this.#sockets, 'qmp'))
      let rest = ''
      let answers = 0
      socket.setEncoding('utf8')
      socket.setTimeout(60_000, () =>
        socket.destroy(new Error("machine: QEMU's monitor does not answer")),
      )
      socket.once('error', fail)
      socket.on('data', (data) => {
        const lines = (rest + String(data)).split('\n')
        rest = lines.pop() ?? ''
        for (const line of lines) {
          const message = JSON.parse(line) as {
            QMP?: unknown
            return?: unknown
            error?: { desc: string }
          }
          if (message.QMP !== undefined) socket.write('{"execute":"qmp_capabilities"}\n')
          else if (message.error !== undefined) {
            socket.end()
            fail(new Error(`machine: QEMU: ${message.error.desc}`))
          } else if (message.return !== undefined && ++answers === 1)
            socket.write(`${JSON.stringify(command)}\n`)
          else if (message.return !== undefined) {
            socket.end()
            done(message.return)
          }
        }
      })
    })
  }

  /**
   * kill(), and the disk and whatever else lies in the machine's own directory is removed, unless
   * the caller named one.
   */
  async destroy(): Promise<void> {
    await this.kill()
    if (this.#ownDirectory) await rm(this.#directory, { recursive: true, force: true })
    else
      await Promise.all([
        rm(this.disk, { force: true }),
        rm(join(this.#directory, 'efivars.fd'), { force: true }),
      ])
  }

  /** All that came over the serial console so far, without terminal sequences. */
  async console(): Promise<string> {
    const text = await readFile(this.consoleLog, 'utf8').catch(() => '')
    // oxlint-disable-next-line no-control-regex
    return text.replace(/\x1b(\[[0-9;?]*[A-Za-z]|[()][AB0]|[=>])|\r/g, '')
  }

  async #consoleEnd(): Promise<string> {
    return (await this.console()).split('\n').slice(-30).join('\n')
  }

  /**
   * Waits for a line of the console's log, whenever it came.
   *
   * @returns The match.
   * @throws Error with the log's end after `timeout` seconds (default 120), or when QEMU ends
   *   without it.
   */
  async waitFor(
    pattern: RegExp,
    { timeout = 120 }: { timeout?: number } = {},
  ): Promise<RegExpExecArray> {
    const deadline = performance.now() + timeout * 1000
    for (;;) {
      const alive = this.running
      const match = pattern.exec(await this.console())
      if (match) return match
      if (!alive || performance.now() > deadline) {
        throw new Error(
          `machine: ${alive ? `not in ${timeout} s` : 'QEMU has ended'}: ${String(pattern)}. The console's last lines:\n${await this.#consoleEnd()}`,
        )
      }
      await sleep(200)
    }
  }
}
