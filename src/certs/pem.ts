import { X509Certificate, createPrivateKey } from 'node:crypto'
import type { KeyObject } from 'node:crypto'

/** A certificate file that was proven to hold together. */
export interface Certificate {
  name: string
  /** PEM of the chain, leaf first. */
  chain: string
  /** PEM of the private key. */
  key: string
  notBefore: Date
  notAfter: Date
  /** Upper-case hexadecimal, as the authority logs it. */
  serial: string
  /** Common name of the issuer, or the whole issuer where it has none. */
  issuer: string
}

/**
 * File of the certificate for a name. The star of a wildcard is written out: it means something to
 * shells. No host begins with an underscore (RFC 1123 §2.1).
 */
export function certificateFile(name: string): string {
  return `${name.replace(/^\*\./, '_wildcard.')}.pem`
}

/** The name a file is for; undefined where it is no certificate's. */
export function certificateName(file: string): string | undefined {
  return file.endsWith('.pem') && !file.startsWith('.')
    ? file.slice(0, -'.pem'.length).replace(/^_wildcard\./, '*.')
    : undefined
}

/**
 * Parses `<name>.pem` (chain and key in one file) and proves that the key is the leaf's, that the
 * leaf is for `name`, and that each certificate signed the one before it. Validity dates are not
 * judged here: an expired certificate that is served is a warning to a person, no certificate at
 * all is a refusal.
 *
 * @throws Error whose message says what does not fit
 */
export function parseCertificate(pem: string, name: string): Certificate {
  const blocks = pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []
  const keys =
    pem.match(
      /-----BEGIN (?:EC |RSA )?PRIVATE KEY-----[^-]+-----END (?:EC |RSA )?PRIVATE KEY-----/g,
    ) ?? []
  if (blocks.length === 0) throw new Error('it holds no certificate')
  if (keys.length !== 1)
    throw new Error(keys.length === 0 ? 'it holds no private key' : 'it holds several private keys')
  let chain: X509Certificate[]
  let key: KeyObject
  try {
    chain = blocks.map((block) => new X509Certificate(block))
    key = createPrivateKey(keys[0]!)
  } catch (err) {
    throw new Error('it is damaged', { cause: err })
  }
  const leaf = chain[0]!
  if (!leaf.checkPrivateKey(key)) throw new Error('its key does not belong to its certificate')
  if (leaf.checkHost(name) === undefined) throw new Error(`its certificate is not for ${name}`)
  for (const [i, certificate] of chain.slice(0, -1).entries()) {
    const issuer = chain[i + 1]!
    if (!certificate.checkIssued(issuer) || !certificate.verify(issuer.publicKey))
      throw new Error('its chain does not hold together')
  }
  return {
    name,
    chain: chain.map((certificate) => certificate.toString()).join(''),
    key: keys[0]!,
    notBefore: leaf.validFromDate,
    notAfter: leaf.validToDate,
    serial: leaf.serialNumber,
    issuer: /^CN=(.+)$/m.exec(leaf.issuer)?.[1] ?? leaf.issuer.replaceAll('\n', ', '),
  }
}

/**
 * When a certificate is due: at two thirds of its lifetime, which fits 90-day and 6-day ones alike.
 */
export function renewAt(certificate: Pick<Certificate, 'notBefore' | 'notAfter'>): Date {
  const from = certificate.notBefore.getTime()
  return new Date(from + ((certificate.notAfter.getTime() - from) * 2) / 3)
}
