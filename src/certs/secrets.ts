import { readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { writeFileAtomic } from '../base/files.ts'
import type { Paths } from '../base/paths.ts'

/** Secrets of [certificates], by their key in gatehouse.toml, and the credential each comes as. */
export const credentials = {
  tsig_key: 'tsig-key',
  acme_dns_password: 'acme-dns-password',
  key_file: 'certificate-key',
} as const

/** A key of gatehouse.toml that stands for a secret. */
export type SecretKey = keyof typeof credentials

/** Which secrets provisioning found on the card, and a mark of that finding. */
export interface Handed {
  /** Another each time provisioning runs. */
  mark: string
  keys: SecretKey[]
}

/** Where provisioning says so: in /run, of which an agent's record of another boot is not. */
export function handedFile({ problem }: Pick<Paths, 'problem'>): string {
  return join(dirname(problem), 'secrets')
}

/** What provisioning handed over; undefined when it found no secret. */
export async function readHanded(paths: Pick<Paths, 'problem'>): Promise<Handed | undefined> {
  try {
    const handed = JSON.parse(await readFile(handedFile(paths), 'utf8')) as Handed
    return typeof handed?.mark === 'string' && Array.isArray(handed.keys) ? handed : undefined
  } catch {
    return undefined
  }
}

/** A secret, and what it is the secret of: the name of a key, a user. */
interface Kept {
  of: string
  value: string
}

/**
 * Secrets that the agent keeps, in its own directory as its account key is: on the card they are
 * for no longer than until they have been of use once, and what provisioning seals opens at the
 * same boot alone.
 */
export class Secrets {
  #path: string
  #kept: Record<string, Kept>

  private constructor(path: string, kept: Record<string, Kept>) {
    this.#path = path
    this.#kept = kept
  }

  /** @param state the agent's state directory */
  static async open(state: string): Promise<Secrets> {
    const path = join(state, 'secrets.json')
    let kept: Record<string, Kept> = {}
    try {
      const read = JSON.parse(await readFile(path, 'utf8')) as Record<string, Kept>
      kept = Object.fromEntries(
        Object.entries(read).filter(
          ([, one]) => typeof one?.of === 'string' && typeof one.value === 'string',
        ),
      )
    } catch {
      // Missing or damaged: it has to be written on the card again.
    }
    return new Secrets(path, kept)
  }

  /**
   * The secret to use: what was handed over, else what was kept for the same purpose.
   *
   * @param of what it is the secret of
   */
  get(key: SecretKey, of: string, handed: string | undefined): string | undefined {
    const kept = Object.hasOwn(this.#kept, key) ? this.#kept[key] : undefined
    return handed ?? (kept?.of === of ? kept.value : undefined)
  }

  /** Whether this secret is kept. */
  has(key: SecretKey, of: string, value: string): boolean {
    const kept = Object.hasOwn(this.#kept, key) ? this.#kept[key] : undefined
    return kept?.of === of && kept.value === value
  }

  /** Keeps a secret, durably: it has proven right. */
  async keep(key: SecretKey, of: string, value: string): Promise<void> {
    if (this.has(key, of, value)) return
    this.#kept[key] = { of, value }
    await writeFileAtomic(this.#path, `${JSON.stringify(this.#kept)}\n`, 0o600)
  }
}
