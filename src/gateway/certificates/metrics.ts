import { Counter, Gauge } from 'prom-client'
import type { Registry } from 'prom-client'
import { failures } from '../../certs/failure.ts'
import type { CertsRecord } from '../../certs/record.ts'
import type { Certificates } from './certificates.ts'

/** What the metrics of the certificates are read from, at each scrape. */
export interface CertificateSources {
  certificates: Pick<Certificates, 'names' | 'get'>
  /** What the agent's last run left. */
  record: () => CertsRecord | undefined
  now?: () => Date
}

/**
 * Metrics of the certificates: of those served, and of what the agent counted, which outlives
 * gateway and reboots. One that has nothing to tell yet is absent, not 0: that would be 1970.
 */
export function certificateMetrics(
  registry: Registry,
  { certificates, record, now = () => new Date() }: CertificateSources,
): void {
  const registers = [registry]
  const perName = (
    name: string,
    help: string,
    read: (name: string) => Date | undefined,
    value: (date: Date) => number = unix,
  ): void => {
    new Gauge({
      name,
      help,
      labelNames: ['name'],
      registers,
      collect() {
        this.reset()
        for (const one of certificates.names) {
          const date = read(one)
          if (date !== undefined) this.set({ name: one }, value(date))
        }
      },
    })
  }
  perName(
    'gatehouse_certificate_not_after_timestamp_seconds',
    'When the certificate that is served expires, in Unix time.',
    (name) => certificates.get(name)?.notAfter,
  )
  perName(
    'gatehouse_certificate_expiry_seconds',
    'Seconds until the certificate that is served expires; below 0 when it has.',
    (name) => certificates.get(name)?.notAfter,
    (date) => (date.getTime() - now().getTime()) / 1000,
  )
  perName(
    'gatehouse_certificate_renewal_timestamp_seconds',
    'When the certificate is to be renewed, in Unix time.',
    (name) => parsed(record()?.certificates?.find((one) => one.name === name)?.renewAt),
  )

  const moment = (
    name: string,
    help: string,
    read: (record: CertsRecord) => string | undefined,
  ): void => {
    new Gauge({
      name,
      help,
      registers,
      collect() {
        const last = record()
        const date = last === undefined ? undefined : parsed(read(last))
        if (date === undefined) this.remove()
        else this.set(unix(date))
      },
    })
  }
  moment(
    'gatehouse_certificate_last_run_timestamp_seconds',
    'When the agent last looked after the certificates, in Unix time.',
    ({ checkedAt }) => checkedAt,
  )
  moment(
    'gatehouse_certificate_last_attempt_timestamp_seconds',
    'When an authority was last asked for a certificate, in Unix time.',
    ({ totals }) => totals?.lastAttempt,
  )
  moment(
    'gatehouse_certificate_last_success_timestamp_seconds',
    'When a certificate was last put in place, in Unix time.',
    ({ totals }) => totals?.lastSuccess,
  )

  const total = (
    name: string,
    help: string,
    read: (record: CertsRecord) => number | undefined,
  ): void => {
    new Counter({
      name,
      help,
      registers,
      collect() {
        this.reset()
        const last = record()
        this.inc(last === undefined ? 0 : (read(last) ?? 0))
      },
    })
  }
  total(
    'gatehouse_certificate_attempts_total',
    'Times an authority was asked for a certificate.',
    ({ totals }) => totals?.attempts,
  )
  total(
    'gatehouse_certificate_issued_total',
    'Certificates put in place.',
    ({ totals }) => totals?.issued,
  )
  new Counter({
    name: 'gatehouse_certificate_failures_total',
    help: 'What went wrong with certificates, put right since or not, by code.',
    labelNames: ['code'],
    registers,
    collect() {
      this.reset()
      const counted = record()?.totals?.failures ?? {}
      // All of them from the start: a series that appears with its first event hides that event
      // from rate().
      for (const code of Object.keys(failures))
        this.inc({ code }, counted[code as keyof typeof failures] ?? 0)
    },
  })
}

function unix(date: Date): number {
  return date.getTime() / 1000
}

function parsed(time: string | undefined): Date | undefined {
  const date = new Date(time ?? '')
  return Number.isNaN(date.getTime()) ? undefined : date
}
