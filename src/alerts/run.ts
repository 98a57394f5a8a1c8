import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { reason } from '../base/errors.ts'
import { writeFileAtomic } from '../base/files.ts'
import type { Paths } from '../base/paths.ts'
import { channelsOf, send } from './send.ts'
import type { Alert, AlertSettings } from './send.ts'
import { watch } from './watch.ts'

/** What the button came to: tested.json in the state directory. */
export interface Tested {
  /** RFC 3339. */
  at: string
  results: Array<{ channel: string; ok: boolean; said: string }>
}

/**
 * `gatehouse alerts watch | test`, as the user gatehouse-alerts (gatehouse-alerts@.service): the one
 * who may reach the servers that [alerts] names, and nobody else.
 *
 * @returns 0, or 1 when something is still to be told: systemd tries again
 */
export async function runAlerts(paths: Paths, what: string | undefined): Promise<number> {
  const say = (line: string): void => {
    process.stdout.write(`${line}\n`)
  }
  const settings = await readSettings(paths.credentials)
  if (settings === undefined) return 0
  const state = paths.state('/var/lib/gatehouse-alerts')
  if (what === 'test') {
    const tested = await tryAll(settings)
    await writeFileAtomic(join(state, 'tested.json'), JSON.stringify(tested), 0o600)
    for (const { channel, said } of tested.results) say(`test by ${channel}: ${said}`)
    return 0
  }
  const done = await watch({
    ...{ directory: paths.alerts, state, settings, say },
    send: async (channel, alert) => {
      await send(settings, channel, alert)
    },
  })
  return done ? 0 : 1
}

async function tryAll(settings: AlertSettings): Promise<Tested> {
  const alert: Alert = {
    ...{ event: 'test', device: 'gatehouse', part: 'alerts', code: 'GH_TEST' },
    message: 'Somebody pressed the button that tries alerts',
    cure: 'Nothing is wrong: there is nothing to do',
    ...{ since: new Date().toISOString(), severity: 'info' },
  }
  const results = await Promise.all(
    channelsOf(settings).map(async (channel) => {
      try {
        await send(settings, channel, alert)
        return { channel, ok: true, said: 'sent' }
      } catch (err) {
        return { channel, ok: false, said: reason(err) }
      }
    }),
  )
  return { at: alert.since, results }
}

async function readSettings(credentials: string | undefined): Promise<AlertSettings | undefined> {
  if (credentials === undefined) return undefined
  const text = await readFile(join(credentials, 'alerts'), 'utf8')
  return text.trim() === '' ? undefined : (JSON.parse(text) as AlertSettings)
}
