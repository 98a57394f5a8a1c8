import type { JSX } from 'preact'
import type { JournalQuery } from '../../broker/journal.ts'
import { LogView } from '../log-view.tsx'

/** Units whose lines the broker gives out (src/broker/journal.ts), those that say most first. */
const units = [
  'gatehouse',
  'node-red',
  'gatehouse-broker',
  'gatehouse-certs',
  'gatehouse-firewall',
  'gatehouse-names',
  'gatehouse-learn',
  'gatehouse-provision',
  'gatehouse-report',
  'gatehouse-update',
  'gatehouse-update-install',
  'gatehouse-trial',
  'gatehouse-extension@*',
] as const satisfies Array<NonNullable<JournalQuery['unit']>>

/** What the device's parts say, as it comes. */
export function LogsPage(): JSX.Element {
  return <LogView units={units} />
}
