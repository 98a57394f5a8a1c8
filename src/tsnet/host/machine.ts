/** What machine this is, as Tailscale's hostinfo package would find on it (hostinfo_linux.go). */
import fs from 'node:fs'
import os from 'node:os'

/** As ../go/machine.go's hostMachine. */
export interface Machine {
  os: string
  osVersion: string
  distro: string
  distroVersion: string
  distroCodeName: string
  /** uname(1) -m. */
  machine: string
  /** Go's name of the architecture. */
  arch: string
  deviceModel: string
  /** Undefined where Tailscale would not say. */
  container?: boolean
  desktop?: boolean
}

/** Content of a file; empty when there is none. */
function text(file: string): string {
  try {
    return fs.readFileSync(file, 'utf8')
  } catch {
    return ''
  }
}

/** A variable of os-release(5). */
function variable(release: string, name: string): string {
  const value = new RegExp(`^${name}=(.*)$`, 'm').exec(release)?.[1]?.trim() ?? ''
  return value.replace(/^(["'])(.*)\1$/, '$2')
}

/** @param root where the files of the system are; for tests */
export function machine(root = '/'): Machine {
  const platforms: Partial<Record<NodeJS.Platform, string>> = { darwin: 'macOS', win32: 'windows' }
  const about: Machine = {
    os: platforms[process.platform] ?? process.platform,
    osVersion: os.release(),
    ...{ distro: '', distroVersion: '', distroCodeName: '' },
    machine: os.machine(),
    arch: { x64: 'amd64', ia32: '386' }[process.arch as string] ?? process.arch,
    deviceModel: '',
  }
  if (process.platform !== 'linux') return about
  const release = text(`${root}etc/os-release`) || text(`${root}usr/lib/os-release`)
  about.distro = variable(release, 'ID')
  about.distroVersion = variable(release, 'VERSION_ID')
  about.distroCodeName = variable(release, 'VERSION_CODENAME')
  // Debian's VERSION_ID is 13 where this says 13.1; of an unstable one it is a name.
  const debian = about.distro === 'debian' ? text(`${root}etc/debian_version`).trim() : ''
  if (/^\d/.test(debian)) about.distroVersion = debian
  else if (about.distroCodeName === '') about.distroCodeName = debian
  // Boards that a device tree describes: "Raspberry Pi 4 Model B Rev 1.4", and a zero byte.
  about.deviceModel = text(`${root}sys/firmware/devicetree/base/model`).replace(
    /^[\0\s]+|[\0\s]+$/g,
    '',
  )
  about.container =
    ['.dockerenv', 'run/.containerenv'].some((file) => fs.existsSync(root + file)) ||
    /\/(docker|lxc)\//.test(text(`${root}proc/1/cgroup`)) ||
    text(`${root}proc/mounts`).includes('lxcfs /proc/cpuinfo fuse.lxcfs')
  about.desktop = /\.X11-unix|\/wayland-1/.test(text(`${root}proc/net/unix`))
  return about
}
