import { createHash, randomBytes, randomInt, timingSafeEqual } from 'node:crypto'
import { mkdir, readFile, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { putOnCard, removeFromCard, withCard } from '../base/card.ts'
import { call } from '../base/control-client.ts'
import { GatehouseError, reason } from '../base/errors.ts'
import { syncDirectory, writeFileAtomic } from '../base/files.ts'
import type { Paths } from '../base/paths.ts'
import { ConfigError, parseConfig } from '../config/config.ts'
import { differences, keptSecret, withSecretsOf, withoutSecrets } from '../config/edit.ts'
import type { Difference } from '../config/edit.ts'
import type { System } from './system.ts'

/** How long a change is on trial before it is taken back. Milliseconds. */
export const trialTime = 60_000

/** Settings as they are shown: without secrets. */
export interface ShownSettings {
  /** gatehouse.toml with `(kept)` in the place of each secret. */
  text: string
  /** Of the text as it is: a change names the one it was made from. SHA-256, hex. */
  digest: string
  /** The change on trial; absent when there is none. */
  trial?: Trial
}

/** A change that is in force for now. */
export interface Trial {
  id: string
  /** Who made it, as the gateway says. */
  by: string
  /** When it is taken back unless it is confirmed. RFC 3339. */
  until: string
  changes: Difference[]
}

/** What a check of a settings text found. */
export interface Checked {
  changes: Difference[]
  /** Empty: the text is valid. */
  issues: Array<{ line: number; code: string; message: string; cure: string }>
  /** Keys that hand over the device: the change needs the code from the console. */
  guarded: string[]
}

/**
 * Keys that would hand over the device for good: who controls them controls it, whatever the other
 * settings say. A change of one needs the code that the console shows.
 */
const guardedKeys =
  /^(?:console\.|tailnet\.(?:control_url|ca_file|auth_key|client_secret)$|updates\.(?:url|key)|certificates\.(?:directory|ca_file|mode)$|local_network\.|manage\.|backup\.recipient$)/

function changedMeanwhile(): GatehouseError {
  return new GatehouseError(
    'GH_SETTINGS_CHANGED',
    'the settings have changed since they were shown',
    'Load them again, and make the change once more',
  )
}

/** Options of {@link Settings}. */
export interface SettingsOptions {
  paths: Pick<Paths, 'boot' | 'data' | 'problem' | 'admin' | 'config'>
  system: System
  /** One line for the journal. */
  say: (line: string) => void
  /** Shows a code on the consoles. */
  showCode: (code: string) => Promise<void>
  /** Milliseconds, default {@link trialTime}. */
  trialTime?: number
  /** Told when a trial begins and ends: the broker stays while there is one. */
  onTrial?: (open: boolean) => void
}

/**
 * Changes gatehouse.toml on the card, so that what a person reads there and what is set from the
 * tailnet are one thing. A change is tried at once and taken back after {@link trialTime} unless
 * the same person confirms it through the tailnet, with the new settings in force: like `commit
 * confirmed` of routers. The text before is kept on the data partition meanwhile, so that a power
 * cut takes the change back too ({@link recover}, at boot).
 */
export class Settings {
  readonly #options: SettingsOptions
  #trial: (Trial & { timer: NodeJS.Timeout }) | undefined
  #code: { code: string; until: number; tries: number; shown: number } | undefined
  #busy: Promise<unknown> = Promise.resolve()

  constructor(options: SettingsOptions) {
    this.#options = options
  }

  /** Until when the code that was shown last counts. Milliseconds since 1970; 0: there is none. */
  get codeUntil(): number {
    return this.#code?.until ?? 0
  }

  get #file(): string {
    return join(this.#options.paths.boot, 'gatehouse.toml')
  }

  /** What is in force, without secrets. */
  async show(): Promise<ShownSettings> {
    const text = await this.#read()
    return {
      text: withoutSecrets(text),
      digest: digestOf(text),
      ...(this.#trial === undefined ? {} : { trial: publicTrial(this.#trial) }),
    }
  }

  /** Whether a text is valid, what it changes, and whether it needs the console's code. */
  async check(text: string): Promise<Checked> {
    const current = await this.#read()
    return check(text, current)
  }

  /**
   * Puts a change in force for {@link trialTime}.
   *
   * @param digest of the text the change was made from
   * @param by who asks, for the journal
   * @param code from the console, for what hands over the device
   */
  async try(change: { text: string; digest: string; by: string; code?: string }): Promise<Trial> {
    return await this.#alone(async () => {
      if (this.#trial !== undefined)
        throw new GatehouseError(
          'GH_SETTINGS_TRIAL',
          `a change by ${this.#trial.by} is on trial until ${this.#trial.until}`,
          'Confirm it or take it back first, or wait until it is over',
        )
      const current = await this.#read()
      if (digestOf(current) !== change.digest) throw changedMeanwhile()
      const { changes, issues, guarded } = check(change.text, current)
      const [issue] = issues
      if (issue !== undefined)
        throw new GatehouseError(issue.code, `line ${issue.line}: ${issue.message}`, issue.cure)
      if (changes.length === 0 && withSecretsOf(change.text, current) === current)
        throw new GatehouseError(
          'GH_SETTINGS_SAME',
          'nothing is changed',
          'Change something, or leave the page',
        )
      if (guarded.length > 0) await this.demandCode(guarded.join(', '), change.code)
      const next = withSecretsOf(change.text, current)
      await withCard(this.#options.paths.boot, async () => {
        // Others write to the card too (the report takes a used key off it), and had it until now.
        if ((await this.#read()) !== current) throw changedMeanwhile()
        await keepTrial(this.#options.paths, { before: current, tried: next })
        await putOnCard(this.#file, next)
      })
      const id = randomBytes(9).toString('base64url')
      const time = this.#options.trialTime ?? trialTime
      const until = new Date(Date.now() + time).toISOString()
      this.#trial = {
        ...{ id, by: change.by, until, changes },
        timer: setTimeout(() => {
          void this.#end('nobody confirmed it in time')
        }, time),
      }
      this.#options.onTrial?.(true)
      this.#options.say(
        `settings: ${change.by} tries ${changes.map(({ key }) => key).join(', ') || 'another text'}`,
      )
      try {
        await this.#apply(changes)
      } catch (err) {
        await this.#takeBack(reason(err))
        throw err
      }
      return publicTrial(this.#trial)
    })
  }

  /** Keeps the change on trial. Only whoever made it may. */
  async confirm(id: string, by: string): Promise<void> {
    await this.#alone(async () => {
      const trial = this.#demand(id)
      if (trial.by !== by)
        throw new GatehouseError(
          'GH_SETTINGS_OTHER',
          `the change was made by ${trial.by}, who alone may confirm it`,
          'Let them confirm it, or take it back',
        )
      clearTimeout(trial.timer)
      await dropTrial(this.#options.paths)
      this.#trial = undefined
      this.#options.onTrial?.(false)
      this.#options.say(
        `settings: ${by} confirmed ${trial.changes.map(({ key }) => key).join(', ')}`,
      )
    })
  }

  /** Takes the change on trial back. Whoever may change settings may. */
  async revert(id: string, by: string): Promise<void> {
    await this.#alone(async () => {
      this.#demand(id)
      await this.#takeBack(`${by} took it back`)
    })
  }

  /** Waits for what is under way. */
  async idle(): Promise<void> {
    await this.#busy
  }

  async #end(why: string): Promise<void> {
    await this.#alone(async () => {
      if (this.#trial !== undefined) await this.#takeBack(why)
    }).catch((err: unknown) => {
      this.#options.say(`settings: a change could not be taken back: ${reason(err)}`)
    })
  }

  #demand(id: string): Trial & { timer: NodeJS.Timeout } {
    if (this.#trial?.id === id) return this.#trial
    throw new GatehouseError(
      'GH_SETTINGS_NO_TRIAL',
      'there is no such change on trial',
      'It was confirmed or taken back already: load the settings again',
    )
  }

  async #takeBack(why: string): Promise<void> {
    const trial = this.#trial
    if (trial === undefined) return
    clearTimeout(trial.timer)
    const kept = await keptTrial(this.#options.paths)
    if (kept !== undefined) await restore(this.#options.paths, kept)
    this.#trial = undefined
    this.#options.say(
      `settings: taken back ${trial.changes.map(({ key }) => key).join(', ')}: ${why}`,
    )
    try {
      await this.#apply(trial.changes)
    } finally {
      this.#options.onTrial?.(false)
    }
  }

  /**
   * Puts what is on the card in force. What the gateway can take over without dropping a connection
   * it takes over; other units are started anew only where a key of theirs has changed.
   */
  async #apply(changes: readonly Difference[]): Promise<void> {
    const { system, paths } = this.#options
    const read = async (): Promise<string> =>
      (await readFile(paths.problem, 'utf8').catch(() => '')).trim()
    const before = await read()
    await system.systemctl('restart', 'gatehouse-provision.service')
    const problem = await read()
    // One that was there before, such as an extension's, is not this change's, nor mended by it.
    if (problem !== '' && problem !== before)
      throw new GatehouseError('GH_SETTINGS_REFUSED', problem, 'Correct it and try again')
    const tables = new Set(changes.map(({ key }) => key.split('.', 1)[0]!))
    const units = new Set<string>()
    for (const table of tables) for (const unit of unitsOf[table] ?? []) units.add(unit)
    const answer = await call(paths.admin, 'POST', '/v1/reload').catch(() => undefined)
    const restart = (answer?.body as { restart?: string[] } | undefined)?.restart ?? []
    if (answer?.status !== 200 || restart.some((key) => /^(?:tailnet|certificates)\./.test(key)))
      units.add('gatehouse.service')
    if (units.size > 0) await system.systemctl('try-restart', ...units)
  }

  /**
   * Shows a code on the consoles, and wants to see it: who reads it is beside the device.
   *
   * @param what would hand over the device, for the message
   */
  async demandCode(what: string, given: string | undefined): Promise<void> {
    const now = Date.now()
    if (this.#code === undefined || this.#code.until < now || this.#code.tries >= 5) {
      this.#code = {
        code: String(randomInt(1_000_000)).padStart(6, '0'),
        until: now + 10 * 60_000,
        ...{ tries: 0, shown: now },
      }
      await this.#options.showCode(this.#code.code)
    } else if (given === undefined) {
      // Other lines may have taken it off the screen. Not oftener than a person would ask.
      if (now - this.#code.shown >= 10_000) {
        this.#code.shown = now
        await this.#options.showCode(this.#code.code)
      }
    } else {
      this.#code.tries++
      // A guess takes a second, whoever makes it.
      await sleep(1_000)
      if (same(given, this.#code.code)) {
        this.#code = undefined
        return
      }
    }
    throw new GatehouseError(
      'GH_SETTINGS_CODE',
      `${what} would hand over the device, so a code is needed that its console shows`,
      'Type the six digits from the screen or serial line of the device; settings can be ' +
        'changed in gatehouse.toml on the card, too',
    )
  }

  async #read(): Promise<string> {
    return await readFile(this.#file, 'utf8').catch((err: NodeJS.ErrnoException) => {
      if (err.code === 'ENOENT') return ''
      throw new GatehouseError(
        'GH_CONFIG_READ',
        `gatehouse.toml on the card cannot be read: ${reason(err)}`,
        "Check the card's first partition on another computer",
        { cause: err },
      )
    })
  }

  /** One change at a time. */
  async #alone<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#busy.then(work)
    this.#busy = turn.catch(() => {})
    return await turn
  }
}

/**
 * Units to start anew when a table has changed, beside what the gateway takes over itself, and the
 * firewall's lists, which provisioning has put in force.
 */
const unitsOf: Record<string, string[]> = {
  node_red: ['node-red.service'],
  wifi: ['gatehouse-wifi@*.service'],
  network: ['systemd-networkd.service'],
}

/** Where both file systems are. */
type Places = Pick<Paths, 'boot' | 'data'>

/** A change that is on trial, as a power cut leaves it. */
interface KeptTrial {
  /** gatehouse.toml before; empty: there was none. */
  before: string
  /** What was put in its place. */
  tried: string
}

/**
 * On the data partition, whose file system has a journal: FAT may have half of a change after a
 * power cut. In the broker's own folder, since both texts have secrets in them.
 */
const trialFile = ({ data }: Places): string => join(data, 'gatehouse-broker', 'trial.json')

async function keepTrial(places: Places, trial: KeptTrial): Promise<void> {
  await mkdir(dirname(trialFile(places)), { recursive: true, mode: 0o700 })
  await writeFileAtomic(trialFile(places), JSON.stringify(trial), 0o600)
}

async function keptTrial(places: Places): Promise<KeptTrial | undefined> {
  const text = await readFile(trialFile(places), 'utf8').catch((err: NodeJS.ErrnoException) => {
    if (err.code === 'ENOENT') return undefined
    throw err
  })
  return text === undefined ? undefined : (JSON.parse(text) as KeptTrial)
}

async function dropTrial(places: Places): Promise<void> {
  await rm(trialFile(places), { force: true })
  await syncDirectory(dirname(trialFile(places)))
}

/**
 * At boot, before provisioning: a change that was on trial when the power went is taken back, unless
 * somebody has changed gatehouse.toml since, with the card in a computer.
 *
 * @returns what became of it, for the journal; undefined where there was none
 */
export async function recover(places: Places): Promise<string | undefined> {
  const trial = await keptTrial(places)
  if (trial === undefined) return undefined
  const current = await readFile(join(places.boot, 'gatehouse.toml'), 'utf8').catch(() => '')
  if (changedSince(trial, current)) {
    await dropTrial(places)
    return 'gatehouse.toml has been written on the card since, and counts'
  }
  await restore(places, trial)
  return 'it is taken back'
}

/** Whether it is neither of the two, but for secrets that the device itself takes off the card. */
function changedSince({ before, tried }: KeptTrial, current: string): boolean {
  // What is no TOML any more is what a power cut has damaged, rather than what somebody meant.
  if (current === before || validOr(current) === '') return false
  return differences(validOr(tried), current).some(
    ({ before: was, after: is }) => was !== keptSecret || is !== undefined,
  )
}

async function restore(places: Places, { before }: KeptTrial): Promise<void> {
  const file = join(places.boot, 'gatehouse.toml')
  await withCard(places.boot, async () => {
    await mkdir(places.boot, { recursive: true })
    if (before === '') await removeFromCard(file)
    else await putOnCard(file, before)
  })
  await dropTrial(places)
}

function check(text: string, current: string): Checked {
  let whole: string
  try {
    whole = withSecretsOf(text, current)
    parseConfig(whole, 'gatehouse.toml')
  } catch (err) {
    if (err instanceof ConfigError) return { changes: [], issues: [...err.issues], guarded: [] }
    if (err instanceof GatehouseError) {
      const { code, message, cure } = err
      return { changes: [], issues: [{ line: 1, code, message, cure }], guarded: [] }
    }
    throw err
  }
  const changes = differences(validOr(current), whole)
  return {
    changes,
    issues: [],
    guarded: changes.map(({ key }) => key).filter((key) => guardedKeys.test(key)),
  }
}

/** A file that is not TOML counts as empty: all of the new one is a change. */
function validOr(text: string): string {
  try {
    differences(text, text)
    return text
  } catch {
    return ''
  }
}

const publicTrial = ({ id, by, until, changes }: Trial): Trial => ({ id, by, until, changes })

const digestOf = (text: string): string => createHash('sha256').update(text).digest('hex')

function same(a: string, b: string): boolean {
  return a.length === b.length && timingSafeEqual(Buffer.from(a), Buffer.from(b))
}
