import { Resolver } from 'node:dns/promises'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Config } from '../config/config.ts'
import { reason } from '../base/errors.ts'
import { writeFileAtomic } from '../base/files.ts'
import { AcmeDNS, AcmeDNSRefusal } from './acme-dns.ts'
import type { AcmeDNSAccount } from './acme-dns.ts'
import { DNSRefusal, findZone, nameServer, update } from './dns-update.ts'
import { IssueError } from './failure.ts'
import type { DNSRecord } from './record.ts'
import type { Secrets } from './secrets.ts'

/** A challenge of dns-persist-01 as far as it decides what the record says. */
export interface Persistent {
  /** Names the authority goes by (`issuer-domain-names`), one of which stands in the record. */
  issuers: readonly string[]
  /** URL of the account at the authority. */
  account: string
}

/** How it is proven to an authority that a name is one's own. */
export interface Prover {
  /** What is done with which challenge. */
  challenge: 'dns-01' | 'dns-persist-01'
  /**
   * Called before anything is asked of the authority: whether what a person has to set is there.
   *
   * @param base the name, without the star of a wildcard
   * @throws IssueError GH_CERTS_RECORD when it is not
   */
  prepare: (base: string, wildcard: boolean) => Promise<void>
  /** dns-01: publishes a TXT record. */
  publish: (name: string, value: string) => Promise<void>
  /** dns-01: removes it again; what goes wrong is of no account. */
  withdraw: (name: string, value: string) => Promise<void>
  /** dns-persist-01: as {@link prepare}, now that it is known what the record must say. */
  persist: (base: string, wildcard: boolean, challenge: Persistent) => Promise<void>
  /** Records for a person to set, with whether they are there. */
  records: () => DNSRecord[]
  /**
   * Tries a secret that has not been used yet, so that it can be kept and taken off the card.
   *
   * @param base one of the names
   */
  tryOut: (base: string) => Promise<void>
}

/** Questions to DNS, by the system's resolver. */
export interface Lookup {
  /** The alias of a name; undefined when it has none. */
  cname: (name: string) => Promise<string | undefined>
  txt: (name: string) => Promise<string[]>
}

const absent = /^(?:ENODATA|ENOTFOUND)$/

/** By the resolvers of /etc/resolv.conf. */
export function systemLookup(): Lookup {
  const resolver = new Resolver({ timeout: 5_000, tries: 2 })
  const none =
    <T>(value: T) =>
    (err: NodeJS.ErrnoException): T => {
      if (absent.test(err.code ?? '')) return value
      throw err
    }
  return {
    cname: async (name) =>
      (await resolver.resolveCname(name).catch(none([] as string[])))[0]
        ?.toLowerCase()
        .replace(/\.$/, ''),
    txt: async (name) =>
      (await resolver.resolveTxt(name).catch(none([] as string[][]))).map((parts) =>
        parts.join(''),
      ),
  }
}

/** Where a name leads by aliases: the last of them. */
async function follow(lookup: Lookup, name: string): Promise<string> {
  let at = name
  for (let steps = 0; steps < 8; steps++) {
    const next = await lookup.cname(at)
    if (next === undefined) return at
    at = next
  }
  throw new Error(`the aliases of ${name} do not end`)
}

/** dns-01 by the control server, through the gateway: for the tailnet's own names. */
export function tailnetProver(publish: Prover['publish']): Prover {
  const nothing = async (): Promise<void> => {}
  return {
    challenge: 'dns-01',
    prepare: nothing,
    publish,
    // The record is replaced by the next one; the control server keeps no others.
    withdraw: nothing,
    persist: nothing,
    records: () => [],
    tryOut: nothing,
  }
}

/** What {@link ownProver} works with. */
export interface ProverOptions {
  settings: Config['certificates']
  /** PEM of the authorities of `ca_file`; undefined: the system's. */
  authorities: string | undefined
  /** Secrets as they were handed over. */
  handed: { tsigKey: string | undefined; acmeDnsPassword: string | undefined }
  secrets: Secrets
  /** The agent's state directory. */
  state: string
  say: (line: string) => void
  lookup?: Lookup
}

/** For names of one's own, as [certificates] proof says. */
export async function ownProver(options: ProverOptions): Promise<Prover> {
  switch (options.settings.proof) {
    case 'rfc2136':
      return updateProver(options)
    case 'acme-dns':
      return await acmeDNSProver(options)
    default:
      return await persistProver(options)
  }
}

const prefix = '_acme-challenge.'

function updateProver({
  settings,
  handed,
  secrets,
  lookup = systemLookup(),
}: ProverOptions): Prover {
  const { dnsServer = '', dnsZone, dnsWait, tsigName = '', tsigAlgorithm } = settings
  const server = nameServer(dnsServer)
  const secret = secrets.get('tsig_key', tsigName, handed.tsigKey)
  const zones = new Map<string, string>()
  const change = async (what: 'add' | 'remove', name: string, value: string): Promise<void> => {
    if (secret === undefined) throw missing('tsig_key', `the key ${tsigName}`)
    try {
      // Whoever does not let this device change the domain itself points the one name elsewhere.
      const at = await follow(lookup, name)
      const zone = dnsZone ?? zones.get(at) ?? (await findZone(server, at))
      zones.set(at, zone)
      const key = { name: tsigName, algorithm: tsigAlgorithm, secret }
      await update(server, zone, key, [{ what, name: at, value }])
    } catch (err) {
      throw notUpdated(dnsServer, tsigName, err)
    }
    await secrets.keep('tsig_key', tsigName, secret)
  }
  return {
    challenge: 'dns-01',
    prepare: async () => {},
    publish: async (name, value) => {
      await change('add', name, value)
      await sleep(dnsWait)
    },
    withdraw: async (name, value) => {
      await change('remove', name, value)
    },
    persist: async () => {},
    records: () => [],
    // To remove what is not there changes nothing, and needs the same right.
    tryOut: async (base) => {
      await change('remove', `${prefix}${base}`, 'gatehouse')
    },
  }
}

function missing(key: string, what: string): IssueError {
  return new IssueError(
    'GH_CERTS_SECRET',
    `the secret of ${what} is neither on the card nor kept on the device`,
    `Write ${key} under [certificates] in gatehouse.toml on the card, and restart the device`,
  )
}

function notUpdated(server: string, key: string, err: unknown): IssueError {
  const code = err instanceof DNSRefusal ? err.code : (err as NodeJS.ErrnoException).code
  const cures: Record<string, string> = {
    BADKEY:
      `It knows no key ${key} of this algorithm, or does not let it change this zone: check ` +
      'tsig_name and tsig_algorithm in gatehouse.toml',
    BADSIG: 'Its secret is another: check tsig_key in gatehouse.toml',
    BADTIME:
      'The clocks differ by more than five minutes: check the network, which the clock is ' +
      'set from, and the name server’s clock',
    REFUSED: `Let the key ${key} change TXT records of ${prefix}… at the name server`,
    NOTAUTH: 'It is not the primary of the zone: check dns_server and dns_zone in gatehouse.toml',
    NOTZONE: 'It has no such zone: check dns_server and dns_zone in gatehouse.toml',
    UNSIGNED: 'Whoever answers does not have the key: check dns_server in gatehouse.toml',
  }
  const own = new Map(Object.entries(cures)).get(code ?? '')
  return new IssueError(
    'GH_CERTS_UPDATE',
    `the name server ${server} does not take the proof: ${reason(err)}`,
    own ?? 'Check the network, and dns_server in gatehouse.toml',
    { cause: err },
  )
}

async function acmeDNSProver({
  settings,
  authorities,
  handed,
  secrets,
  state,
  say,
  lookup = systemLookup(),
}: ProverOptions): Promise<Prover> {
  const { acmeDns = '', acmeDnsUser, acmeDnsSubdomain, dnsWait } = settings
  const server = new AcmeDNS(acmeDns, authorities)
  const path = join(state, 'acme-dns.json')
  const records = new Map<string, DNSRecord>()
  let known = await readAccount(path, acmeDns)
  const account = async (): Promise<AcmeDNSAccount> => {
    if (acmeDnsUser !== undefined && acmeDnsSubdomain !== undefined) {
      const password = secrets.get('acme_dns_password', acmeDnsUser, handed.acmeDnsPassword)
      if (password === undefined) throw missing('acme_dns_password', acmeDnsUser)
      return { user: acmeDnsUser, password, subdomain: acmeDnsSubdomain, fullDomain: undefined }
    }
    if (known === undefined) {
      known = await server.register()
      await writeFileAtomic(path, `${JSON.stringify({ url: acmeDns, ...known })}\n`, 0o600)
      say(`an account at ${acmeDns} was made: ${known.fullDomain}`)
    }
    return known
  }
  const refused = (err: unknown): IssueError => {
    if (err instanceof IssueError) return err
    const forbidden = err instanceof AcmeDNSRefusal && (err.status === 401 || err.status === 400)
    return new IssueError(
      'GH_CERTS_UPDATE',
      `the acme-dns server ${URL.parse(acmeDns)?.host} does not take the proof: ${reason(err)}`,
      forbidden
        ? 'Check acme_dns_user, acme_dns_password and acme_dns_subdomain in gatehouse.toml'
        : 'Check the network, acme_dns and, for a server of your own authority, ca_file in gatehouse.toml',
      { cause: err },
    )
  }
  const send = async (value: string): Promise<void> => {
    try {
      const used = await account()
      await server.update(used, value)
      if (acmeDnsUser !== undefined)
        await secrets.keep('acme_dns_password', acmeDnsUser, used.password)
    } catch (err) {
      throw refused(err)
    }
  }
  return {
    challenge: 'dns-01',
    prepare: async (base) => {
      const name = `${prefix}${base}`
      let used: AcmeDNSAccount
      let leads: string | undefined
      try {
        used = await account()
      } catch (err) {
        throw refused(err)
      }
      try {
        leads = await follow(lookup, name)
      } catch {
        // The authority looks for itself.
        return
      }
      const there = leads.split('.', 1)[0] === used.subdomain.toLowerCase()
      const value = used.fullDomain ?? `${used.subdomain}.<domain of ${URL.parse(acmeDns)?.host}>`
      records.set(name, { name, type: 'CNAME', value, there })
      if (!there) throw notThere(records.get(name)!)
    },
    publish: async (_name, value) => {
      await send(value)
      await sleep(dnsWait)
    },
    // It keeps the last two of an account, and takes none back.
    withdraw: async () => {},
    persist: async () => {},
    records: () => [...records.values()],
    tryOut: async () => {
      await send('_'.repeat(43))
    },
  }
}

async function readAccount(path: string, url: string): Promise<AcmeDNSAccount | undefined> {
  try {
    const read = JSON.parse(await readFile(path, 'utf8')) as AcmeDNSAccount & { url: string }
    const whole = [read.user, read.password, read.subdomain, read.fullDomain].every(
      (value) => typeof value === 'string',
    )
    return whole && read.url === url ? read : undefined
  } catch {
    return undefined
  }
}

function notThere({ name, type, value }: DNSRecord): IssueError {
  return new IssueError(
    'GH_CERTS_RECORD',
    `the record ${name} is not in DNS yet`,
    `Set, where the records of your domain are: ${name} ${type} ` +
      `${type === 'TXT' ? JSON.stringify(value) : value}. It is looked for by itself`,
  )
}

/**
 * dns-persist-01 (draft-ietf-acme-dns-persist): one TXT record, set once, names the authority and
 * the account that may have certificates.
 */
async function persistProver({
  settings,
  state,
  lookup = systemLookup(),
}: ProverOptions): Promise<Prover> {
  const path = join(state, 'persist.json')
  const records = new Map<string, DNSRecord>()
  const { directory } = settings
  /** By name: what its record has to say, as the authority asked last. */
  let known: Record<string, Persistent> = {}
  try {
    const read = JSON.parse(await readFile(path, 'utf8')) as {
      directory: string
      names: Record<string, Persistent>
    }
    if (read.directory === directory) known = read.names
  } catch {
    // The authority is asked.
  }
  const check = async (base: string, wildcard: boolean, asked: Persistent): Promise<void> => {
    const name = `_validation-persist.${base}`
    const value = `${asked.issuers[0]}; accounturi=${asked.account}${wildcard || wild(base) ? '; policy=wildcard' : ''}`
    let there: boolean
    try {
      const found = await lookup.txt(name)
      there = found.some((text) => allows(text, asked, wildcard))
    } catch {
      // The authority looks for itself.
      there = true
    }
    records.set(name, { name, type: 'TXT', value, there })
    if (!there) throw notThere(records.get(name)!)
  }
  const wild = (base: string): boolean => settings.name.includes(`*.${base}`)
  return {
    challenge: 'dns-persist-01',
    prepare: async (base, wildcard) => {
      const asked = Object.hasOwn(known, base) ? known[base] : undefined
      if (asked !== undefined) await check(base, wildcard, asked)
    },
    publish: async () => {},
    withdraw: async () => {},
    persist: async (base, wildcard, challenge) => {
      known = { ...known, [base]: challenge }
      await writeFileAtomic(path, `${JSON.stringify({ directory, names: known })}\n`, 0o600)
      await check(base, wildcard, challenge)
    },
    records: () => [...records.values()],
    tryOut: async () => {},
  }
}

/**
 * Whether a record lets the account have certificates (draft-ietf-acme-dns-persist §4; its form is
 * that of a CAA issue property, RFC 8659 §4.2).
 */
export function allows(text: string, { issuers, account }: Persistent, wildcard: boolean): boolean {
  const [issuer = '', ...parameters] = text.split(';').map((part) => part.trim())
  if (!issuers.includes(issuer)) return false
  const values = new Map(
    parameters.map((parameter): [string, string] => {
      const at = parameter.indexOf('=')
      return [parameter.slice(0, at).trim().toLowerCase(), parameter.slice(at + 1).trim()]
    }),
  )
  const until = values.get('persistuntil')
  return (
    values.get('accounturi') === account &&
    (!wildcard || values.get('policy')?.toLowerCase() === 'wildcard') &&
    (until === undefined || Number(until) * 1000 > Date.now())
  )
}
