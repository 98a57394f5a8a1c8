import type { Config } from '../config/config.ts'
import { defaults } from '../config/config.ts'

/** Minutes from midnight. */
const minutes = (time: string): number => Number(time.slice(0, 2)) * 60 + Number(time.slice(3))

/**
 * When gatehouse-update.timer looks for a new version, as a drop-in: at a random moment of
 * `window`, another every day, so that a fleet does not come to the server all at once. The empty
 * string for the default, which is the unit's own.
 *
 * @param timezone in which `window` is meant; default UTC
 */
export function updateTimerDropIn(
  { window }: Pick<Config['updates'], 'window'>,
  timezone?: string,
): string {
  if (window === defaults().updates.window && timezone === undefined) return ''
  const [, days, from, to] = /^(?:(\S+) )?(\d\d:\d\d)-(\d\d:\d\d)$/.exec(window)!
  // Over midnight too.
  const length = (minutes(to!) - minutes(from!) + 1440) % 1440
  return [
    '# Written by gatehouse provision: [updates] and [node_red] timezone in gatehouse.toml.',
    '[Timer]',
    'OnCalendar=',
    `OnCalendar=${days === undefined ? '' : `${days} `}*-*-* ${from}${timezone === undefined ? '' : ` ${timezone}`}`,
    `RandomizedDelaySec=${length}min`,
    '',
  ].join('\n')
}
