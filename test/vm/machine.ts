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
 * const machine = await Machine.boot({ image: 'out/gatehouse-amd64.img', arch: 'amd64', namespace:
 * 'lab1', bridge: 'br0',
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

import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, rmSync } from 'node:fs'
import { copyFile, mkdir, mkdtemp, readFile, rm, truncate } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { CacheCard, type Loss, type Manner, type Recording } from './cache-card.ts'
import { mcopy, partitionOf } from './disk.ts'
import { firmware, monitor, prepareBoard, qemuArguments, uboot } from './qemu.ts'
import { RootShell, type RunOptions, type RunResult } from './root-shell.ts'
import { tool, toolsTree, treeEnvironment } from './tools-tree.ts'

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
  /**
   * arm64: U-Boot in place of the usual UEFI, of the version that is on the card for a Pi. As a Pi's
   * it renames no files on FAT, and keeps variables in one (`test/vm/fetch-u-boot` gets it).
   * Default: the usual one.
   */
  firmware?: 'u-boot'
  /**
   * A cache in the card, which loses what is in it when the power goes (kill()): with an honest
   * card, nothing that was flushed; with one that lies, that too. Default: what the guest has
   * written is on the card.
   */
  card?: Manner
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
  /**
   * arm64: `false` describes the machine by a device tree, as a Pi is. It then has a GPIO chip of
   * eight lines, which the firmware's tables do not name. Default: true.
   */
  acpi?: boolean
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
  /** What the last kill() cost, of a card with a cache. */
  loss: Loss | undefined

  #directory: string
  #ownDirectory: boolean
  #sockets = ''
  #tap: string
  #qemu: ChildProcess | undefined
  #exited: Promise<void> = Promise.resolve()
  #stderr = ''
  #startedAt = 0
  #sticks = 0
  #card: CacheCard | undefined
  #cut = false
  #shell = new RootShell(() => {
    this.bootSeconds = (performance.now() - this.#startedAt) / 1000
    for (const greeted of this.#greeted) greeted()
  })
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
      if (options.firmware !== undefined && !existsSync(uboot))
        throw new Error(`machine: ${uboot} is missing: test/vm/fetch-u-boot gets it`)
      if (options.board === undefined)
        await copyFile(
          join(toolsTree, firmware(options.arch).vars),
          join(machine.#directory, 'efivars.fd'),
        )
      else await prepareBoard(machine.disk, machine.#directory)
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
      await mcopy(this.disk, ['-', `::${name}`], content)
  }

  /** Starts QEMU on the disk as it is: after powerOff() or kill(), the same machine once more. */
  async start({
    clock = this.options.clock ?? 'utc',
  }: Pick<MachineOptions, 'clock'> = {}): Promise<void> {
    if (this.#qemu) throw new Error('machine: start: it is running already')
    const { namespace, bridge } = this.options
    // A path in sun_path has 107 bytes at most: not under `directory`.
    this.#sockets = await mkdtemp(join(tmpdir(), 'ghvm-'))
    await tool('ip', ['-n', namespace, 'tuntap', 'add', 'dev', this.#tap, 'mode', 'tap'])
    await tool('ip', ['-n', namespace, 'link', 'set', 'dev', this.#tap, 'master', bridge, 'up'])

    this.#stderr = ''
    this.#cut = false
    if (this.options.card !== undefined)
      this.#card = await CacheCard.open(this.disk, join(this.#sockets, 'card'), this.options.card)
    this.#startedAt = performance.now()
    const place = {
      directory: this.#directory,
      disk:
        this.#card === undefined ? this.disk : `nbd+unix:///?socket=${join(this.#sockets, 'card')}`,
      consoleLog: this.consoleLog,
      sockets: this.#sockets,
      tap: this.#tap,
      mac: this.mac,
      clock,
    }
    // Should this process die without a chance to clean up, the kernel ends QEMU (prctl(2),
    // PR_SET_PDEATHSIG).
    const qemu = spawn(
      'setpriv',
      [
        '--pdeathsig',
        'KILL',
        'ip',
        'netns',
        'exec',
        namespace,
        ...qemuArguments(this.options, place),
      ],
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
        this.#shell.end(new Error(`machine: QEMU has ended. ${this.#stderr.trim()}`))
        void Promise.all([
          this.#takeCard(),
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
    if (this.options.board === undefined)
      await this.#shell.connect(
        join(this.#sockets, 'shell'),
        () => this.running,
        () => this.#stderr.trim(),
      )
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
    while (this.#shell.bootId === undefined) {
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
  async run(command: string, options: RunOptions = {}): Promise<RunResult> {
    await this.ready()
    return await this.#shell.run(command, options)
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

  async #takeCard(): Promise<void> {
    const card = this.#card
    this.#card = undefined
    if (this.#cut) this.loss = await card?.cut()
    else await card?.eject()
  }

  /** Notes from now on what is written to the FAT partition of a card with a cache. */
  async recordBoot(): Promise<Recording> {
    if (this.#card === undefined) throw new Error('machine: this card has no cache')
    return this.#card.record(await partitionOf(this.disk, 'EFI system partition', ({ esp }) => esp))
  }

  /**
   * The power cut: QEMU is killed at once. The disk stays as it is, but for what was in the card's
   * cache alone.
   */
  async kill(): Promise<void> {
    this.#cut = true
    this.#qemu?.kill('SIGKILL')
    await this.#exited
  }

  /**
   * Plugs in a stick whose content is the file `image`, read only. Needs `sticks`. Pull it out with
   * what is returned.
   */
  async plug(image: string): Promise<() => Promise<void>> {
    if (this.options.sticks !== true) throw new Error('machine: plug: boot it with sticks: true')
    const id = `stick${++this.#sticks}`
    await monitor(this.#sockets, {
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
    await monitor(this.#sockets, {
      execute: 'device_add',
      arguments: { ...bus, id: `${id}-device`, drive: id },
    })
    return async () => {
      await monitor(this.#sockets, { execute: 'device_del', arguments: { id: `${id}-device` } })
      // The guest lets go of it first.
      for (let tries = 0; ; tries++) {
        const gone = await monitor(this.#sockets, {
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

  /**
   * Plugs in a USB serial adapter (an FTDI's, as QEMU has it) whose line is the unix socket `path`,
   * on which QEMU listens. arm64 with `sticks`. Pull it out with what is returned.
   */
  async plugSerial(path: string): Promise<() => Promise<void>> {
    if (this.options.sticks !== true || this.options.arch !== 'arm64')
      throw new Error('machine: plugSerial: boot arm64 with sticks: true')
    const id = `adapter${++this.#sticks}`
    const backend = {
      type: 'socket',
      data: { addr: { type: 'unix', data: { path } }, server: true, wait: false },
    }
    await monitor(this.#sockets, { execute: 'chardev-add', arguments: { id, backend } })
    await monitor(this.#sockets, {
      execute: 'device_add',
      arguments: {
        ...{ driver: 'usb-serial', bus: 'sticks.0', id: `${id}-device`, chardev: id },
        // Without it is there only while somebody is at the socket.
        'always-plugged': true,
      },
    })
    return async () => {
      await monitor(this.#sockets, { execute: 'device_del', arguments: { id: `${id}-device` } })
    }
  }

  /**
   * Presses the power button for a tenth of a second: without `acpi`, line 3 of the GPIO chip goes
   * high and low again.
   */
  async pressButton(): Promise<void> {
    await monitor(this.#sockets, { execute: 'system_powerdown' })
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
          `machine: ${alive ? `not in ${timeout} s` : 'QEMU has ended'}: ${String(pattern)}. ` +
            `The console's last lines:\n${await this.#consoleEnd()}`,
        )
      }
      await sleep(200)
    }
  }
}
