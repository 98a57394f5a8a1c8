import { Resolver } from 'node:dns/promises'
import { forbidden } from '../config/addresses.ts'

/** What is known of one name. */
export interface Known {
  /**
   * Addresses that may be called, each with the time it was last in an answer (milliseconds, of the
   * caller's clock).
   */
  addresses: Record<string, number>
  /** Addresses in the last answer that no name may lead to, and why. */
  refused: Record<string, string>
  /** Why the last question had no answer. What was known before holds on. */
  problem?: string
}

/**
 * Asks for the addresses of a name, both families. Throws when there is no answer; a name without
 * addresses has none.
 */
export type Lookup = (name: string) => Promise<string[]>

/**
 * How long an address stays allowed after it was last in an answer, in milliseconds: names with
 * many addresses tell a few of them at a time, and a connection to the one before must not break
 * because of that.
 */
export const grace = 3_600_000

/**
 * Looks names up and adds what is new to what was known. An answer that leads to this machine, the
 * tailnet, a link-local or multicast address counts as refused, whoever gave it (DNS rebinding).
 *
 * @param now milliseconds on a clock that does not jump
 * @param own this machine's own addresses
 */
export async function resolveNames(
  names: Iterable<string>,
  known: Record<string, Known>,
  lookup: Lookup,
  now: number,
  own: readonly string[],
): Promise<Record<string, Known>> {
  const resolved = await Promise.all(
    [...new Set(names)].map(async (name): Promise<[string, Known]> => {
      const before = Object.hasOwn(known, name) ? known[name]! : { addresses: {}, refused: {} }
      let answer: string[]
      try {
        answer = await lookup(name)
      } catch (err) {
        return [name, { ...before, problem: (err as Error).message }]
      }
      const refused = Object.fromEntries(
        answer.flatMap((address) => {
          const why = forbidden(address, own)
          return why === undefined ? [] : [[address, why]]
        }),
      )
      // What was allowed and has since become forbidden, as this machine's new address, goes at
      // once.
      const kept = Object.entries(before.addresses).filter(
        ([address, seen]) => now - seen < grace && forbidden(address, own) === undefined,
      )
      const fresh = answer
        .filter((address) => !Object.hasOwn(refused, address))
        .map((address): [string, number] => [address, now])
      return [
        name,
        {
          addresses: Object.fromEntries([...kept, ...fresh]),
          refused,
          ...(answer.length === 0 ? { problem: 'it has no address' } : {}),
        },
      ]
    }),
  )
  return Object.fromEntries(resolved)
}

/**
 * Asks a DNS server, by default systemd-resolved's own address. Nothing but DNS: neither /etc/hosts
 * nor mDNS count.
 */
export function dnsLookup(server = '127.0.0.53'): Lookup {
  const resolver = new Resolver({ timeout: 5_000, tries: 2 })
  resolver.setServers([server])
  const ask = async (question: Promise<string[]>): Promise<string[] | Error> =>
    await question.catch((err: NodeJS.ErrnoException) => {
      if (err.code === 'ENODATA' || err.code === 'ENOTFOUND') return []
      return new Error(`no answer from the resolver (${err.code})`)
    })
  return async (name) => {
    const answers = await Promise.all([ask(resolver.resolve4(name)), ask(resolver.resolve6(name))])
    const addresses = answers.flatMap((answer) => (answer instanceof Error ? [] : answer))
    const failed = answers.find((answer) => answer instanceof Error)
    // One family that answers is enough; none must not be taken for "it has no address".
    if (addresses.length === 0 && failed !== undefined) throw failed
    return addresses
  }
}
