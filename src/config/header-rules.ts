import { ownHeader } from './header-names.ts'
import type { Headers } from './header-names.ts'

/** Which way a header goes: with a request to the app, or with its answer to the peer. */
export type Direction = 'request' | 'answer'

/** What [[app]] changes in the headers one way. Names in lower case. */
export interface HeaderRules {
  remove: ReadonlySet<string>
  set: ReadonlyArray<readonly [name: string, value: string]>
  add: ReadonlyArray<readonly [name: string, value: string]>
}

/**
 * Rules as gatehouse.toml has them: names, and lines `Name: value`; checked by {@link checkHeader}.
 */
export function headerRules({
  remove,
  set,
  add,
}: {
  remove: readonly string[]
  set: readonly string[]
  add: readonly string[]
}): HeaderRules {
  const lines = (list: readonly string[]): Array<[string, string]> =>
    list.map((line) => {
      const colon = line.indexOf(':')
      return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()]
    })
  return {
    remove: new Set(remove.map((name) => name.toLowerCase())),
    set: lines(set),
    add: lines(add),
  }
}

/**
 * Carries the rules out on headers with names in lower case: first what is removed, then what is
 * set, then what is added to what is there.
 */
export function applyRules(headers: Headers, { remove, set, add }: HeaderRules): Headers {
  for (const name of remove) delete headers[name]
  for (const [name, value] of set) headers[name] = value
  for (const [name, value] of add) {
    const before = headers[name]
    // Set-Cookie alone may not be joined (RFC 9110 §5.3).
    if (before === undefined) headers[name] = value
    else if (name === 'set-cookie') headers[name] = [before, value].flat()
    else headers[name] = `${[before].flat().join(', ')}, ${value}`
  }
  return headers
}

/**
 * What is wrong with a rule's header; undefined when nothing is. `line`: `Name: value`, or the name
 * alone to remove it.
 */
export function checkHeader(
  line: string,
  direction: Direction,
  removes: boolean,
): { message: string; cure: string } | undefined {
  const example = removes ? '"X-Example"' : '"X-Example: value"'
  const [, name, value] = /^([^:]*)(?::(.*))?$/s.exec(line)!
  if ((value === undefined) !== removes || !/^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(name!))
    return {
      message: `${JSON.stringify(line)} is not ${removes ? 'the name of a header' : 'a header'}`,
      cure: `Write ${example}`,
    }
  // RFC 9110 §5.5, and no bytes beyond ASCII: servers read them differently.
  if (value !== undefined && !/^[\x20-\x7e\t]+$/.test(value))
    return {
      message: `the value of ${name} is empty, or has characters no header may have`,
      cure: `Write ${example}`,
    }
  const owner = ownHeader(name!, direction)
  if (owner !== undefined) return { message: `${name} is ${owner}`, cure: 'Remove it' }
  if (!removes && direction === 'request' && /^(?:authorization|cookie)$/i.test(name!)) {
    return {
      message:
        `${name} is a secret, and the configuration can be read by every user of the device, ` +
        `Node-RED's flows among them`,
      cure: 'Remove it, and let the app trust Tailscale-User-Login from the gateway',
    }
  }
  return undefined
}
