/** What is wrong with a value, and what to write instead. */
export interface Wrong {
  message: string
  cure: string
}

/**
 * A kind of value a key may have: how it is read from TOML and written back.
 *
 * `read` is given the value as smol-toml parsed it, and the key as written in the file with an
 * example of it for the cure. It answers the value, or what is wrong with it.
 */
export interface Kind<T> {
  read: (value: unknown, key: KeyText) => { value: T } | { wrong: Wrong; type?: true }
  write: (value: T) => unknown
}

/** A key as messages name it: `name` is `auth_key`, `example` is `auth_key = "tskey-auth-…"`. */
export interface KeyText {
  name: string
  example: string
}

type Check<T> = (value: T, key: KeyText) => Wrong | undefined

const identity = <T>(value: T): T => value

function kind<T>(noun: string, is: (value: unknown) => value is T, check?: Check<T>): Kind<T> {
  return {
    read: (value, key) => {
      if (!is(value))
        return {
          type: true,
          wrong: { message: `${key.name} must be ${noun}`, cure: `Write ${key.example}` },
        }
      const wrong = check?.(value, key)
      return wrong === undefined ? { value } : { wrong }
    },
    write: identity,
  }
}

/**
 * Text in quotes, without control characters. `check` says what else must hold.
 *
 * @param options.own whether `check` has words of its own for control characters
 */
export function text(check?: Check<string>, { own = false }: { own?: boolean } = {}): Kind<string> {
  return kind(
    'text in quotes',
    (value) => typeof value === 'string',
    // A check may call what holds one by another name; a backslash is how it came about.
    (value, key) => (own ? undefined : controlCharacter(value, key)) ?? check?.(value, key),
  )
}

/** Nobody writes one on purpose: `"pa\\bc"` holds one, since in TOML `\\b` is a backspace. */
function controlCharacter(value: string, { name }: KeyText): Wrong | undefined {
  // eslint-disable-next-line no-control-regex
  return /[\u0000-\u001f\u007f]/.test(value)
    ? {
        message: `${name} holds a control character: in double quotes a backslash and the letter behind it are one`,
        cure: singleQuotes(name),
      }
    : undefined
}

/** The cure for values with backslashes and double quotes in them. */
export function singleQuotes(name: string): string {
  return (
    'Use single quotes, in which backslashes and double quotes stand for themselves: ' +
    `${/^[a-z_]+$/.test(name) ? name : 'key'} = '…'`
  )
}

/** One of a few words, in quotes. */
export function oneOf<const T extends string>(...words: T[]): Kind<T> {
  return text((value, key) =>
    (words as string[]).includes(value)
      ? undefined
      : {
          message: `${key.name} is ${quote(value)}`,
          cure: `Write ${words.map((word) => `"${word}"`).join(' or ')}`,
        },
  ) as unknown as Kind<T>
}

/** `true` or `false`, without quotes. */
export function flag(): Kind<boolean> {
  return kind('true or false, without quotes', (value) => typeof value === 'boolean')
}

/** A whole number from `min` to `max`, both included. */
export function integer(min: number, max: number): Kind<number> {
  return kind(
    'a whole number, without quotes',
    (value): value is number => Number.isInteger(value),
    (value, key) =>
      value >= min && value <= max
        ? undefined
        : {
            message: `${key.name} is ${value}, outside ${min} to ${max}`,
            cure: `Write ${key.example}`,
          },
  )
}

const milliseconds = { ms: 1, s: 1_000, min: 60_000, h: 3_600_000, d: 86_400_000 }

/**
 * A length of time such as "30 s", "5 min", "12 h" or "7 d", from `min` to `max`; all in
 * milliseconds here.
 */
export function duration(min: number, max: number): Kind<number> {
  return {
    read: (value, key) => {
      const parts = typeof value === 'string' ? /^(\d+) ?(ms|s|min|h|d)$/.exec(value) : null
      if (parts === null) {
        return {
          type: true,
          wrong: {
            message: `${key.name} must be a length of time in quotes: a whole number and ms, s, min, h or d`,
            cure: `Write ${key.example}`,
          },
        }
      }
      const time = Number(parts[1]) * milliseconds[parts[2] as keyof typeof milliseconds]
      if (time < min || time > max)
        return {
          wrong: {
            message: `${key.name} is ${quote(parts[0])}, outside ${written(min)} to ${written(max)}`,
            cure: `Write ${key.example}`,
          },
        }
      return { value: time }
    },
    write: written,
  }
}

function written(time: number): string {
  const [unit, length] = Object.entries(milliseconds).findLast(
    ([, length]) => time % length === 0 && time >= length,
  ) ?? ['ms', 1]
  return `${time / length} ${unit}`
}

/**
 * A list of values of one kind, in square brackets; at most `max`. One wrong element makes the list
 * wrong.
 */
export function listOf<T>(of: Kind<T>, max = 100): Kind<T[]> {
  return {
    read: (value, key) => {
      if (!Array.isArray(value))
        return {
          type: true,
          wrong: {
            message: `${key.name} must be a list in square brackets`,
            cure: `Write ${key.example}`,
          },
        }
      if (value.length > max)
        return {
          wrong: {
            message: `${key.name} has ${value.length} entries; ${max} are the most`,
            cure: 'Remove some',
          },
        }
      const values: T[] = []
      for (const element of value) {
        const read = of.read(element, { ...key, name: `an entry of ${key.name}` })
        if ('wrong' in read) return read
        values.push(read.value)
      }
      return { value: values }
    },
    write: (values) => values.map((value) => of.write(value)),
  }
}

/**
 * A table of names that the person chooses, with text: `[table.key]` and a line for each, or in
 * braces. No message ever holds a value.
 *
 * @param check what is wrong with a name
 */
export function tableOfText(
  check: (name: string) => Wrong | undefined,
  max = 100,
): Kind<Record<string, string>> {
  return {
    read: (value, key) => {
      const wrong = (message: string, cure: string) => ({ wrong: { message, cure } })
      if (
        typeof value !== 'object' ||
        value === null ||
        Array.isArray(value) ||
        value instanceof Date
      )
        return {
          type: true,
          ...wrong(`${key.name} must be a table`, `Write ${key.example}`),
        }
      const entries = Object.entries(value)
      if (entries.length > max)
        return wrong(
          `${key.name} has ${entries.length} entries; ${max} are the most`,
          'Remove some',
        )
      for (const [name, content] of entries) {
        const bad = check(name)
        if (bad !== undefined) return { wrong: bad }
        if (typeof content !== 'string')
          return {
            type: true,
            ...wrong(`${name} in ${key.name} must be text in quotes`, `Write ${name} = "…"`),
          }
        if (content.length > 32_768 || content.includes('\0'))
          return wrong(
            `${name} in ${key.name} is longer than 32 KiB, or holds a zero byte`,
            'Shorten it',
          )
      }
      return { value: { ...(value as Record<string, string>) } }
    },
    write: identity,
  }
}

/** A list of values of one kind, or one of them without brackets. */
export function oneOrMore<T>(of: Kind<T>, max?: number): Kind<T[]> {
  const list = listOf(of, max)
  return {
    read: (value, key) => list.read(Array.isArray(value) ? value : [value], key),
    write: list.write,
  }
}

/**
 * Text from a configuration file as messages show it: in quotes, escaped, cut after 80 characters.
 */
export function quote(value: string): string {
  return JSON.stringify(value.length > 80 ? `${value.slice(0, 79)}…` : value)
}
