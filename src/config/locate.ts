import { scanToml } from '../base/toml-scan.ts'
import type { TomlPlaces } from '../base/toml-scan.ts'

/**
 * Finds lines on which keys stand, for error messages: smol-toml gives positions of syntax errors
 * alone. The text is read when the first is asked for, and once.
 *
 * The function takes ['table', 'key'] or ['table'], or in the nth [[table]] ['table', 'n', 'key'],
 * n from 0, and returns a line number from 1, or undefined for a key that is not there.
 */
export function locator(text: string): (path: readonly string[]) => number | undefined {
  let places: TomlPlaces | undefined
  return (path) => {
    places ??= scanToml(text)
    const begins = ({ path: found }: { path: readonly string[] }): boolean =>
      path.every((part, index) => found[index] === part)
    const lines = [places.headers.find(begins), places.entries.find(begins)].flatMap((place) =>
      place === undefined ? [] : [place.line],
    )
    return lines.length === 0 ? undefined : Math.min(...lines)
  }
}

/** {@link locator} for one key alone. */
export function locate(text: string, path: readonly string[]): number | undefined {
  return locator(text)(path)
}
