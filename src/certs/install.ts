import { createPrivateKey } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { GatehouseError, oneLine, reason } from '../base/errors.ts'
import { writeFileAtomic } from '../base/files.ts'
import { writeRecord } from './agent.ts'
import { readChain, readKey } from './chain.ts'
import { certificateFile, parseCertificate } from './pem.ts'
import { History, readRecord } from './record.ts'
import type { CertsRecord } from './record.ts'

/** What {@link installFiles} works with. */
export interface InstallOptions {
  /** Names the certificate is served for; it covers them all. */
  names: string[]
  /** PEM of the chain, as provisioning took it from the card. */
  chain: string
  /** PEM of the key, when it was handed over; otherwise the one in place is used. */
  key: string | undefined
  /** Directory of the certificates. */
  tls: string
  say: (line: string) => void
  now: Date
  goodTime: Date | undefined
}

/**
 * mode = "files": puts the certificate from the card in place for each of its names, proven with
 * its key, and leaves a record. What is in place is replaced by nothing less.
 *
 * @throws GatehouseError GH_CERTS_FILES
 */
export async function installFiles({
  names,
  chain: text,
  key,
  tls,
  say,
  now,
  goodTime,
}: InstallOptions): Promise<CertsRecord> {
  const pem = await assemble(names, text, key, tls)
  const history = new History(await readRecord(tls))
  const certificates: NonNullable<CertsRecord['certificates']> = []
  for (const name of names) {
    let certificate
    try {
      certificate = parseCertificate(pem, name)
    } catch (err) {
      throw unfit(reason(err))
    }
    const path = join(tls, certificateFile(name))
    if ((await readFile(path, 'utf8').catch(() => '')) !== pem) {
      await writeFileAtomic(path, pem, 0o640)
      history.totals.issued++
      history.totals.lastSuccess = now.toISOString()
      say(
        `certificate for ${name} from the card: ${certificate.serial} by ` +
          `${certificate.issuer}, valid until ${certificate.notAfter.toISOString()}`,
      )
    }
    const notAfter = certificate.notAfter.toISOString()
    certificates.push({ name, notAfter, renewAt: notAfter, from: 'lifetime' })
  }
  const record: CertsRecord = {
    checkedAt: now.toISOString(),
    result: 'ok',
    names,
    certificates,
    ...history.parts(now),
    ...(goodTime === undefined ? {} : { goodTime: goodTime.toISOString() }),
  }
  await writeRecord(tls, record)
  return record
}

function unfit(message: string): GatehouseError {
  return new GatehouseError(
    'GH_CERTS_FILES',
    `the certificate from the card is not used: ${oneLine(message)}`,
    'Put cert_file and key_file, a certificate and its key, on the card once more, as ' +
      'gatehouse.toml names them, and restart the device',
  )
}

/** Chain and key in one text, as they are kept. */
async function assemble(
  names: string[],
  text: string,
  handed: string | undefined,
  tls: string,
): Promise<string> {
  try {
    const keys = handed === undefined ? await keysInPlace(names, tls) : [handed]
    let last: Error | undefined
    for (const key of keys) {
      try {
        const chain = readChain(text, readKey(key))
        return `${chain.map((one) => one.toString()).join('')}${createPrivateKey(key).export({ type: 'pkcs8', format: 'pem' }).toString()}`
      } catch (err) {
        last = err as Error
      }
    }
    throw last ?? new Error('its key is not on the card, and the device has none')
  } catch (err) {
    throw unfit(reason(err))
  }
}

/** Keys of what is in place for these names. */
async function keysInPlace(names: string[], tls: string): Promise<string[]> {
  const found = await Promise.all(
    names.map(
      async (name) =>
        await readFile(join(tls, certificateFile(name)), 'utf8').catch(() => undefined),
    ),
  )
  return found.filter((pem) => pem !== undefined)
}
