import { readFile, readdir, statfs } from 'node:fs/promises'
import { join } from 'node:path'
import { GatehouseError } from '../../base/errors.ts'
import { day } from '../../base/time.ts'
import type { Problems } from '../shared/problems.ts'

/** How the board is now. What it does not say is absent. */
export interface Sample {
  /** Part of the memory that is not available, 0 to 1. */
  memory?: number
  /** Part of the data partition's bytes that is used. */
  disk?: number
  /** Part of its files (inodes) that is used. */
  files?: number
  /** Degrees Celsius, of the processor. */
  temperature?: number
  /** Bytes written to the card, or another disk, since the board was switched on. */
  written?: number
}

/** Answer of `GET /api/v1/figures`. */
export interface Shown {
  now: Sample & {
    /** Bytes. */
    memoryTotal?: number
    diskTotal?: number
    filesTotal?: number
    /** Bytes written to the card a day, at the pace of what is known of the last day. */
    writtenADay?: number
    /** The kernel says that the supply gives too little voltage; absent where it cannot tell. */
    underVoltage?: boolean
    /** Used part of the life of eMMC, 0 to 1, by its own word, in tenths. SD cards do not say. */
    wear?: number
  }
  /** The last day, oldest first. A value that was not known then is null. */
  history: Array<{ at: string } & { [K in keyof Sample]: number | null }>
}

/** Every so many milliseconds is one kept, for a day: 288 of them. */
const pace = 300_000
const most = day / pace

/** Above this the firmware of a Raspberry Pi slows the processor down. Degrees Celsius. */
const hot = 80

/**
 * Memory, disk, temperature, voltage and what is written to the card, looked at every minute; the
 * last day is kept in memory, some 20 kB.
 */
export class Figures {
  readonly #state: string | undefined
  readonly #root: string
  #now: Shown['now'] = {}
  #history: Array<{ at: number; sample: Sample }> = []

  /**
   * @param state a directory on the data partition
   * @param root for tests; default the system's own
   */
  constructor(state: string | undefined, root = '/') {
    this.#state = state
    this.#root = root
  }

  /** Looks, and says what is wrong with the board. `now`: milliseconds since the epoch. */
  async look(problems: Problems, now = Date.now()): Promise<void> {
    const [memory, disk, temperature, voltage, card] = await Promise.all([
      this.#memory(),
      this.#disk(),
      this.#temperature(),
      this.#voltage(),
      this.#card(),
    ])
    const found = { ...memory, ...disk, ...temperature, ...voltage, ...card }
    const last = this.#history.at(-1)
    if (last === undefined || now - last.at >= pace - 1_000) {
      const { memory: ram, disk: bytes, files, temperature: heat, written } = found
      const given = Object.entries({ memory: ram, disk: bytes, files, temperature: heat, written })
      const sample: Sample = Object.fromEntries(
        given.filter(([, value]) => value !== undefined),
      ) as Sample
      this.#history.push({ at: now, sample })
      if (this.#history.length > most) this.#history.shift()
    }
    const first = this.#history.find(({ sample }) => sample.written !== undefined)
    const since = first === undefined ? 0 : now - first.at
    this.#now = {
      ...found,
      ...(found.written === undefined || since < pace
        ? {}
        : { writtenADay: ((found.written - first!.sample.written!) / since) * day }),
    }
    if (found.underVoltage === true)
      problems.set(
        'power',
        new GatehouseError(
          'GH_UNDER_VOLTAGE',
          'the power supply gives the board too little voltage: it may stop, and damage its card',
          'Use the supply that is made for the board, and a short cable; take off USB devices that draw much',
        ),
        'warning',
      )
    else if ((found.temperature ?? 0) >= hot)
      problems.set(
        'power',
        new GatehouseError(
          'GH_TEMPERATURE',
          `the processor is at ${hot} °C or more, and slowed down therefore`,
          'Give the board air, or a heat sink; look whether a flow keeps it busy',
        ),
        'warning',
      )
    else problems.clear('power', 'voltage and temperature are well')
  }

  /** For the console's page Overview. */
  show(): Shown {
    const keys = ['memory', 'disk', 'files', 'temperature', 'written'] as const
    return {
      now: this.#now,
      history: this.#history.map(({ at, sample }) => ({
        at: new Date(at).toISOString(),
        ...(Object.fromEntries(keys.map((key) => [key, sample[key] ?? null])) as {
          [K in keyof Sample]: number | null
        }),
      })),
    }
  }

  async #read(...parts: string[]): Promise<string | undefined> {
    return await readFile(join(this.#root, ...parts), 'utf8').then(
      (text) => text.trim(),
      () => undefined,
    )
  }

  /** proc_meminfo(5). */
  async #memory(): Promise<Pick<Shown['now'], 'memory' | 'memoryTotal'>> {
    const text = await this.#read('proc/meminfo')
    const kib = (key: string): number | undefined => {
      const value = new RegExp(`^${key}:\\s+(\\d+) kB`, 'm').exec(text ?? '')?.[1]
      return value === undefined ? undefined : Number(value)
    }
    const [total, available] = [kib('MemTotal'), kib('MemAvailable')]
    if (total === undefined || available === undefined) return {}
    return { memory: 1 - available / total, memoryTotal: total * 1024 }
  }

  async #disk(): Promise<Pick<Shown['now'], 'disk' | 'files' | 'diskTotal' | 'filesTotal'>> {
    const found =
      this.#state === undefined ? undefined : await statfs(this.#state).catch(() => undefined)
    if (found === undefined || found.blocks === 0) return {}
    const { bsize, blocks, bavail, files, ffree } = found
    return {
      disk: 1 - bavail / blocks,
      diskTotal: blocks * bsize,
      ...(files === 0 ? {} : { files: 1 - ffree / files, filesTotal: files }),
    }
  }

  async #temperature(): Promise<Pick<Sample, 'temperature'>> {
    const text = await this.#read('sys/class/thermal/thermal_zone0/temp')
    return text === undefined || !/^-?\d+$/.test(text) ? {} : { temperature: Number(text) / 1000 }
  }

  /** The kernel's raspberrypi-hwmon (Documentation/hwmon/raspberrypi-hwmon.rst). */
  async #voltage(): Promise<Pick<Shown['now'], 'underVoltage'>> {
    const directory = join(this.#root, 'sys/class/hwmon')
    for (const name of await readdir(directory).catch(() => [])) {
      if ((await this.#read('sys/class/hwmon', name, 'name')) !== 'rpi_volt') continue
      const alarm = await this.#read('sys/class/hwmon', name, 'in0_lcrit_alarm')
      if (alarm !== undefined) return { underVoltage: alarm === '1' }
    }
    return {}
  }

  /** Of the first disk: sectors of 512 bytes written (Documentation/block/stat.rst), eMMC's life. */
  async #card(): Promise<Pick<Shown['now'], 'written' | 'wear'>> {
    const names = await readdir(join(this.#root, 'sys/block')).catch(() => [] as string[])
    const disk = names
      .toSorted()
      .find((name) => /^(?:mmcblk\d+|nvme\d+n\d+|[sv]d[a-z])$/.test(name))
    if (disk === undefined) return {}
    const fields = (await this.#read('sys/block', disk, 'stat'))?.split(/\s+/) ?? []
    const sectors = Number(fields[6])
    const life = /^0x0*([0-9a-f]) 0x0*([0-9a-f])$/i.exec(
      (await this.#read('sys/block', disk, 'device/life_time')) ?? '',
    )
    const worse = life === null ? 0 : Math.max(parseInt(life[1]!, 16), parseInt(life[2]!, 16))
    return {
      ...(Number.isFinite(sectors) ? { written: sectors * 512 } : {}),
      // JESD84-B51, 7.4.41: 0x01 is up to a tenth, 0x0B beyond its life; 0 says nothing.
      ...(worse === 0 ? {} : { wear: Math.min(1, worse / 10) }),
    }
  }
}

/**
 * That the node's key ends: said 30 days before, as a warning 14 days before, and as an error 3 days
 * before, while it can still be reached.
 *
 * @param cure what to do, in the words of the control server there is
 */
export function judgeKey(
  problems: Problems,
  expiry: string | undefined,
  cure: string,
  now = Date.now(),
): void {
  const left = expiry === undefined ? Infinity : Date.parse(expiry) - now
  // What has ended is said by the control server, as a node that needs a login.
  if (left > 30 * day || left <= 0) {
    problems.clear('node key', 'the device keeps its place in the tailnet')
    return
  }
  let severity: 'info' | 'warning' | 'error' = 'info'
  if (left <= 14 * day) severity = 'warning'
  if (left <= 3 * day) severity = 'error'
  problems.set(
    'node key',
    new GatehouseError(
      'GH_KEY_EXPIRES',
      `the device's key for the tailnet ends on ${expiry!.slice(0, 10)}; then nobody reaches it`,
      cure,
    ),
    severity,
  )
}
