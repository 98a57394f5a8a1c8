import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { writeFileAtomic } from '../../base/files.ts'
import type { Paths } from '../../base/paths.ts'

/** In the firewall's directory: until when names are learned, and which were asked for. */
export const learnFile = 'learn.json'
export const askedFile = 'asked.json'

/** A name that a flow has asked for and that is on no list. */
export interface Asked {
  /** The address that stands for it while learning; absent when it was refused. */
  address?: string
  times: number
  /** ISO 8601. */
  last: string
}

/** So many names are remembered: a flow chooses them. */
const most = 200

/**
 * Names that are on no list. They are refused; while the person has the device learn, each gets an
 * address of 240.0.0.0/8 instead, which is reserved (RFC 1112, 4) and which no list can allow: the
 * flow then tries its port, the firewall drops it and remembers address and port. So a name is
 * learned with its port, and no question leaves the device.
 */
export class StandIns {
  #file: string
  #asked: string
  #until = 0
  #names = new Map<string, Asked>()
  #next = 1

  constructor({ firewall }: Pick<Paths, 'firewall'>) {
    this.#file = join(firewall, learnFile)
    this.#asked = join(firewall, askedFile)
  }

  /** Whether names are learned now. */
  get learning(): boolean {
    return Date.now() < this.#until
  }

  /** Looks whether names are learned. */
  async refresh(): Promise<void> {
    this.#until = await readLearning(this.#file)
  }

  /** Remembers a name that was asked for. Its stand-in while learning; undefined: it is refused. */
  of(name: string): string | undefined {
    const known = this.#names.get(name)
    if (known === undefined && this.#names.size >= most)
      this.#names.delete(this.#names.keys().next().value!)
    const address = this.learning ? (known?.address ?? this.#fresh()) : known?.address
    this.#names.set(name, {
      ...(address === undefined ? {} : { address }),
      times: (known?.times ?? 0) + 1,
      last: new Date().toISOString(),
    })
    return this.learning ? address : undefined
  }

  #fresh(): string {
    const number = this.#next
    this.#next = (this.#next % 60_000) + 1
    return `240.0.${Math.floor(number / 250)}.${(number % 250) + 1}`
  }

  /** Writes them down for whoever shows them. */
  async write(): Promise<void> {
    if (this.#names.size === 0) return
    await writeFileAtomic(
      this.#asked,
      `${JSON.stringify(Object.fromEntries(this.#names))}\n`,
      0o644,
    )
  }
}

/** Until when names are learned, in milliseconds since the epoch; 0 when they are not. */
export async function readLearning(file: string): Promise<number> {
  try {
    const { until } = JSON.parse(await readFile(file, 'utf8')) as { until: unknown }
    return typeof until === 'number' ? until : 0
  } catch {
    return 0
  }
}
