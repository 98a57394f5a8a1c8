import { forbidden } from '../../config/addresses.ts'
import { isLocal } from '../networks.ts'
import type { Interfaces } from '../networks.ts'
import { matching } from './list.ts'
import type { NamedEntry } from './list.ts'
import { answer, codes, types } from './message.ts'
import type { Question } from './message.ts'

/** An address with how long it is valid, in seconds. */
export interface Found {
  address: string
  ttl: number
}

/**
 * Asks the system's resolver for the addresses of a name, one family. Empty: the name is there and
 * has none. Throws a {@link NoName} when there is no such name, any other error when there is no
 * answer.
 */
export type Ask = (name: string, family: 4 | 6) => Promise<Found[]>

/** There is no such name. */
export class NoName extends Error {}

/** Addresses to be let through: into sets of the firewall, for as long as they are valid. */
export type Open = (
  additions: ReadonlyArray<{ set: string; address: string; seconds: number }>,
) => Promise<void>

/** How long answers count, in seconds. */
export interface Validity {
  /** The shortest, whatever an answer says: a flow must get from the name to the connection. */
  floor: number
  /** The longest. */
  ceiling: number
  /**
   * For how much longer the firewall takes an address than the resolver tells it: programs keep
   * answers for longer than they are valid.
   */
  grace: number
}

/**
 * The appliance's. npm keeps an answer for five minutes, whatever it says (@npmcli/agent, lib/dns.js),
 * and is given it in its last second: what it then connects to must not meet silence.
 */
export const validity: Validity = { floor: 30, ceiling: 3600, grace: 330 }

/**
 * What may be asked under a wildcard, names that were not asked lately: each is a question that
 * leaves the device with words of Node-RED's choice in it.
 */
export const wildcardQuestions = { burst: 40, perMinute: 20 }

/** What became of a name; for `gatehouse firewall`. */
export interface Told {
  /** Entry of the list by which it was answered. */
  entry: string
  addresses: string[]
  /** Addresses that no name may lead to, and why. */
  refused: Record<string, string>
  /** Why there is none. */
  problem?: string
  /** ISO 8601. */
  at: string
}

/** What the resolver is made of. */
export interface ResolverOptions {
  entries: readonly NamedEntry[]
  ask: Ask
  open: Open
  interfaces: () => Interfaces
  /** Told of a name that is on no entry. Its answer is a stand-in's address, or none. */
  unlisted: (name: string) => string | undefined
  /** Said in the journal. */
  say: (line: string) => void
  validity?: Validity
  /** Milliseconds of a clock that does not jump. */
  now?: () => number
}

interface Kept {
  code: (typeof codes)[keyof typeof codes]
  addresses: string[]
  /** On the clock, milliseconds. */
  until: number
}

/** So many names are kept, answered or not: with wildcards there are more than anybody wrote. */
const most = 2000

/**
 * Answers Node-RED's questions: listed names alone, with addresses that a name may lead to, each of
 * which the firewall lets through before it is told.
 */
export class Resolver {
  #options: ResolverOptions & { validity: Validity; now: () => number }
  #kept = new Map<string, Kept>()
  #asking = new Map<string, Promise<Kept>>()
  #told = new Map<string, Told>()
  /** Until when the kernel has an address in a set: a shorter answer must not shorten another's. */
  #open = new Map<string, number>()
  #tokens = wildcardQuestions.burst
  /** When lines were said lately, on the clock: a flow must not fill the journal. */
  #said: number[] = []
  #filled = 0

  constructor(options: ResolverOptions) {
    this.#options = { validity, now: () => performance.now(), ...options }
    this.#filled = this.#options.now()
  }

  /** A list that has changed: what was kept belongs to the one before. */
  set entries(entries: readonly NamedEntry[]) {
    this.#options.entries = entries
    this.#kept.clear()
    this.#told.clear()
    this.#open.clear()
  }

  /** Names that were asked for since the list is as it is. */
  get told(): Record<string, Told> {
    return Object.fromEntries(this.#told)
  }

  /** Whether anything it has told is still valid. */
  get busy(): boolean {
    const now = this.#options.now()
    return (
      this.#asking.size > 0 ||
      [...this.#open.values()].some((until) => until > now) ||
      [...this.#kept.values()].some(({ until }) => until > now)
    )
  }

  /** The answer to a question; undefined: none, the asker will ask again. */
  async reply(question: Question): Promise<Buffer | undefined> {
    const { name, type } = question
    const { unlisted, interfaces, entries, now } = this.#options
    const matched = matching(entries, name)
    if (matched.length === 0) {
      const standIn = unlisted(name)
      if (standIn === undefined) return answer(question, codes.noName)
      return answer(question, codes.ok, type === types.A ? [standIn] : [], 1)
    }
    // Node.js asks for addresses. What else there is about a name is not asked of anybody.
    if (type !== types.A && type !== types.AAAA) return answer(question, codes.ok)
    const family = type === types.A ? 4 : 6
    const { standIn } = matched[0]!
    if (standIn !== undefined) {
      this.#tell(name, { entry: matched[0]!.text, addresses: [standIn], refused: {} })
      return answer(question, codes.ok, family === 4 ? [standIn] : [], 60)
    }
    if (family === 6 && !interfaces().ipv6) return answer(question, codes.ok)
    const key = `${name} ${family}`
    let kept = this.#kept.get(key)
    if (kept === undefined || kept.until <= now()) {
      if (this.#asking.size >= 64) return undefined
      const exact = matched.some(({ pattern }) => pattern === name)
      let asking = this.#asking.get(key)
      if (asking === undefined) {
        if (!exact && !this.#token()) {
          this.#tell(name, {
            entry: matched[0]!.text,
            addresses: [],
            refused: {},
            problem: `more than ${wildcardQuestions.perMinute} new names a minute under wildcards`,
          })
          return answer(question, codes.failed)
        }
        asking = this.#look(name, family, matched).finally(() => this.#asking.delete(key))
        this.#asking.set(key, asking)
      }
      kept = await asking
    }
    const left = Math.max(1, Math.ceil((kept.until - now()) / 1000))
    return answer(question, kept.code, kept.addresses, left)
  }

  #token(): boolean {
    const now = this.#options.now()
    const { burst, perMinute } = wildcardQuestions
    this.#tokens = Math.min(burst, this.#tokens + ((now - this.#filled) * perMinute) / 60_000)
    this.#filled = now
    if (this.#tokens < 1) return false
    this.#tokens--
    return true
  }

  async #look(name: string, family: 4 | 6, matched: readonly NamedEntry[]): Promise<Kept> {
    const { ask, open, validity: valid, now, interfaces } = this.#options
    const { addresses: own, networks } = interfaces()
    const entry = matched[0]!.text
    const keep = (code: Kept['code'], addresses: string[], seconds: number): Kept => {
      const kept = { code, addresses, until: now() + seconds * 1000 }
      if (this.#kept.size >= most) this.#kept.delete(this.#kept.keys().next().value!)
      this.#kept.set(`${name} ${family}`, kept)
      return kept
    }
    let found: Found[]
    try {
      found = await ask(name, family)
    } catch (err) {
      const none = err instanceof NoName
      this.#tell(name, {
        entry,
        addresses: [],
        refused: {},
        problem: none ? 'there is no such name' : (err as Error).message,
      })
      // Kept shortly: a question again and again is not one more to others.
      return keep(none ? codes.noName : codes.failed, [], none ? valid.floor : 2)
    }
    const refused: Record<string, string> = {}
    const good: Found[] = []
    for (const one of found) {
      const why =
        forbidden(one.address, own) ??
        (isLocal(one.address, networks) && !matched.some(({ local }) => local)
          ? 'an address of a local network, for a name that is not of one'
          : undefined)
      if (why === undefined) good.push(one)
      else refused[one.address] = why
    }
    const seconds = Math.min(
      valid.ceiling,
      Math.max(valid.floor, Math.min(...good.map(({ ttl }) => ttl), valid.ceiling)),
    )
    const additions = matched.flatMap(({ set, local }) =>
      set === undefined
        ? []
        : good
            .filter(({ address }) => local || !isLocal(address, networks))
            .map(({ address }) => ({
              set: `${set}-${family}`,
              address,
              seconds: seconds + valid.grace,
            })),
    )
    const fresh = additions.filter(
      ({ set, address, seconds: of }) =>
        (this.#open.get(`${set} ${address}`) ?? 0) < now() + of * 1000,
    )
    try {
      if (fresh.length > 0) await open(fresh)
    } catch (err) {
      // Told without being let through it would be a connection that hangs.
      const problem = `the firewall does not take its addresses: ${(err as Error).message}`
      this.#tell(name, { entry, addresses: [], refused, problem })
      return keep(codes.failed, [], 2)
    }
    for (const { set, address, seconds: of } of fresh) {
      if (this.#open.size >= most * 4) this.#open.delete(this.#open.keys().next().value!)
      this.#open.set(`${set} ${address}`, now() + of * 1000)
    }
    const addresses = good.map(({ address }) => address)
    this.#tell(name, { entry, addresses, refused }, family)
    return keep(codes.ok, addresses, good.length === 0 ? valid.floor : seconds)
  }

  #say(line: string): void {
    const now = this.#options.now()
    this.#said = this.#said.filter((at) => at > now - 60_000)
    if (this.#said.length >= 10) return
    this.#said.push(now)
    this.#options.say(line)
  }

  #tell(name: string, what: Omit<Told, 'at'>, family?: 4 | 6): void {
    const before = this.#told.get(name)
    for (const [address, why] of Object.entries(what.refused))
      if (before?.refused[address] === undefined)
        this.#say(
          `${what.entry}: ${name} leads to ${address}, ${why}: not allowed. If that is not ` +
            'your doing, its DNS is not to be trusted. (GH_FIREWALL_REBINDING)',
        )
    if (what.problem !== undefined && before?.problem !== what.problem)
      this.#say(`${what.entry}: ${name}: ${what.problem}. (GH_FIREWALL_NAME)`)
    // Both families are asked for: the one must not take the other's addresses away.
    const other = (before?.addresses ?? []).filter(
      (address) => family !== undefined && address.includes(':') !== (family === 6),
    )
    if (this.#told.size >= 200 && before === undefined)
      this.#told.delete(this.#told.keys().next().value!)
    this.#told.set(name, {
      ...what,
      addresses: [...other, ...what.addresses],
      refused: { ...(family === undefined ? {} : before?.refused), ...what.refused },
      at: new Date().toISOString(),
    })
  }
}
