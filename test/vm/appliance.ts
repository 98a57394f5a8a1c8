/**
 * The appliance in the lab: boots an image in QEMU on the lab's network, with the settings a person
 * would write on its FAT partition, and waits for what must come of it.
 */
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FetchAnswer, Lab, LabClient, LabNode } from '../lab/lab.ts'
import { type Arch, Machine, type MachineOptions } from './machine.ts'

const root = path.resolve(import.meta.dirname, '../..')

/**
 * The image that chain, lockdown, certificates, faults and updates are tried on: the amd64 twin,
 * which is emulated fastest; with GATEHOUSE_ARCH=arm64 the very one that is flashed.
 */
export const tried: Arch = ((): Arch => {
  const arch = process.env['GATEHOUSE_ARCH'] ?? ''
  if (arch === '' || arch === 'amd64') return 'amd64'
  if (arch === 'arm64') return 'arm64'
  throw new Error(`GATEHOUSE_ARCH=${arch}: there are images for amd64 and arm64`)
})()

/**
 * What starts it: with GATEHOUSE_FIRMWARE=u-boot (arm64 alone) the U-Boot that starts a Pi, built
 * for QEMU's virtual machine.
 */
export const firmware = ((): Pick<MachineOptions, 'firmware'> => {
  const name = process.env['GATEHOUSE_FIRMWARE'] ?? ''
  if (name === '') return {}
  if (name === 'u-boot' && tried === 'arm64') return { firmware: name }
  throw new Error(`GATEHOUSE_FIRMWARE=${name}: u-boot, with GATEHOUSE_ARCH=arm64`)
})()

/** The card it is on, for tests that cut the power: GATEHOUSE_CARD=honest or lying. */
export const card = ((): Pick<MachineOptions, 'card'> => {
  const name = process.env['GATEHOUSE_CARD'] ?? ''
  if (name === '') return {}
  if (name === 'honest' || name === 'lying') return { card: name }
  throw new Error(`GATEHOUSE_CARD=${name}: honest or lying`)
})()

/** The image that `make image` leaves. */
export const imageOf = (arch: Arch): string => path.join(root, `out/gatehouse-${arch}.img`)

/** gatehouse.toml for the lab. `authKey` null: none is written. */
export function settings(
  lab: Lab,
  options: { authKey?: string | null; controlURL?: string } = {},
): string {
  const { authKey = lab.ready.authKey, controlURL = lab.ready.controlURL } = options
  return [
    '[tailnet]',
    ...(authKey === null ? [] : [`auth_key = "${authKey}"`]),
    `control_url = "${controlURL}"`,
    'ca_file = "authority.pem"',
    '[certificates]',
    `directory = "${lab.ready.acmeDirectory}"`,
    'ca_file = "authority.pem"',
    '',
  ].join('\n')
}

/** What a person puts on the card's FAT partition, for the lab. `toml` null: no gatehouse.toml. */
export async function cardFiles(
  lab: Lab,
  toml: string | null = settings(lab),
): Promise<Record<string, string | Buffer>> {
  return {
    'authority.pem': await readFile(lab.ready.authority),
    ...(toml === null ? {} : { 'gatehouse.toml': toml }),
  }
}

/**
 * Boots the image on the lab's bridge. `toml` default: {@link settings}; null: the FAT partition
 * has none. `files`: beside what the lab needs.
 */
export async function bootAppliance(
  lab: Lab,
  arch: Arch,
  { toml = settings(lab), ...options }: { toml?: string | null } & Partial<MachineOptions> = {},
): Promise<Machine> {
  return await Machine.boot({
    image: imageOf(arch),
    arch,
    namespace: lab.ns,
    bridge: 'br0',
    ...options,
    files: { ...(await cardFiles(lab, toml)), ...options.files },
  })
}

/** What `gatehouse status --json` says inside the machine. */
export async function statusOf(machine: Machine): Promise<Record<string, any>> {
  const { stdout, stderr, code } = await machine.run('gatehouse status --json', { timeout: 120 })
  if (code > 1) throw new Error(`gatehouse status ended with ${code}: ${stderr}${stdout}`)
  return JSON.parse(stdout) as Record<string, any>
}

/**
 * Asks until `probe` answers something other than undefined. Throws the last error, or that it took
 * too long, after `seconds`.
 */
export async function eventually<T>(
  what: string,
  seconds: number,
  probe: () => Promise<T | undefined>,
): Promise<T> {
  const deadline = performance.now() + seconds * 1000
  for (let last: unknown; ; await sleep(500)) {
    try {
      const value = await probe()
      if (value !== undefined) return value
    } catch (err) {
      last = err
    }
    if (performance.now() > deadline)
      throw new Error(`${what}: not within ${seconds} s`, { cause: last })
  }
}

/** The appliance as the control server knows it, once it has joined. */
export async function joined(lab: Lab, hostname = 'gatehouse', seconds = 300): Promise<LabNode> {
  return await eventually(`${hostname} joins the tailnet`, seconds, async () =>
    (await lab.nodes()).find((n) => n.hostname === hostname),
  )
}

/** Node-RED's editor page, fetched through the tailnet with a verified certificate. */
export async function editor(client: LabClient, name: string, seconds = 300): Promise<FetchAnswer> {
  return await eventually(`https://${name}/ serves the editor`, seconds, async () => {
    const answer = await client.fetch(`https://${name}/`)
    return answer.status === 200 && answer.body.includes('<title>Node-RED') ? answer : undefined
  })
}
