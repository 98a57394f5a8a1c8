import { checkClock, restartDevice, seeLogs } from '../../base/cures.ts'
import { GatehouseError } from '../../base/errors.ts'
import { builtAt } from '../../base/version.ts'
import type { Certificate } from '../../certs/pem.ts'
import { urgency } from '../../certs/record.ts'
import type { CertsRecord, Severity } from '../../certs/record.ts'
import type { Config } from '../../config/config.ts'
import { hour } from '../../base/time.ts'

/**
 * The timer runs the agent each hour: after a day without a run something is wrong with the unit.
 */
const silence = 26 * hour

/** What {@link judgeCertificates} goes by. */
export interface CertificateFacts {
  /** Names the node may have certificates for. */
  names: string[]
  /** What is served. */
  certificates: {
    get: (name: string) => Certificate | undefined
    refused: (name: string) => string | undefined
  }
  /** What the agent's last run left. */
  record: CertsRecord | undefined
  now: Date
  /**
   * Milliseconds the gateway has run: after weeks without power the last run was long ago, and the
   * next is on its way.
   */
  uptime: number
  /** Where certificates come from. Default: tailscale. */
  mode?: Config['certificates']['mode']
}

/** A problem and how bad it is. */
export interface Finding {
  error: GatehouseError
  severity: Severity
}

/**
 * What is wrong with the certificates, the worst alone; undefined when nothing is that a person
 * need care about yet. The agent's word counts, and so does what the gateway sees for itself: an
 * agent that does not run says nothing.
 */
export function judgeCertificates({
  names,
  certificates,
  record,
  now,
  uptime,
  mode = 'tailscale',
}: CertificateFacts): Finding | undefined {
  const logs =
    mode === 'files'
      ? 'Put a new certificate and its key on the card, as cert_file and key_file in ' +
        'gatehouse.toml name them, and restart the device'
      : seeLogs('gatehouse-certs')
  // That there were no names is over now that there are some: the agent is on its way again.
  const failed =
    record !== undefined &&
    record.result !== 'ok' &&
    record.code !== 'GH_CERTS_NAMES' &&
    record.code !== 'GH_CERTS_HTTPS_DISABLED'
      ? record
      : undefined
  const cause =
    failed?.problem === undefined
      ? undefined
      : `${failed.problem.replace(/\.$/, '')} (${failed.code ?? 'GH_CERTS'})`
  const findings: Finding[] = []
  const find = (severity: Severity, code: string, message: string, cure: string): void => {
    findings.push({ severity, error: new GatehouseError(code, message, cure) })
  }

  const floor = Math.max(builtAt.getTime(), (Date.parse(record?.goodTime ?? '') || 0) - 60_000)
  if (now.getTime() < floor) {
    find(
      'warning',
      'GH_CERTS_CLOCK',
      `the clock says ${now.toISOString()}, which is before ` +
        `${new Date(floor).toISOString()}, when it was certainly right: nobody can tell ` +
        'whether a certificate has expired',
      checkClock,
    )
  }
  for (const name of names) {
    const certificate = certificates.get(name)
    const refused = certificates.refused(name)
    if (certificate === undefined) {
      const records = (record?.records ?? []).filter(({ there }) => !there)
      if (records.length > 0 && failed?.code === 'GH_CERTS_RECORD')
        find(
          'warning',
          'GH_CERTIFICATE_RECORD',
          `the certificate for ${name} waits for a record in DNS`,
          'Set at whoever serves your domain: ' +
            `${records.map(({ name: at, type, value }) => `${at} ${type} ${type === 'TXT' ? JSON.stringify(value) : value}`).join('; ')}. ` +
            'The device looks for it by itself',
        )
      else if (cause === undefined && refused === undefined)
        find(
          'info',
          'GH_CERTIFICATE_WAITING',
          `waiting for a certificate for ${name}`,
          'It is usually there within two minutes; if it is not, restart the device',
        )
      else
        find(
          'error',
          'GH_CERTIFICATE_MISSING',
          `there is no certificate for ${name}: ${cause ?? refused!.replace(/\.$/, '')}`,
          mode === 'files'
            ? logs
            : 'The device tries again by itself; docs/certificates.md has each cause and its cure',
        )
      continue
    }
    const { severity, overdue } =
      mode === 'files' ? lastCall(certificate, now) : urgency(certificate, now)
    const until = certificate.notAfter.toISOString()
    const why = cause === undefined ? '' : `: ${cause}`
    if (now >= certificate.notAfter) {
      find(
        'error',
        'GH_CERTIFICATE_EXPIRED',
        `the certificate for ${name} expired at ${until}${why}`,
        mode === 'files' ? logs : `${checkClock}. ${logs}`,
      )
    } else if (overdue && severity !== 'info') {
      find(
        severity,
        'GH_CERTIFICATE_RENEWAL',
        mode === 'files'
          ? `the certificate for ${name} from the card expires at ${until}`
          : `the certificate for ${name} was not renewed and expires at ${until}${why}`,
        logs,
      )
    }
    if (refused !== undefined)
      find(
        'warning',
        'GH_CERTIFICATE_REFUSED',
        `${refused.replace(/\.$/, '')}. The one before stays in use`,
        `It is replaced within the hour, or at once when the device is restarted. ${logs}`,
      )
  }
  // It never got as far as looking: no space, settings that cannot be read, a clock that is behind.
  if (
    failed !== undefined &&
    failed.severity !== 'info' &&
    findings.length === 0 &&
    cause !== undefined
  ) {
    find(
      failed.severity ?? 'warning',
      failed.code ?? 'GH_CERTS',
      `certificates are not looked after: ${cause}`,
      logs,
    )
  }
  const last = Date.parse(record?.checkedAt ?? '')
  if (uptime > 3 * hour && !(Math.abs(now.getTime() - last) < silence)) {
    find(
      'warning',
      'GH_CERTIFICATE_AGENT',
      'nobody has looked after the certificates ' +
        `${Number.isNaN(last) ? 'yet' : `since ${new Date(last).toISOString()}`}`,
      `${restartDevice}. ${logs}`,
    )
  }
  const rank: Record<Severity, number> = { error: 0, warning: 1, info: 2 }
  return findings.toSorted((a, b) => rank[a.severity] - rank[b.severity])[0]
}

/**
 * How bad the end of a certificate from the card is, which somebody has to replace: a warning when
 * 30 days are left, an error at 14; sooner of one that lives shorter.
 */
function lastCall(
  certificate: Pick<Certificate, 'notBefore' | 'notAfter'>,
  now: Date,
): Pick<ReturnType<typeof urgency>, 'severity' | 'overdue'> {
  const day = 24 * hour
  const left = certificate.notAfter.getTime() - now.getTime()
  const life = certificate.notAfter.getTime() - certificate.notBefore.getTime()
  const [warning, error] = [Math.min(30 * day, life / 4), Math.min(14 * day, life / 6)]
  const overdue = left <= warning
  if (left <= error) return { severity: 'error', overdue }
  return { severity: overdue ? 'warning' : 'info', overdue }
}

/**
 * When the agent is wanted next: the first renewal or new attempt; undefined when nothing says so.
 * The timer's hour is too long for certificates of a few hours.
 */
export function wantedAt(record: CertsRecord | undefined): Date | undefined {
  const times = [
    record?.next,
    ...(record?.result === 'ok' ? (record.certificates ?? []) : []).map(({ renewAt }) => renewAt),
  ]
    .map((time) => Date.parse(time ?? ''))
    .filter((time) => !Number.isNaN(time))
  return times.length === 0 ? undefined : new Date(Math.min(...times))
}
