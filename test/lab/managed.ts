/**
 * The lab's appliance with the real broker behind its gateway. What the broker does to systemd is
 * written down instead of done; provisioning, which it asks for, copies the card's file to where the
 * gateway reads it, as the appliance's does.
 */
import { spawn } from 'node:child_process'
import { copyFile, mkdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import type { FastifyInstance } from 'fastify'
import { createBroker } from '../../src/broker/server.ts'
import { Settings } from '../../src/broker/settings.ts'
import { Appliance } from './appliance.ts'
import type { Lab } from './lab.ts'

/** An appliance that can be managed from the tailnet. */
export interface Managed {
  appliance: Appliance
  broker: FastifyInstance
  /** gatehouse.toml on the card. */
  card: string
  /** What systemctl was called with. */
  systemd: string[]
  /** Codes that the device's screen has shown. */
  codes: string[]
}

/** Options of {@link startManaged}. */
export interface ManagedOptions {
  /** Directory of the web console's bundle. */
  pages: string
  /** How long a change is on trial. Milliseconds. */
  trialTime: number
  /** More of gatehouse.toml: whole tables. */
  settings: string
  /** Auth key. Default: the lab's. */
  authKey?: string
  /** What systemctl does beside. */
  does?: (args: string[]) => Promise<void>
  /** Where gatehouse-alerts@ keeps what it has told. */
  alerts?: string
}

/** Starts both, as {@link Appliance.start} does. */
export async function startManaged(lab: Lab, options: ManagedOptions): Promise<Managed> {
  const { pages, trialTime } = options
  const systemd: string[] = []
  const codes: string[] = []
  const socket = path.join(lab.dir, 'broker.sock')
  const appliance = await Appliance.start(lab, {
    settings: options.settings,
    ...(options.authKey === undefined ? {} : { authKey: options.authKey }),
    env: {
      GATEHOUSE_CONSOLE_DIR: pages,
      GATEHOUSE_BROKER_SOCKET: socket,
      GATEHOUSE_ALERTS_DIR: lab.dir,
    },
  })
  const boot = path.join(lab.dir, 'card')
  await mkdir(boot)
  const card = path.join(boot, 'gatehouse.toml')
  const provisioned = path.join(appliance.dir, 'config', 'gatehouse.toml')
  await copyFile(provisioned, card)
  const paths = {
    boot,
    config: path.dirname(provisioned),
    problem: path.join(appliance.dir, 'problem'),
    admin: appliance.env['GATEHOUSE_ADMIN_SOCKET']!,
    data: path.join(lab.dir, 'lib'),
  }
  const system = {
    systemctl: async (...args: string[]): Promise<string> => {
      systemd.push(args.join(' '))
      if (args.includes('gatehouse-provision.service')) await copyFile(card, provisioned)
      await options.does?.(args)
      return ''
    },
    stream: (_program: string, args: string[]) => {
      // What the kernel notes of a flow's try (overlays/etc/nftables.conf).
      if (args.includes('--dmesg'))
        return spawn('echo', [
          JSON.stringify({
            __REALTIME_TIMESTAMP: String(Date.now() * 1000),
            MESSAGE:
              'gatehouse-drop out-node-red: IN= OUT=eth0 SRC=192.168.1.5 DST=192.168.1.10 ' +
              'LEN=60 PROTO=TCP SPT=40000 DPT=1883 UID=603',
          }),
        ])
      return spawn(process.execPath, [
        '-e',
        `const unit = ${JSON.stringify(args.find((arg) => arg.startsWith('--unit='))!.slice(7))}
        let n = 0
        const say = () => console.log(JSON.stringify({
          __REALTIME_TIMESTAMP: String(Date.now() * 1000), PRIORITY: n % 5 === 4 ? '4' : '6',
          _SYSTEMD_UNIT: unit, MESSAGE: 'line ' + ++n + ' of the meter in the cellar',
        }))
        for (let i = 0; i < 20; i++) say()
        ${args.includes('--follow') ? 'setInterval(say, 500)' : ''}`,
      ])
    },
  }
  const say = (): void => {}
  const settings = new Settings({
    ...{ paths, system, say, trialTime },
    showCode: async (code) => {
      codes.push(code)
    },
  })
  await mkdir(path.join(paths.data, 'node-red'), { recursive: true })
  await writeFile(path.join(paths.data, 'node-red', 'flows.json'), '[]')
  const broker = await createBroker({
    ...{ paths, system, say, settings },
    ...(options.alerts === undefined ? {} : { alerts: options.alerts }),
    uploads: path.join(lab.dir, 'uploads'),
    quiet: async (work) => await work(),
  })
  await broker.listen({ path: socket })
  return { appliance, broker, card, systemd, codes }
}
