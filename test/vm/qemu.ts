/** How QEMU is started for a machine, and told things while it runs. */
import { readFile, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { join, resolve } from 'node:path'
import { mcopy } from './disk.ts'
import type { Arch, MachineOptions } from './machine.ts'
import { agentUnit } from './root-shell.ts'
import { fromTree, toolsTree } from './tools-tree.ts'

/** What the arguments follow from beside the options. */
export interface Placement {
  /** Directory of the machine's own files. */
  directory: string
  disk: string
  consoleLog: string
  /** Directory of QEMU's sockets: `shell`, `qmp`. */
  sockets: string
  /** Name of the tap device. */
  tap: string
  mac: string
  /** As {@link MachineOptions.clock}. */
  clock: string
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

/** Takes what QEMU starts a Pi 3B with from the image, less what it cannot emulate. */
export async function prepareBoard(disk: string, directory: string): Promise<void> {
  await mcopy(disk, [...ubootFiles.map((name) => `::${name}`), directory])
  for (const [name, there, instead] of notEmulated) {
    const path = join(directory, name)
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

/** U-Boot for QEMU's virtual arm64 machine. */
export const uboot = resolve(
  import.meta.dirname,
  '../../out/cache/u-boot-qemu/usr/lib/u-boot/qemu_arm64/u-boot.bin',
)

/** The firmware's two files in the tools tree. */
export function firmware(arch: Arch): { code: string; vars: string } {
  return arch === 'amd64'
    ? { code: 'usr/share/OVMF/OVMF_CODE_4M.fd', vars: 'usr/share/OVMF/OVMF_VARS_4M.fd' }
    : { code: 'usr/share/AAVMF/AAVMF_CODE.no-secboot.fd', vars: 'usr/share/AAVMF/AAVMF_VARS.fd' }
}

/** Program and arguments. */
export function qemuArguments(options: MachineOptions, place: Placement): string[] {
  return options.board === undefined ? virtual(options, place) : board(options.board, place)
}

function board(name: string, { directory, disk, consoleLog, tap, mac }: Placement): string[] {
  return [
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
    name,
    '-accel',
    'tcg,thread=single,tb-size=512',
    '-icount',
    'shift=2',
    '-kernel',
    join(directory, ubootFiles[0]),
    '-dtb',
    join(directory, ubootFiles[1]),
    '-drive',
    `if=sd,format=raw,cache=unsafe,file=${disk}`,
    '-netdev',
    `tap,id=lan,ifname=${tap},script=no,downscript=no`,
    '-device',
    `usb-net,netdev=lan,mac=${mac}`,
    // The first is the one that Bluetooth is on.
    '-serial',
    'null',
    '-chardev',
    `file,id=console,path=${consoleLog},append=on`,
    '-serial',
    'chardev:console',
  ]
}

function virtual(
  options: MachineOptions,
  { directory, disk, consoleLog, sockets, tap, mac, clock }: Placement,
): string[] {
  const { arch, memory = 1024, cpus = 2 } = options
  const accelerator = options.accelerator ?? process.env['GATEHOUSE_VM_ACCEL'] ?? 'tcg'
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
    arch === 'amd64' ? 'q35' : `virt,gic-version=3${options.acpi === false ? ',acpi=off' : ''}`,
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
    ...(options.firmware === 'u-boot'
      ? ['-bios', uboot]
      : [
          '-drive',
          `if=pflash,unit=0,format=raw,readonly=on,file=${join(toolsTree, firmware(arch).code)}`,
          '-drive',
          `if=pflash,unit=1,format=raw,file=${join(directory, 'efivars.fd')}`,
        ]),
    // unsafe: what the guest has written survives the death of QEMU, which is all that most of
    // these tests kill. A card with a cache is told of flushes.
    '-drive',
    `if=none,id=disk,format=raw,cache=${options.card === undefined ? 'unsafe' : 'writeback'},discard=unmap,file=${disk}`,
    '-device',
    'virtio-blk-pci,drive=disk,bootindex=0',
    '-netdev',
    `tap,id=lan,ifname=${tap},script=no,downscript=no`,
    '-device',
    `virtio-net-pci,netdev=lan,mac=${mac},romfile=`,
    '-device',
    'virtio-rng-pci',
    // The PC's firmware has a network stack, which answers before the system is there; a Pi's has
    // none.
    '-fw_cfg',
    'name=opt/org.tianocore/IPv4Support,string=no',
    '-fw_cfg',
    'name=opt/org.tianocore/IPv6Support,string=no',
    '-chardev',
    `file,id=console,path=${consoleLog},append=on`,
    '-serial',
    'chardev:console',
    '-chardev',
    `socket,id=qmp,path=${join(sockets, 'qmp')},server=on,wait=off`,
    '-mon',
    'chardev=qmp,mode=control',
    ...(options.sticks === true
      ? ['-device', arch === 'amd64' ? 'virtio-scsi-pci,id=sticks' : 'qemu-xhci,id=sticks']
      : []),
    ...(options.serial === undefined ? [] : ['-serial', `file:${options.serial}`]),
    '-chardev',
    `socket,id=shell,path=${join(sockets, 'shell')},server=on,wait=off`,
    '-device',
    'virtio-serial-pci',
    '-device',
    'virtserialport,chardev=shell,name=gatehouse.test',
    ...credential('systemd.extra-unit.gatehouse-test.service', agentUnit),
    ...credential('systemd.unit-dropin.sysinit.target', '[Unit]\nWants=gatehouse-test.service\n'),
    ...Object.entries(options.credentials ?? {}).flatMap(([name, content]) =>
      credential(name, content),
    ),
  ]
}

/** One command to QEMU (QMP, docs/interop/qmp-spec.rst). */
export async function monitor(sockets: string, command: object): Promise<unknown> {
  return await new Promise((done, fail) => {
    const socket = connect(join(sockets, 'qmp'))
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
