import { parse, stringify } from 'smol-toml'
import { GatehouseError, oneLine } from './errors.ts'
import { locate } from './locate.ts'
import { suggest } from './suggest.ts'

/** What gatehouse.toml says, with defaults filled in. The reference for people is docs/architecture.md. */
export interface Config {
  tailnet: {
    /** Name asked of the tailnet: a DNS label, 1–63 of a-z, 0-9 and inner hyphens. Default: `gatehouse`. */
    hostname: string
    /** Tailscale auth key. Default: none, a login URL is shown. Never in the provisioned copy: see {@link serialize}. */
    authKey: string | undefined
    /** Control server, http or https. Default: Tailscale's own. */
    controlURL: string | undefined
  }
  certificates: {
    /** ACME directory, https. Default: Let's Encrypt. */
    directory: string
    /** PEM file with the authorities trusted for the directory, a plain name beside gatehouse.toml. Default: the system's. */
    caFile: string | undefined
    /** Contact given to the authority. Default: none. */
    email: string | undefined
    /** Profile of certificate asked of the authority, such as Let's Encrypt's `shortlived`. Default: the authority's own choice. */
    profile?: string
  }
}

/** Let's Encrypt's production directory (https://letsencrypt.org/docs/acme-protocol-updates/). */
export const letsEncrypt = 'https://acme-v02.api.letsencrypt.org/directory'

/** The configuration of an empty file. */
export function defaults (): Config {
  return {
    tailnet: { hostname: 'gatehouse', authKey: undefined, controlURL: undefined },
    certificates: { directory: letsEncrypt, caFile: undefined, email: undefined },
  }
}

/** One thing wrong in a configuration file. */
export interface ConfigIssue {
  code: string
  /** From 1. */
  line: number
  /** What is wrong. */
  message: string
  /** What to write instead. */
  cure: string
}

/** Everything wrong in a configuration file; the message is one line about the first issue and a count of the rest. */
export class ConfigError extends GatehouseError {
  override readonly name = 'ConfigError'
  readonly file: string
  readonly issues: readonly ConfigIssue[]

  constructor (file: string, issues: readonly [ConfigIssue, ...ConfigIssue[]]) {
    const [first, ...rest] = issues
    const more = rest.length === 0 ? '' : ` And ${rest.length} more: line ${rest.map((issue) => issue.line).join(', line ')}.`
    super(first.code, `${file} line ${first.line}: ${first.message}`, `${first.cure}${more}`)
    this.file = file
    this.issues = issues
  }
}

type Check = (value: string) => { message: string, cure: string } | undefined

interface Key {
  example: string
  check: Check
  set: (config: Config, value: string) => void
}

const schema: Record<string, Record<string, Key>> = {
  tailnet: {
    hostname: {
      example: 'hostname = "gatehouse"',
      check: checkHostname,
      set: (config, value) => { config.tailnet.hostname = value },
    },
    auth_key: {
      example: 'auth_key = "tskey-auth-…"',
      check: checkAuthKey,
      set: (config, value) => { config.tailnet.authKey = value },
    },
    control_url: {
      example: 'control_url = "https://headscale.example.org"',
      check: (value) => checkURL(value, ['https:', 'http:'], 'control_url = "https://headscale.example.org"'),
      set: (config, value) => { config.tailnet.controlURL = value },
    },
  },
  certificates: {
    directory: {
      example: `directory = "${letsEncrypt}"`,
      check: (value) => checkURL(value, ['https:'], `directory = "${letsEncrypt}"`),
      set: (config, value) => { config.certificates.directory = value },
    },
    ca_file: {
      example: 'ca_file = "authority.pem"',
      // Only .pem: the name is used in a directory that also holds gatehouse.toml and authkey.
      check: (value) => /^[A-Za-z0-9_][A-Za-z0-9_.-]*\.pem$/.test(value)
        ? undefined
        : { message: `ca_file ${quote(value)} is not a plain file name ending in .pem`, cure: 'Put the file beside gatehouse.toml and write its name alone: ca_file = "authority.pem"' },
      set: (config, value) => { config.certificates.caFile = value },
    },
    email: {
      example: 'email = "you@example.org"',
      check: (value) => /^[^\s@,;<>]+@[^\s@,;<>]+$/.test(value)
        ? undefined
        : { message: `email ${quote(value)} is not an e-mail address`, cure: 'Write email = "you@example.org", or leave it out' },
      set: (config, value) => { config.certificates.email = value },
    },
    profile: {
      example: 'profile = "shortlived"',
      check: (value) => /^[A-Za-z0-9_.-]{1,64}$/.test(value)
        ? undefined
        : { message: `profile ${quote(value)} is not the name of a profile`, cure: 'Write one the authority offers, such as profile = "shortlived", or leave it out' },
      set: (config, value) => { config.certificates.profile = value },
    },
  },
}

/**
 * Reads a configuration whole: every mistake in it is found and reported with its line.
 *
 * A byte order mark and CRLF line ends are accepted (Windows editors write both). No message ever holds the value of
 * auth_key.
 *
 * @param data content of the file
 * @param file name used in messages
 * @throws ConfigError with every issue found
 */
export function parseConfig (data: string | Uint8Array, file: string): Config {
  const text = decode(data, file)
  let document: Record<string, unknown>
  try {
    document = parse(text)
  } catch (err) {
    throw new ConfigError(file, [syntaxIssue(err, text)])
  }
  const config = defaults()
  const issues: ConfigIssue[] = []
  const lineOf = (...path: string[]): number => locate(text, path) ?? 1
  for (const [table, content] of Object.entries(document)) {
    const keys = Object.hasOwn(schema, table) ? schema[table] : undefined
    if (keys === undefined) {
      issues.push({ code: 'GH_CONFIG_UNKNOWN_KEY', line: lineOf(table), ...unknownTable(table, content) })
      continue
    }
    if (!isTable(content)) {
      issues.push({ code: 'GH_CONFIG_TYPE', line: lineOf(table), message: `${table} must be a table`, cure: `Write [${table}] on a line of its own and its keys below` })
      continue
    }
    for (const [name, value] of Object.entries(content)) {
      const line = lineOf(table, name)
      const key = Object.hasOwn(keys, name) ? keys[name] : undefined
      if (key === undefined) {
        issues.push({ code: 'GH_CONFIG_UNKNOWN_KEY', line, ...unknownKey(table, name) })
      } else if (typeof value !== 'string') {
        issues.push({ code: 'GH_CONFIG_TYPE', line, message: `${name} must be text in quotes`, cure: `Write ${key.example}` })
      } else {
        const wrong = key.check(value)
        if (wrong === undefined) key.set(config, value)
        else issues.push({ code: 'GH_CONFIG_VALUE', line, ...wrong })
      }
    }
  }
  issues.sort((a, b) => a.line - b.line)
  if (issues.length > 0) throw new ConfigError(file, issues as [ConfigIssue, ...ConfigIssue[]])
  return config
}

/** The configuration as TOML without the auth key: what every user of the machine may read. */
export function serialize (config: Config): string {
  const { hostname, controlURL } = config.tailnet
  const { directory, caFile, email, profile } = config.certificates
  const given = (table: Record<string, string | undefined>): Record<string, string> =>
    Object.fromEntries(Object.entries(table).filter((entry): entry is [string, string] => entry[1] !== undefined))
  return '# Written by gatehouse provision from gatehouse.toml on the boot partition. Change that one: this file is replaced at each boot.\n' +
    stringify({
      tailnet: given({ hostname, control_url: controlURL }),
      certificates: given({ directory, ca_file: caFile, email, profile }),
    }) + '\n'
}

function isTable (value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Date)
}

function decode (data: string | Uint8Array, file: string): string {
  if (typeof data === 'string') return data.replace(/^\uFEFF/, '')
  const encoding = (message: string): ConfigError => new ConfigError(file, [{
    code: 'GH_CONFIG_ENCODING', line: 1, message, cure: 'Save it again as plain text with the encoding UTF-8',
  }])
  if ((data[0] === 0xff && data[1] === 0xfe) || (data[0] === 0xfe && data[1] === 0xff)) throw encoding('the file is saved as UTF-16')
  if (data.includes(0)) throw encoding('the file holds zero bytes: it is no text, or it was damaged when the card was pulled out')
  try {
    // TextDecoder drops a byte order mark by itself.
    return new TextDecoder('utf-8', { fatal: true }).decode(data)
  } catch {
    throw encoding('the file is not UTF-8 text')
  }
}

function syntaxIssue (err: unknown, text: string): ConfigIssue {
  const line = (err as { line?: number }).line ?? 1
  // The rest of smol-toml's message quotes the lines around the error, and with them perhaps the key.
  const what = oneLine((err as Error).message.split('\n')[0]!.replace(/^Invalid TOML document: /, ''))
  const source = text.split(/\r?\n/)[line - 1] ?? ''
  let cure = 'Write each setting on a line of its own as key = "value"'
  if (/[“”„‘’]/.test(source)) cure = 'Use straight quotes: key = "value", not “value”'
  else if (/^\s*[A-Za-z_]+\s*:/.test(source)) cure = 'Write key = "value": an equals sign, not a colon'
  else if (/^\s*[A-Za-z_]+\s*=\s*[^"'\s]/.test(source)) cure = 'Put the value in quotes: key = "value"'
  else if (/=\s*"[^"]*$/.test(source)) cure = 'Close the quotes: key = "value"'
  return { code: 'GH_CONFIG_SYNTAX', line, message: `this is not TOML: ${what}`, cure }
}

function unknownTable (table: string, content: unknown): { message: string, cure: string } {
  const home = Object.entries(schema).find(([, keys]) => Object.hasOwn(keys, table))
  if (home !== undefined) {
    return { message: `${table} stands outside its table`, cure: `Write [${home[0]}] on the line before it` }
  }
  const what = isTable(content) ? `table [${table}]` : `key ${table}`
  const near = suggest(table, Object.keys(schema))
  return {
    message: `unknown ${what}`,
    cure: near === undefined ? `Remove it; tables are ${list(Object.keys(schema).map((name) => `[${name}]`))}` : `Did you mean [${near}]?`,
  }
}

function unknownKey (table: string, name: string): { message: string, cure: string } {
  const elsewhere = Object.entries(schema).find(([other, keys]) => other !== table && Object.hasOwn(keys, name))
  const near = suggest(name, Object.keys(schema[table]!))
  let cure = `Remove it; keys of [${table}] are ${list(Object.keys(schema[table]!))}`
  if (elsewhere !== undefined) cure = `Move it below [${elsewhere[0]}]`
  else if (near !== undefined) cure = `Did you mean ${near}?`
  return { message: `unknown key ${name} in [${table}]`, cure }
}

function checkHostname (value: string): { message: string, cure: string } | undefined {
  // RFC 1123 §2.1, lower case since the control server would fold it anyway and the URL shown must be the one served.
  if (/^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/.test(value)) return undefined
  const better = value.toLowerCase().replace(/[^a-z0-9]+/g, '-').replace(/^-+/, '').slice(0, 63).replace(/-+$/, '')
  return {
    message: `hostname ${quote(value)} is not a DNS label (1 to 63 of a-z, 0-9 and inner hyphens)`,
    cure: `Write hostname = "${better === '' ? 'gatehouse' : better}"`,
  }
}

function checkAuthKey (value: string): { message: string, cure: string } | undefined {
  const make = 'Make an auth key in the admin console (Settings, Keys) and write it whole: auth_key = "tskey-auth-…"'
  if (value === '') return { message: 'auth_key is empty', cure: `${make}; or remove the line to log in with a URL` }
  if (value.includes('…') || value.endsWith('...')) return { message: 'auth_key is the example, not a key', cure: make }
  if (!/^[\x21-\x7e]+$/.test(value)) return { message: 'auth_key holds spaces or characters no key has', cure: make }
  if (value.startsWith('tskey-api-')) return { message: 'auth_key is an API access token, which cannot add a machine', cure: make }
  return undefined
}

function checkURL (value: string, protocols: string[], example: string): { message: string, cure: string } | undefined {
  const name = example.split(' ')[0]!
  const url = URL.parse(value)
  const cure = `Write ${example}`
  if (url === null || !protocols.includes(url.protocol) || url.hostname === '') {
    return { message: `${name} is not ${protocols.length === 1 ? 'an https' : 'an https or http'} URL`, cure }
  }
  if (url.username !== '' || url.password !== '') return { message: `${name} holds a user name or password`, cure }
  return undefined
}

function quote (value: string): string {
  return JSON.stringify(value.length > 80 ? `${value.slice(0, 79)}…` : value)
}

function list (words: string[]): string {
  return words.length < 2 ? words.join('') : `${words.slice(0, -1).join(', ')} and ${words.at(-1)}`
}
